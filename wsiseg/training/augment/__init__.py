"""Variations of a patch that leave its truth valid."""
