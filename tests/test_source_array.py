"""An array reads as itself, in any number of axes."""

from __future__ import annotations

import numpy as np
import pytest

from tests.conftest import array_source, random_image
from tests.images import around, assert_reads
from wsiseg.geometry import Geometry, region_shape
from wsiseg.sources.array import ArraySource


@pytest.mark.parametrize("shape", [(23,), (9, 14), (4, 7, 6), (3, 4, 5, 2)])
def test_an_array_reads_as_itself_and_white_outside_in_1_to_4_dimensions(shape: tuple[int, ...]) -> None:
    image = random_image(shape, channels=2, seed=1)
    source = array_source(image)
    for region in around(shape):
        assert_reads(source, image, region)
    assert source.levels == (source,)
    assert source.num_channels == 2


def test_what_is_not_valid_in_an_array_stays_so_and_outside_is_valid() -> None:
    image = random_image((9, 14), seed=2)
    bad = np.ones((9, 14), bool)
    bad[3, 4] = False
    source = array_source(image, valid=bad)
    region = (slice(-2, 6), slice(2, 20))
    expected = np.ones(region_shape(region), bool)
    expected[5, 2] = False
    assert_reads(source, image, region, valid=expected)
    assert source.read((slice(4, 9), slice(0, 14))).all_valid


def test_an_array_that_does_not_fit_its_geometry_is_refused() -> None:
    geometry = Geometry(axes="yx", shape=(4, 6), spacing=(0.5, 0.25), unit="micrometer")
    for shape in ((4, 6), (3, 6, 4), (3, 4, 6, 1), ()):
        with pytest.raises(ValueError, match=r"does not fit \(C, \*\(4, 6\)\)"):
            ArraySource(np.zeros(shape, np.uint8), geometry)
    with pytest.raises(ValueError, match="pixels must be uint8, got uint16"):
        ArraySource(np.zeros((3, 4, 6), np.uint16), geometry)
