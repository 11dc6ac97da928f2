"""Classes are found by name whatever the case, and no class takes the value of void."""

from __future__ import annotations

import pytest
from pydantic import ValidationError

from wsiseg.classes import BREAST8, VOID, MaskClass, anonymous_classes, index_of_name


def test_the_breast_classes_are_numbered_in_order_with_the_published_palette() -> None:
    assert [c.index for c in BREAST8] == list(range(8))
    assert BREAST8[0].color == (255, 255, 255)
    assert BREAST8[4].name == "desmoplastic stroma"
    assert BREAST8[4].color == (150, 150, 255)
    assert len({c.color for c in BREAST8}) == 8


def test_names_match_without_regard_to_case_and_space() -> None:
    assert index_of_name(BREAST8, "  Normal STROMA ") == 3
    assert index_of_name(BREAST8, "stroma") is None
    assert index_of_name((), "stroma") is None


@pytest.mark.parametrize("count", [1, 20, 200])
def test_anonymous_classes_have_different_names_and_colours(count: int) -> None:
    classes = anonymous_classes(count)
    assert [c.index for c in classes] == list(range(count))
    assert len({c.name for c in classes}) == count
    assert len({c.color for c in classes}) == count
    assert all(0 <= part <= 255 for c in classes for part in c.color)


@pytest.mark.parametrize("index", [-1, VOID, 256])
def test_an_index_outside_0_to_254_is_refused(index: int) -> None:
    with pytest.raises(ValidationError, match="index"):
        MaskClass(index=index, name="tumour", color=(1, 2, 3))


def test_a_class_without_a_name_is_refused() -> None:
    with pytest.raises(ValidationError, match="name"):
        MaskClass(index=1, name="", color=(1, 2, 3))
