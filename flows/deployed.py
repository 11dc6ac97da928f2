"""The flow `segment-folder` under the name of its module, by which the workers of a Dask cluster find it.

Prefect runs the file of an entrypoint as a script, whose flows nobody else could import.
"""

from flows.segment_folder import segment_folder

__all__ = ["segment_folder"]
