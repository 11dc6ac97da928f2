"""Prefect flows: thin decorators round the public functions of wsiseg."""
