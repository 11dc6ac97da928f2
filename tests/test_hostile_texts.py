"""Texts made to exhaust a reader are refused in one sentence, in little time and memory."""

from __future__ import annotations

import gc
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.conftest import card_of
from wsiseg import bounded
from wsiseg.annotations.polygons import PolygonLabels, polygon_region
from wsiseg.annotations.reading import read_marks
from wsiseg.batch.outcome import read_outcome
from wsiseg.claims import last_claim
from wsiseg.classes import BREAST8
from wsiseg.config import make_config, read_mapping
from wsiseg.errors import AnnotationError, IncompleteStore, ManifestError, UsageError, WsisegError
from wsiseg.ledger import Ledger
from wsiseg.manifest import read_manifest
from wsiseg.models.card import read_card, write_card
from wsiseg.names import case_name
from wsiseg.plan import StorePlan, plan_of
from wsiseg.training.run import read_run

DEEP = b"[" * 1_000_000
HEADER = "case,path,patient,licence\n"


def plan_in(file: Path) -> Any:
    """The plan of the store that a file is put into."""
    (file.parent / "s" / "ledger").mkdir(parents=True)
    file.rename(file.parent / "s" / "ledger" / "plan.json")
    return plan_of(file.parent / "s")


READERS: dict[str, Callable[[Path], Any]] = {
    "marks.geojson": read_marks,
    "card.json": read_card,
    "plan.json": plan_in,
    "run.yaml": read_run,
    "run.toml": read_run,
    "cases.csv": read_manifest,
}


def refusal(read: Callable[[Path], Any], path: Path, *, seconds: float = 20.0) -> str:
    """The one line in which a reader refuses a file."""
    start = time.process_time()
    with pytest.raises(WsisegError) as caught:
        read(path)
    assert time.process_time() - start < seconds
    said = str(caught.value)
    assert "\n" not in said
    assert len(said) < 1000
    assert path.name in said
    return said


@pytest.mark.parametrize("name", READERS)
@pytest.mark.parametrize(
    "content",
    [DEEP, b'{"a":' * 100_000, b"\0" * 5000, b"9" * 1_000_000, b"[9" + b"9" * 9000 + b"]", b"a: &a [*a]"],
    ids=["lists", "mappings", "nul", "digits", "number", "alias"],
)  # fmt: skip
def test_what_is_nested_or_long_beyond_reason_is_refused(tmp_path: Path, name: str, content: bytes) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    refusal(READERS[name], path)


@pytest.mark.parametrize("name", READERS)
def test_a_file_larger_than_any_of_its_kind_is_refused_before_it_is_read(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    with path.open("wb") as stream:
        stream.truncate(20 << 30)  # all holes: it takes no room
    assert "which no such file needs" in refusal(READERS[name], path) or name == "plan.json"


def test_yaml_of_which_a_few_lines_stand_for_billions_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "settings.yaml"
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]" for n in range(1, 12)]
    path.write_text("\n".join(lines), encoding="utf-8")
    assert "aliases are not followed; write the value out" in refusal(read_mapping, path)


@pytest.mark.parametrize(
    "value",
    ["2001-99-99", "!!int x", "!!bool x", "!!timestamp x", "{[a]: 1}", "!!python/name:os.system x"],
)  # fmt: skip
def test_yaml_whose_tags_and_values_do_not_belong_together_is_refused(tmp_path: Path, value: str) -> None:
    path = tmp_path / "settings.yaml"
    path.write_text(f"device: {value}\n", encoding="utf-8")
    assert "settings.yaml is not valid TOML or YAML" in refusal(read_mapping, path)


def test_a_value_of_a_million_letters_is_shown_in_short(tmp_path: Path) -> None:
    path = tmp_path / "settings.toml"
    path.write_text(f'executor = "{"x" * 200_000}"', encoding="utf-8")
    with pytest.raises(UsageError, match=r"setting 'executor' = 'x{70,80}\.\.\.: ") as caught:
        make_config({}, file=path)
    assert len(str(caught.value)) < 300


@pytest.mark.parametrize("number", ["NaN", "Infinity", "-Infinity"])
def test_coordinates_that_are_no_numbers_are_refused(tmp_path: Path, number: str) -> None:
    path = tmp_path / "marks.geojson"
    path.write_text(marks(f"[[[0, 0], [9, {number}], [9, 9], [0, 0]]]"), encoding="utf-8")
    assert f"is not valid GeoJSON: {number} is no number" in refusal(read_marks, path)


@pytest.mark.parametrize("number", ["1e999", "-1e300", "3e9"])
def test_corners_that_are_on_no_slide_are_refused(tmp_path: Path, number: str) -> None:
    path = tmp_path / "marks.geojson"
    path.write_text(marks(f"[[[0, 0], [9, {number}], [9, 9], [0, 0]]]"), encoding="utf-8")
    assert "feature 1 has a corner at (9, " in refusal(read_marks, path)


@pytest.mark.parametrize(
    "coordinates",
    ["[[[0, 0], [1, 1]]]", "[[[]]]", "[[0]]", "[[[0], [1], [2], [0]]]", '[[["a", "b"]]]', '"a"', "[[null]]"],
)  # fmt: skip
def test_rings_that_are_none_are_refused(tmp_path: Path, coordinates: str) -> None:
    path = tmp_path / "marks.geojson"
    path.write_text(marks(coordinates), encoding="utf-8")
    refusal(read_marks, path)


def test_collections_in_collections_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "marks.geojson"
    nested = '{"type": "GeometryCollection", "geometries": [' * 400 + "]}" * 400
    path.write_text(f'[{{"geometry": {nested}}}]', encoding="utf-8")
    refusal(read_marks, path)


def test_more_values_than_memory_has_room_for_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bounded, "MOST_VALUES", 100)
    path = tmp_path / "marks.geojson"
    path.write_bytes(b"[" + b"[]," * 60 + b"[]]")
    assert "it holds about 122 values; at most 100 are read" in refusal(read_marks, path)


def marks(coordinates: str) -> str:
    return f'{{"features": [{{"geometry": {{"type": "Polygon", "coordinates": {coordinates}}}}}]}}'


def zigzag(corners: int, *, height: float) -> str:
    """An outline that crosses itself about once for every pair of its corners."""
    rng = np.random.default_rng(3)
    ring = rng.uniform(0, height, (corners, 2)).round(2).tolist()
    return marks(json.dumps([[*ring, ring[0]]]))


def test_an_outline_that_crosses_itself_millions_of_times_is_read_even_odd(
    tmp_path: Path,
) -> None:
    path = tmp_path / "marks.geojson"
    path.write_text(zigzag(20_000, height=500), encoding="utf-8")
    start = time.process_time()
    labels = polygon_region(path, grid=(500, 500))
    inside = labels.read((slice(0, 200), slice(0, 500))) == 1
    assert labels.touches((slice(100, 130), slice(100, 130)))
    assert time.process_time() - start < 20
    # Of a pixel and its neighbour: as many edges lie between them as the way round both says.
    assert 0.4 < inside[50:150].mean() < 0.6


def test_what_is_rasterised_in_parts_is_what_is_rasterised_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "marks.geojson"
    path.write_text(zigzag(200, height=60), encoding="utf-8")
    whole = (slice(0, 60), slice(0, 60))
    expected = polygon_region(path, grid=(60, 60)).read(whole)
    for most in (1, 7, 500):
        monkeypatch.setattr("wsiseg.annotations.polygons.CROSSINGS_AT_ONCE", most)
        np.testing.assert_array_equal(polygon_region(path, grid=(60, 60)).read(whole), expected)


def test_outlines_that_run_up_and_down_for_ever_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "marks.geojson"
    ring = [[n, 100_000 * (n % 2)] for n in range(12_001)] + [[12_000, -1], [0, 0]]
    path.write_text(marks(json.dumps([ring])), encoding="utf-8")
    with pytest.raises(
        AnnotationError, match=r"through 1\.2e\+09 rows of pixels in all; 1e\+09 are followed"
    ):
        polygon_region(path, grid=(100_000, 100_000))
    # On a slide that is not so high there are fewer of them.
    assert isinstance(polygon_region(path, grid=(1000, 1000)), PolygonLabels)


@pytest.mark.slow
def test_a_hundred_thousand_polygons_are_read(tmp_path: Path) -> None:
    path = tmp_path / "marks.geojson"
    one = {"geometry": {"type": "Polygon"}, "properties": {}}
    features = []
    for n in range(100_000):
        y, x = (n // 1000) * 90, (n % 1000) * 90
        ring = [[x + 20 * np.cos(a), y + 20 * np.sin(a)] for a in np.linspace(0, 6.28, 8)]
        features.append({**one, "geometry": {"type": "Polygon", "coordinates": [[*ring, ring[0]]]}})
    path.write_text(json.dumps({"features": features}), encoding="utf-8")
    del features
    gc.collect()
    labels = polygon_region(path, grid=(9000, 90_000))
    found = labels.read((slice(4000, 4500), slice(40_000, 40_500))) == 1
    assert found.mean() == pytest.approx(0.137, abs=0.03)


@pytest.mark.parametrize("name", [".", ".."])
def test_a_case_that_would_be_a_folder_is_refused(tmp_path: Path, name: str) -> None:
    path = tmp_path / "cases.csv"
    path.write_text(f"{HEADER}{name},a.png,p,CC0\n", encoding="utf-8")
    with pytest.raises(ManifestError, match="it must be a name, and this is a folder"):
        read_manifest(path)


@pytest.mark.parametrize(("file", "case"), [("...svs", "...svs"), ("..nii.gz", "..nii.gz"), ("a.svs", "a")])
def test_no_input_has_the_case_name_of_a_folder(file: str, case: str) -> None:
    assert case_name(Path(file)) == case


@pytest.mark.parametrize("content", ["a\0b,a.png,p,CC0", f"{'a' * 200_000},a.png,p,CC0"])
def test_names_that_no_file_can_have_are_refused(tmp_path: Path, content: str) -> None:
    path = tmp_path / "cases.csv"
    path.write_text(HEADER + content, encoding="utf-8")
    refusal(read_manifest, path)


def test_weights_stay_in_the_folder_of_their_card(tmp_path: Path) -> None:
    write_card(card_of(), tmp_path / "card.json")
    good = (tmp_path / "card.json").read_text(encoding="utf-8")
    for weights in ("../none.safetensors", "/none.safetensors", "..", "", "a/b"):
        (tmp_path / "card.json").write_text(good.replace("none.safetensors", weights), encoding="utf-8")
        assert "must be a file name beside the card" in refusal(read_card, tmp_path / "card.json")


def some_plan() -> StorePlan:
    """A plan that says little."""
    return StorePlan(
        case="a",
        axes="yx",
        shape=(40, 30),
        spacing=(0.5, 0.5),
        unit="micrometer",
        image_shape=None,
        image_spacing=None,
        slab_rows=32,
        chunk=16,
        classes=BREAST8,
        inputs={},
        execution={},
    )


@pytest.mark.parametrize(
    "change",
    [
        {"shape": (10**18, 30)}, {"shape": (0, 30)}, {"shape": (40,)}, {"slab_rows": 0}, {"slab_rows": 33},
        {"chunk": 0}, {"spacing": (0.5, float("nan"))}, {"image_shape": (3, 4)}, {"axes": "yy"},
    ],
)  # fmt: skip
def test_a_plan_that_no_store_can_have_is_damaged(tmp_path: Path, change: dict[str, Any]) -> None:
    path = tmp_path / "s" / "ledger" / "plan.json"
    path.parent.mkdir(parents=True)
    path.write_text(json.dumps(some_plan().model_dump(mode="json") | change), encoding="utf-8")
    with pytest.raises(IncompleteStore, match=r"plan\.json is damaged; use --overwrite to start again"):
        plan_of(tmp_path / "s")


@pytest.mark.parametrize(
    "change",
    [{"rows": [0]}, {"rows": ["0", "9"]}, {"counts": {"x": 1}}, {"counts": [1]}, {"sha256": 5},
     {"image": [[1, 2]]}, {"confidence": {}}, {"places": [["a"]]}, {"unreadable": -1}, {"computed": None}],
)  # fmt: skip
def test_an_entry_of_a_slab_that_says_the_wrong_kind_of_thing_counts_as_none(
    tmp_path: Path, change: dict[str, Any]
) -> None:
    ledger = Ledger(tmp_path, plan=some_plan())
    good = {"rows": [0, 32], "sha256": "0", "counts": {"7": 9}}
    ledger.record("slab-00000.json", good)
    assert ledger.slab("slab-00000.json") == {"plan": some_plan().identity, **good}
    ledger.record("slab-00000.json", good | change)
    assert ledger.slab("slab-00000.json") is None


def test_outcomes_ledgers_and_claims_that_are_damaged_count_as_none(tmp_path: Path) -> None:
    for content in (DEEP, b"\xff\0", b"[1, 2]", b'{"case": 1e999}', b"9" * 100_000):
        (tmp_path / "a.report.json").write_bytes(content)
        (tmp_path / "a.failure.json").write_bytes(content)
        assert read_outcome(tmp_path, "a") is None
        (tmp_path / "slab-00000.json").write_bytes(content)
        ledger = Ledger(tmp_path, plan=some_plan())
        assert ledger.slab("slab-00000.json") is None
        folder = tmp_path / ".claims" / "a"
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "000001.json").write_bytes(content)
        (folder / "9x.json").write_bytes(content)
        (folder / "x.json").write_bytes(content)
        seen = last_claim(tmp_path, "a")
        assert seen is not None
        assert (seen.epoch, seen.is_gone) == (1, False)
        assert set(seen.holder) <= {"case"}


def test_a_file_of_the_ledger_that_is_larger_than_any_is_damaged(tmp_path: Path) -> None:
    with (tmp_path / "tissue.npz").open("wb") as stream:
        stream.truncate(1 << 30)
    with pytest.raises(IncompleteStore, match=r"tissue\.npz is damaged: it has more than 67\.1 MB"):
        Ledger(tmp_path, plan=None).read("tissue.npz")  # type: ignore[arg-type]
