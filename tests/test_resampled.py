"""Images at another pixel size, and the level that they are made from."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.conftest import array_source, random_image
from tests.images import around, assert_reads, padded, random_regions
from wsiseg.errors import SourceError
from wsiseg.geometry import Geometry
from wsiseg.resample import mix, taps
from wsiseg.sources import Source
from wsiseg.sources.array import ArraySource
from wsiseg.sources.resampled import ResampledSource, at_level, choose_level


@pytest.mark.parametrize(
    ("shape", "to"),
    [
        ((40,), (13,)),
        ((40,), (57,)),
        ((23, 31), (9, 40)),
        ((9, 8, 7), (4, 8, 11)),
        ((5, 4, 6, 3), (3, 4, 2, 5)),
    ],
)
def test_a_constant_image_stays_constant_and_outside_is_white(
    shape: tuple[int, ...], to: tuple[int, ...]
) -> None:
    plain = array_source(np.full((3, *shape), 77, np.uint8))
    source = ResampledSource(
        plain, Geometry(axes=plain.geometry.axes, shape=to, spacing=(1.0,) * len(to), unit="micrometer")
    )
    for region in around(to):
        assert_reads(source, np.full((3, *to), 77, np.uint8), region)
    assert source.levels == (source,)


@given(st.integers(1, 3), st.data())
@settings(max_examples=30, deadline=None)
def test_resampled_in_parts_equals_resampled_whole(ndim: int, data: st.DataObject) -> None:
    limit = {1: 50, 2: 22, 3: 9}[ndim]
    shape, to = (tuple(data.draw(st.integers(1, limit)) for _ in range(ndim)) for _ in range(2))
    image = random_image(shape, channels=2, seed=18)
    good = np.random.default_rng(data.draw(st.integers(0, 99))).random(shape) > 0.05
    plain = array_source(image, valid=good)
    geometry = Geometry(axes=plain.geometry.axes, shape=to, spacing=(1.0,) * ndim, unit="micrometer")
    source = ResampledSource(plain, geometry)
    whole = source.read(geometry.whole)

    mixed = image.astype(np.float32)
    for axis, (n, m) in enumerate(zip(to, shape, strict=True)):
        made = taps(slice(0, n), size=n, from_size=m)
        wanted = np.arange(made.support.start, made.support.stop).clip(0, m - 1)
        mixed = mix(mixed.take(wanted, axis=axis + 1), made, axis=axis + 1, start=made.support.start)
    np.testing.assert_array_equal(whole.values, np.rint(mixed).astype(np.uint8))

    for region in random_regions(data, to, count=4):
        pixels = source.read(region)
        np.testing.assert_array_equal(pixels.values, padded(whole.values, region))
        valid = padded(whole.valid[None].astype(np.uint8), region)[0] != 0
        np.testing.assert_array_equal(pixels.valid, valid)


def test_a_pixel_is_valid_only_where_all_that_it_is_mixed_from_is() -> None:
    good = np.ones((16, 18), bool)
    good[5, 7] = False
    plain = array_source(np.full((3, 16, 18), 50, np.uint8), valid=good)
    source = ResampledSource(plain, plain.geometry.at_spacing((1.0, 1.0)))
    # Halved, pixel i is mixed from those whose centres are nearer than 2 to 2 i + 1: 2 i - 1 to 2 i + 2.
    expected = np.ones((8, 9), bool)
    expected[2:4, 3:5] = False
    np.testing.assert_array_equal(source.read(source.geometry.whole).valid, expected)


def test_the_support_of_a_region_is_all_that_its_pixels_depend_on() -> None:
    image = random_image((30, 44), seed=19)
    plain = array_source(image)
    source = ResampledSource(plain, plain.geometry.at_spacing((1.3, 0.9)))
    region = (slice(3, 7), slice(8, 15))
    before = source.read(region).values
    outside = np.ones((30, 44), bool)
    rows, columns = (slice(max(0, s.start), s.stop) for s in source.support(region))
    outside[rows, columns] = False
    other = image.copy()
    other[:, outside] ^= 0xFF
    changed = ResampledSource(array_source(other), source.geometry)
    np.testing.assert_array_equal(changed.read(region).values, before)


class Pyramid(ArraySource):
    """An array with coarser ones."""

    def __init__(self, spacings: Sequence[tuple[float, float]]) -> None:
        self.sources: list[Source] = []
        for y, x in spacings:
            shape = (round(64 / y), round(48 / x))
            geometry = Geometry(axes="yx", shape=shape, spacing=(y, x), unit="micrometer")
            self.sources.append(ArraySource(np.zeros((3, *shape), np.uint8), geometry))
        finest = self.sources[0].geometry
        super().__init__(np.zeros((3, *finest.shape), np.uint8), finest)

    @property
    def levels(self) -> Sequence[Source]:
        return self.sources


PYRAMID = Pyramid([(0.25, 0.25), (0.5, 0.5), (1.0, 1.0), (4.0, 4.0)])


@pytest.mark.parametrize(
    ("spacing", "level", "resampled"),
    [
        (0.25, 0, False),
        (0.26, 0, False),
        (0.24, 0, False),
        (0.3, 0, True),
        (0.45, 0, True),
        (0.49, 1, False),
        (0.5, 1, False),
        (0.7, 1, True),
        (1.0, 2, False),
        (3.0, 2, True),
        (8.0, 3, True),
    ],
)
def test_the_coarsest_level_that_is_fine_enough_is_chosen(
    spacing: float, level: int, resampled: bool
) -> None:
    choice = choose_level(PYRAMID, spacing=spacing)
    assert choice.level is PYRAMID.sources[level]
    assert choice.resampled is resampled
    if resampled:
        assert choice.geometry == PYRAMID.geometry.at_spacing((spacing, spacing))
        fine = PYRAMID.sources[level].geometry.spacing[0]
        assert choice.remark == f"resampled from {fine:.4g} to {spacing:.4g} micrometer"
        assert at_level(choice, choice.level).geometry == choice.geometry
    else:
        assert choice.geometry == choice.level.geometry
        assert at_level(choice, choice.level) is choice.level


def test_a_level_within_5_percent_is_used_as_it_is_and_that_is_said() -> None:
    choice = choose_level(PYRAMID, spacing=0.26)
    assert choice.remark == "pixels of 0.25 micrometer are used as they are: 3.8 % from the model's 0.26"
    assert choose_level(PYRAMID, spacing=0.25).remark == ""


def test_a_model_of_any_pixel_size_takes_the_finest_level() -> None:
    choice = choose_level(PYRAMID, spacing=None)
    assert choice.level is PYRAMID
    assert (choice.geometry, choice.resampled, choice.remark) == (PYRAMID.geometry, False, "")


def test_a_slide_coarser_than_the_model_is_refused_unless_allowed() -> None:
    with pytest.raises(
        SourceError, match=r"has pixels of 0\.25 micrometer, coarser than the 0\.2 that .*--allow"
    ):
        choose_level(PYRAMID, spacing=0.2)
    choice = choose_level(PYRAMID, spacing=0.2, allow_upsampling=True)
    assert choice.level is PYRAMID or choice.level is PYRAMID.sources[0]
    assert choice.resampled
    assert choice.geometry.shape == (320, 240)


def test_the_coarser_axis_decides_where_pixels_are_not_square() -> None:
    oblong = Pyramid([(0.25, 0.2), (0.5, 0.4), (1.0, 0.8)])
    assert choose_level(oblong, spacing=0.5).level is oblong.sources[1]
    assert choose_level(oblong, spacing=0.5).resampled
    with pytest.raises(SourceError, match=r"has pixels of 0\.25 micrometer"):
        choose_level(oblong, spacing=0.2)
    assert choose_level(oblong, spacing=0.9).level is oblong.sources[1]
