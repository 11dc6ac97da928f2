"""Cached reads equal direct ones, and every stored block is read once."""

from __future__ import annotations

import threading
from collections import Counter
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from tests.conftest import SLIDE, array_source, random_image
from tests.images import Rgb, assert_reads, padded, random_regions, read_many
from wsiseg.geometry import Region
from wsiseg.sources import open_source
from wsiseg.sources.array import ArraySource
from wsiseg.sources.base import Pixels
from wsiseg.sources.cached import CachedSource


class Counting(ArraySource):
    """An array source that counts its reads and may refuse some."""

    def __init__(self, image: Rgb, *, block: tuple[int, ...], valid: NDArray[np.bool_] | None = None) -> None:
        plain = array_source(image, valid=valid)
        super().__init__(image, plain.geometry, valid=valid)
        self.block = block
        self.reads: Counter[tuple[tuple[int, int], ...]] = Counter()
        self._lock = threading.Lock()

    def read(self, region: Region) -> Pixels:
        with self._lock:
            self.reads[tuple((s.start, s.stop) for s in region)] += 1
        return super().read(region)


@given(st.integers(1, 4), st.data())
@settings(max_examples=30, deadline=None)
def test_cached_reads_equal_direct_ones_and_every_block_is_read_once(ndim: int, data: st.DataObject) -> None:
    limit = {1: 60, 2: 25, 3: 10, 4: 6}[ndim]
    shape = tuple(data.draw(st.integers(1, limit)) for _ in range(ndim))
    block = tuple(data.draw(st.integers(max(1, n // 4), n + 2)) for n in shape)
    image = random_image(shape, channels=2, seed=15)
    good = np.random.default_rng(data.draw(st.integers(0, 99))).random(shape) > 0.1
    source = Counting(image, block=block, valid=good)
    direct = array_source(image, valid=good)
    with CachedSource(source, readers=data.draw(st.integers(1, 3))) as cached:
        for region in random_regions(data, shape, count=4):
            if data.draw(st.booleans()):
                cached.prefetch(region)
            read, expected = cached.read(region), direct.read(region)
            np.testing.assert_array_equal(read.values, expected.values)
            np.testing.assert_array_equal(read.valid, expected.valid)
        whole = cached.read(cached.geometry.whole)
        np.testing.assert_array_equal(whole.values, image)
        assert cached.pixels_read == np.prod(shape)
    blocks = np.prod([-(-n // b) for n, b in zip(shape, block, strict=True)])
    assert len(source.reads) == blocks
    assert set(source.reads.values()) == {1}
    assert cached.levels == (cached,)


def test_blocks_above_the_row_are_dropped_and_read_again_only_when_asked_for() -> None:
    image = random_image((40, 30), seed=16)
    source = Counting(image, block=(10, 16))
    with CachedSource(source) as cached:
        cached.read((slice(0, 40), slice(0, 30)))
        cached.forget(before=19)  # the second row of blocks ends at 20
        cached.read((slice(10, 40), slice(0, 30)))
        assert set(source.reads.values()) == {1}
        assert_reads(cached, image, (slice(5, 12), slice(0, 16)))
        assert source.reads.pop(((0, 10), (0, 16))) == 2
        assert set(source.reads.values()) == {1}
        cached.forget(before=20)
        cached.read((slice(15, 25), slice(0, 30)))
        assert source.reads[((10, 20), (0, 16))] == 2
        assert source.reads[((20, 30), (0, 16))] == 1
        assert cached.pixels_read == 40 * 30 + 10 * 16 + 10 * 30


def test_several_threads_that_ask_share_one_cache() -> None:
    image = random_image((64, 48), seed=17)
    source = Counting(image, block=(16, 16))
    with CachedSource(source, readers=3) as cached:
        cached.prefetch(cached.geometry.whole)
        regions = [(slice(y, y + 20), slice(x, x + 17)) for y in range(-5, 60, 9) for x in range(-5, 40, 7)]
        for region, pixels in zip(regions, read_many(cached, regions, threads=4), strict=True):
            np.testing.assert_array_equal(pixels.values, padded(image, region))
    assert set(source.reads.values()) == {1}


def test_a_cached_slide_equals_the_slide(slide_rgb: Rgb) -> None:
    with CachedSource(open_source(SLIDE), readers=2) as cached:
        for region in ((slice(700, 800), slice(700, 1300)), (slice(-10, 20), slice(2200, 2240))):
            assert_reads(cached, slide_rgb, region)


def test_a_cache_read_by_many_threads_reads_each_block_once() -> None:
    """A resampled image is read by the threads of the cache above it, which share the cache below."""
    image = random_image((640, 512), seed=4)
    below = CachedSource(array_source(image), readers=2)
    with below, ThreadPoolExecutor(8) as pool:
        regions = [(slice(y, y + 96), slice(x, x + 96)) for y in range(0, 640, 32) for x in range(0, 512, 32)]
        pieces = list(pool.map(below.read, regions))
        below.forget(before=10_000)
    for region, piece in zip(regions, pieces, strict=True):
        inside = image[(slice(None), *region)]
        np.testing.assert_array_equal(piece.values[:, : inside.shape[1], : inside.shape[2]], inside)
    assert below.pixels_read == 640 * 512
