"""Executors: rows of an image in, rows of the finished mask out."""
