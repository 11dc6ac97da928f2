"""Any bytes, and valid files with something changed, give a value or a WsisegError of one line."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from tests.fuzz import TARGETS, feed

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=6), inner, max_size=4),
    max_leaves=8,
)
QUICK = settings(max_examples=40, deadline=5000, suppress_health_check=[HealthCheck.too_slow])


def spliced(seed: bytes, at: float, length: int, piece: bytes) -> bytes:
    start = int(at * len(seed))
    return seed[:start] + piece + seed[start + length :]


@pytest.mark.parametrize("name", TARGETS)
@given(data=st.binary(max_size=300))
@example(data=b"\xef\xbb\xbf")
@example(data=b"[" * 5000)
@example(data=b"9" * 5000)
@example(data=b"- 2001-99-99")
@example(data=b'{"features": [{"geometry": {"type": "Polygon", "coordinates": [[[0, 1e308]]]}}]}')
@QUICK
def test_any_bytes_are_a_value_or_refused(
    name: str, data: bytes, tmp_path_factory: pytest.TempPathFactory
) -> None:
    feed(name, data, tmp_path_factory.mktemp("f"))


@pytest.mark.parametrize("name", TARGETS)
@given(at=st.floats(0, 1), length=st.integers(0, 20), piece=st.binary(max_size=12))
@QUICK
def test_valid_files_with_other_bytes_in_them_are_a_value_or_refused(
    name: str, at: float, length: int, piece: bytes, tmp_path_factory: pytest.TempPathFactory
) -> None:
    for seed in TARGETS[name][2]:
        feed(name, spliced(seed, at, length, piece), tmp_path_factory.mktemp("f"))


def replaced(tree: Any, path: list[int], value: Any) -> Any:
    """A JSON tree with another value at a place that some numbers lead to."""
    if not path or not isinstance(tree, dict | list) or not tree:
        return value
    keys = list(tree) if isinstance(tree, dict) else list(range(len(tree)))
    key = keys[path[0] % len(keys)]
    copy: Any = tree.copy()
    copy[key] = replaced(tree[key], path[1:], value)
    return copy


@pytest.mark.parametrize("name", [n for n, (file, _, _) in TARGETS.items() if file.endswith("json")])
@given(path=st.lists(st.integers(0, 30), max_size=6), value=JSON)
@QUICK
def test_valid_json_with_another_value_in_it_is_a_value_or_refused(
    name: str, path: list[int], value: Any, tmp_path_factory: pytest.TempPathFactory
) -> None:
    for seed in TARGETS[name][2]:
        changed = replaced(json.loads(seed), path, value)
        feed(name, json.dumps(changed).encode("utf-8"), tmp_path_factory.mktemp("f"))
