"""Masks in the formats of other programs."""

from wsiseg.export.nifti import write_nifti

__all__ = ["write_nifti"]
