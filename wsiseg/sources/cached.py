"""A source that decodes every stored tile once, whoever asks for which part of it.

Reads are answered from blocks on a fixed grid, aligned with the tiles of the file. Blocks are read
by threads ahead of their use and dropped once the work has passed below them, so that memory
depends on the rows in flight, never on the height of the image.
"""

from __future__ import annotations

import itertools
import math
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager
from types import TracebackType

import numpy as np

from wsiseg.geometry import Region, clip, region_shape, relative_to
from wsiseg.memory import apart
from wsiseg.sources.base import Pixels, Source, channels_last, everywhere

Index = tuple[int, ...]


class CachedSource(AbstractContextManager["CachedSource"]):
    """`source`, each block of which is read once between `prefetch` or `read` and `forget`."""

    def __init__(self, source: Source, *, readers: int = 1) -> None:
        self._source = source
        self._pool = ThreadPoolExecutor(readers, thread_name_prefix="wsiseg-read")
        self._blocks: dict[Index, Future[Pixels]] = {}
        # A resampled image is read by the threads of the cache above this one.
        self._lock = threading.Lock()
        self.geometry = source.geometry
        self.num_channels = source.num_channels
        self.dtype, self.outside = source.dtype, source.outside
        self.block = source.block
        self.format = source.format
        self.pixels_read = 0

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._pool.shutdown(cancel_futures=True)
        self._blocks.clear()

    @property
    def levels(self) -> Sequence[Source]:
        return (self,)

    def _indices(self, region: Region) -> Iterator[Index]:
        inside = clip(region, self.geometry.shape)
        ranges = [
            range(s.start // b, -(-s.stop // b)) if s.stop > s.start else range(0)
            for s, b in zip(inside, self.block, strict=True)
        ]
        return itertools.product(*ranges)

    def _place(self, index: Index) -> Region:
        grid = tuple(slice(i * b, (i + 1) * b) for i, b in zip(index, self.block, strict=True))
        return clip(grid, self.geometry.shape)

    def _request(self, index: Index) -> Future[Pixels]:
        with self._lock:
            if index not in self._blocks:
                place = self._place(index)
                self.pixels_read += math.prod(region_shape(place))
                self._blocks[index] = self._pool.submit(self._load, place)
            return self._blocks[index]

    def _load(self, place: Region) -> Pixels:
        pixels = self._source.read(place)
        return Pixels(apart(pixels.values), pixels.valid)

    def prefetch(self, region: Region) -> None:
        """Begin to read the blocks of a region."""
        for index in self._indices(region):
            self._request(index)

    def forget(self, *, before: int) -> None:
        """Drop the blocks that lie wholly above row `before`; asking for them again reads them again."""
        with self._lock:
            for index in [i for i in self._blocks if (i[0] + 1) * self.block[0] <= before]:
                self._blocks.pop(index).cancel()

    def read(self, region: Region) -> Pixels:
        self.prefetch(region)
        shape = region_shape(region)
        values = channels_last(self.num_channels, shape, fill=self.outside, dtype=self.dtype)
        valid = everywhere(region)
        for index in self._indices(region):
            place = self._place(index)
            pixels = self._request(index).result()
            part = tuple(
                slice(max(a.start, b.start), min(a.stop, b.stop)) for a, b in zip(place, region, strict=True)
            )
            to, of = relative_to(part, region), relative_to(part, place)
            values[(slice(None), *to)] = pixels.values[(slice(None), *of)]
            if not pixels.all_valid:
                if not valid.flags.writeable:
                    valid = np.ones(shape, bool)
                valid[to] = pixels.valid[of]
        return Pixels(values, valid)
