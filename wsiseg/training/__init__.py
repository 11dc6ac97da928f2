"""Training from a manifest and a run file."""
