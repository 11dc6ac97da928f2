"""Quality on held-out cases: networks trained from the same patches, with intervals and verdicts."""
