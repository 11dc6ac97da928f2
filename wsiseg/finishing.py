"""The last step of a slab: glass, what is outside of a region, and what is known of both."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from wsiseg.classes import VOID
from wsiseg.execute.base import OnLevel0
from wsiseg.geometry import Region
from wsiseg.prepare import Job
from wsiseg.results import void_places
from wsiseg.tissue import TissueMask
from wsiseg.windows import Slab, slabs

FINISHED_PX = 1 << 24
"""Pixels of a mask that are finished at a time: more than a slab of most slides has."""


def finish_slab(made: OnLevel0, *, job: Job, tissue: TissueMask | None) -> dict[str, Any]:
    """Set glass to background and what is outside the region to void; returns what the ledger keeps.

    Done here, on level 0, so that the mask does not depend on how the image was cut.
    """
    top, mask, confidence = made.slab.rows.start, made.mask, made.confidence
    # A slab of a large volume is many times what is needed in between.
    rows = max(1, FINISHED_PX // math.prod(mask.shape[1:]))
    record: dict[str, Any] = {"unreadable": 0, "places": [], "outside_region": 0}
    for part in slabs(len(mask), rows=rows):
        own = part.rows
        place = Slab(part.index, slice(top + own.start, top + own.stop))
        piece = OnLevel0(place, mask[own], None if confidence is None else confidence[own])
        found = _finish_rows(piece, job=job, tissue=tissue)
        record = {name: value + found[name] for name, value in record.items()}
    return record


def _finish_rows(made: OnLevel0, *, job: Job, tissue: TissueMask | None) -> dict[str, Any]:
    (slab, mask, confidence), shape = made, job.source.geometry.shape
    place: Region = (slab.rows, *(slice(0, n) for n in shape[1:]))
    unreadable = mask == VOID
    if tissue is not None and job.background is not None:
        glass = ~(tissue.at(place, shape=shape) | unreadable)
        np.copyto(mask, job.background, where=glass)
        if confidence is not None:
            confidence[glass] = 0
    outside = np.zeros_like(unreadable)
    if job.region is not None:
        outside = job.region.read(place) == VOID
        mask[outside] = VOID
    if confidence is not None:
        confidence[mask == VOID] = 0
    lost = unreadable & ~outside
    return {
        "unreadable": int(lost.sum()),
        "places": void_places(lost, top=slab.rows.start),
        "outside_region": int(outside.sum()),
    }
