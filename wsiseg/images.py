"""The images of a run, each stored tile of which is decoded once."""

from __future__ import annotations

from contextlib import ExitStack

import numpy as np
from numpy.typing import NDArray

from wsiseg.prepare import Job
from wsiseg.sources.cached import CachedSource
from wsiseg.sources.resampled import ResampledSource
from wsiseg.windows import Slab


class CachedImages:
    """The cached images of a run: what the executor reads, and what is stored."""

    def __init__(self, job: Job, stack: ExitStack) -> None:
        readers, choice = job.config.readers, job.choice
        self._level = stack.enter_context(CachedSource(choice.level, readers=readers))
        self._resampled = ResampledSource(self._level, choice.geometry) if choice.resampled else None
        self.model = self._level
        if self._resampled is not None:
            self.model = stack.enter_context(CachedSource(self._resampled, readers=readers))
        self._image: CachedSource | None = None
        if job.config.image == "model":
            self._image = self.model
        elif job.config.image == "full":
            # Where both are one level, each stored tile is decoded once for the two of them.
            same = choice.level.geometry == job.source.geometry
            self._image = (
                self._level if same else stack.enter_context(CachedSource(job.source, readers=readers))
            )
        self._image_row = 0

    def image_rows(self, piece: Slab) -> NDArray[np.uint8]:
        """Rows of the stored image, (3, rows, ...)."""
        assert self._image is not None
        rest = (slice(0, n) for n in self._image.geometry.shape[1:])
        return self._image.read((piece.rows, *rest)).values

    def _limits(self, model_row: int) -> dict[int, tuple[CachedSource, int]]:
        """The caches that the model reads from, each with the first row that is still needed."""
        limits = {id(self.model): (self.model, model_row)}
        if self._resampled is not None:
            row = max(0, min(model_row, self._resampled.geometry.shape[0] - 1))
            below = (slice(row, row + 1), *self._resampled.geometry.whole[1:])
            limits[id(self._level)] = (self._level, self._resampled.support(below)[0].start)
        return limits

    def drop(self, model_row: int) -> None:
        """Drop what lies above `model_row`, whatever needs it later: it is read again."""
        for cached, limit in self._limits(model_row).values():
            cached.forget(before=limit)

    def forget(self, model_row: int, *, image_row: int | None) -> None:
        """Drop what neither the executor below `model_row` nor the stored image below `image_row` needs."""
        self._image_row = max(self._image_row, image_row or 0)
        limits = self._limits(model_row)
        if self._image is not None:
            _, other = limits.get(id(self._image), (self._image, self._image_row))
            limits[id(self._image)] = (self._image, min(other, self._image_row))
        for cached, limit in limits.values():
            cached.forget(before=limit)
