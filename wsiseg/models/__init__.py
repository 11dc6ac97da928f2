"""Networks, cards and weights."""
