"""Networks that take one size, or see their whole window: fixed windows, cross-fade, diagnoses."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn

import wsiseg
from tests.cases import Interrupted, mask_of, stop_after, write_tiff
from tests.conftest import card_of, random_image
from wsiseg.config import SegmentConfig
from wsiseg.errors import UsageError
from wsiseg.execution import window_plan
from wsiseg.models.card import ModelCard, WindowSpec
from wsiseg.models.facts import network_facts
from wsiseg.models.importing import import_checkpoint, window_spec
from wsiseg.models.registry import NETWORKS, build_network, load_network
from wsiseg.models.zoo import load_card
from wsiseg.predict import NetworkPredictor
from wsiseg.preprocess import apply
from wsiseg.report import Report
from wsiseg.windows import axis_weights, footprint

NETS: dict[str, tuple[str, dict[str, Any]]] = {
    "ynet": ("ynet", {"classes": 8, "diagnoses": 3}),
    "espnetv2": ("espnetv2", {"classes": 4, "scale": 0.5}),
    "segnet": ("segnet", {"classes": 4}),
}
PLAIN: dict[str, Any] = {"tissue_filter": False, "image": "none"}


@pytest.fixture(scope="module")
def cards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a card of each network, weights seeded."""
    folder = tmp_path_factory.mktemp("cards")
    for title, (name, arguments) in NETS.items():
        torch.manual_seed(7)
        network = build_network(name, **arguments)
        torch.save(network.state_dict(), folder / f"{title}.pth")
        import_checkpoint(
            folder / f"{title}.pth", folder / f"{title}.json", network=name, arguments=arguments
        )
    return folder


@pytest.fixture(scope="module")
def slide(tmp_path_factory: pytest.TempPathFactory) -> Path:
    rgb = np.moveaxis(random_image((410, 300), seed=4), 0, -1)
    return write_tiff(tmp_path_factory.mktemp("slide") / "s.tif", rgb)


def scores_of(card_path: Path, window: NDArray[np.uint8]) -> tuple[Tensor, Tensor | None]:
    """Scores (K, *window), and the diagnosis, of one window by the bare network."""
    card = load_card(card_path)
    with torch.inference_mode():
        made = load_network(card_path)(apply(torch.from_numpy(window)[None], None, card.preprocessing))
    if isinstance(made, tuple):
        return made[0][0], made[1][0].softmax(0)
    return made[0], None


def blended(card_path: Path, slide: Path, shape: tuple[int, int]) -> NDArray[np.uint8]:
    """The mask of the card's windows, put together the plain way."""
    card, source = load_card(card_path), wsiseg.open_source(slide)
    plan = window_plan(card, SegmentConfig(), shape)
    taper = card.windows.taper
    total = torch.zeros((len(card.classes), *shape))
    for window in plan.windows():
        scores, _ = scores_of(card_path, source.read(window.read).values)
        place = footprint(plan, window, taper=taper)
        part = scores[
            :, *(slice(p.start - r.start, p.stop - r.start) for p, r in zip(place, window.read, strict=True))
        ]
        for axis in range(2):
            ramp = torch.from_numpy(axis_weights(plan, window, axis=axis, taper=taper))
            part = part * (ramp[:, None] if axis == 0 else ramp[None, :])
        total[:, *place] += part
    return np.asarray(total.argmax(0), np.uint8)


@pytest.mark.parametrize("title", NETS)
def test_each_runs_in_windows_of_its_own_size_with_a_cross_fade(
    cards: Path, slide: Path, tmp_path: Path, title: str
) -> None:
    path = cards / f"{title}.json"
    report = wsiseg.segment(slide, tmp_path, path, **PLAIN)
    windows = load_card(path).windows
    assert report.execution["executor"] == "windowed"
    assert report.execution["taper"] == windows.taper > 0
    assert any("cannot be streamed" in remark for remark in report.remarks)
    expected = blended(path, slide, (410, 300))
    mask = mask_of(report)
    assert (mask != expected).sum() <= 1e-4 * mask.size  # sums in another order: float ties
    assert (report.diagnosis is not None) == (title == "ynet")


def test_a_network_of_one_size_is_asked_for_no_other(cards: Path, slide: Path, tmp_path: Path) -> None:
    path = cards / "ynet.json"
    assert load_card(path).windows.size == 384
    with pytest.raises(UsageError, match=r"windows of 384 pixels only; core 128 \+ 2 x halo 64 makes 256"):
        wsiseg.segment(slide, tmp_path, path, core=128, **PLAIN)
    with pytest.raises(UsageError, match="model ynet sees its whole window, so no halo makes it exact"):
        wsiseg.segment(slide, tmp_path, path, exact=True, **PLAIN)
    other = wsiseg.segment(slide, tmp_path, path, core=320, halo=32, taper=0, **PLAIN)
    assert (other.execution["core"], other.execution["taper"]) == ([320, 320], 0)


def test_a_slide_smaller_than_the_window_is_padded_with_background(cards: Path, tmp_path: Path) -> None:
    rgb = np.moveaxis(random_image((90, 130), seed=9), 0, -1)
    path = write_tiff(tmp_path / "small.tif", rgb)
    report = wsiseg.segment(path, tmp_path, cards / "ynet.json", **PLAIN)
    window = np.full((3, 384, 384), 255, np.uint8)
    window[:, 64 : 64 + 90, 64 : 64 + 130] = np.moveaxis(rgb, -1, 0)
    scores, said = scores_of(cards / "ynet.json", window)
    np.testing.assert_array_equal(mask_of(report), scores[:, 64:154, 64:194].argmax(0).numpy())
    assert report.diagnosis is not None
    assert said is not None
    np.testing.assert_allclose(report.diagnosis.mean, said.numpy(), atol=1e-5)


# -- diagnoses -----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def diagnosed(cards: Path, slide: Path, tmp_path_factory: pytest.TempPathFactory) -> Report:
    return wsiseg.segment(slide, tmp_path_factory.mktemp("out"), cards / "ynet.json", **PLAIN)


def test_the_diagnosis_of_every_window_is_in_table_map_and_report(
    cards: Path, slide: Path, diagnosed: Report
) -> None:
    card, source = load_card(cards / "ynet.json"), wsiseg.open_source(slide)
    plan = window_plan(card, SegmentConfig(), (410, 300))
    assert plan.grid == (2, 2)
    expected = np.stack(
        [np.asarray(scores_of(cards / "ynet.json", source.read(w.read).values)[1]) for w in plan.windows()]
    )
    found = diagnosed.diagnosis
    assert found is not None
    assert (found.names, found.windows) == (("diagnosis 0", "diagnosis 1", "diagnosis 2"), 4)
    np.testing.assert_allclose(found.mean, expected.mean(0), atol=1e-5)
    np.testing.assert_allclose(found.highest, expected.max(0), atol=1e-5)
    with found.table.open() as stream:
        rows = list(csv.reader(stream))
    assert rows[0] == ["y_start_px", "y_stop_px", "x_start_px", "x_stop_px", *found.names]
    assert [[int(n) for n in row[:4]] for row in rows[1:]] == [
        [0, 256, 0, 256], [0, 256, 256, 300], [256, 410, 0, 256], [256, 410, 256, 300],
    ]  # fmt: skip
    np.testing.assert_allclose([[float(n) for n in row[4:]] for row in rows[1:]], expected, atol=1e-5)
    import zarr

    kept = np.asarray(zarr.open_array(diagnosed.store / "diagnosis", mode="r")[:])
    np.testing.assert_allclose(kept, expected.T.reshape(3, 2, 2), atol=1e-5)
    with Image.open(found.picture) as picture:
        assert picture.size[0] > 300
    assert json.loads(diagnosed.report.read_text())["diagnosis"]["windows"] == 4


def test_an_interrupted_case_ends_with_the_same_diagnoses(
    cards: Path, slide: Path, diagnosed: Report, tmp_path: Path
) -> None:
    options = PLAIN | {"slab": 128, "chunk": 128}
    with pytest.raises(Interrupted):
        wsiseg.segment(slide, tmp_path, cards / "ynet.json", progress=stop_after(2), **options)
    report = wsiseg.segment(slide, tmp_path, cards / "ynet.json", **options)
    assert report.diagnosis is not None
    assert diagnosed.diagnosis is not None
    assert report.diagnosis.table.read_bytes() == diagnosed.diagnosis.table.read_bytes()
    np.testing.assert_array_equal(mask_of(report), mask_of(diagnosed))


def test_a_changed_map_is_found(cards: Path, slide: Path, tmp_path: Path) -> None:
    import zarr

    report = wsiseg.segment(slide, tmp_path, cards / "ynet.json", **PLAIN)
    store = wsiseg.open_store(report.store)
    assert store.verify() == []
    values = zarr.open_array(report.store / "diagnosis", mode="r+")
    values[0, 0, 0] = 0.5
    assert store.verify() == ["pyramid level diagnosis is not what was written"]


# -- what windows and figures follow from ---------------------------------------------------------------


def test_scores_of_a_part_of_the_window_are_put_in_their_place() -> None:
    windows = WindowSpec(
        output_stride=1, receptive_field=None, exact_halo=None, size=12, output_region=(3, 7),
        core=4, halo=4, taper=0,
    )  # fmt: skip
    card = card_of(3).model_copy(update={"windows": windows})

    class Middle(nn.Module):
        def forward(self, image: Tensor) -> Tensor:
            return image[:, :, 3:10, 3:10]

    image = random_image((12, 12), seed=1)
    made = NetworkPredictor(card, Middle(), device=torch.device("cpu"))(image[None]).scores
    expected = np.zeros((3, 12, 12), np.float32)
    expected[:, 3:10, 3:10] = image[:, 3:10, 3:10]
    np.testing.assert_array_equal(made[0].numpy(), expected)
    plan = window_plan(card, SegmentConfig(), (20, 20))
    assert (plan.core, plan.halo) == ((4, 4), (4, 4))
    with pytest.raises(UsageError, match="scores pixels 3 to 9 of a window; core 8, halo 2 and taper 0"):
        window_plan(card, SegmentConfig(core=8, halo=2), (20, 20))
    with pytest.raises(UsageError, match="taper 2 need others"):
        window_plan(card, SegmentConfig(taper=2), (20, 20))


def test_a_card_whose_windows_cannot_be_is_refused() -> None:
    windows: dict[str, Any] = {"output_stride": 8, "receptive_field": None, "exact_halo": None}
    with pytest.raises(ValueError, match="no halo is exact needs a halo"):
        WindowSpec(**windows)
    with pytest.raises(ValueError, match=r"windows of 384 pixels only; core 256 \+ 2 x halo 32 makes 320"):
        WindowSpec(**windows, size=384, core=256, halo=32)
    for region in ((-5, 900), (0, 0), (63, 400)):
        with pytest.raises(ValueError, match="lies outside a window of 384 pixels"):
            WindowSpec(**windows, size=384, core=256, halo=64, output_region=region)
    for changes in ({"background": -1}, {"axes": "foo"}):
        with pytest.raises(ValueError, match=r"background|axes"):
            ModelCard.model_validate(json.loads(card_of(4).model_dump_json()) | changes)


@pytest.mark.parametrize("name", sorted(set(NETWORKS) - {"espnet", "espnet3d", "ensemble"}))
def test_a_fresh_card_has_windows_that_its_network_takes(name: str) -> None:
    spec = window_spec(build_network(name, classes=8).eval())
    side = spec.core + 2 * (spec.halo or 0)
    assert spec.size in (None, side)
    assert 0 < spec.taper <= (spec.halo or 0)
    card: ModelCard = card_of(8).model_copy(update={"windows": spec})
    window_plan(card, SegmentConfig(), (1000, 777))  # raises where scores would be missing
    if name == "mrseg":
        assert spec.output_region == (63, 256)


def test_what_a_network_costs_is_counted_as_by_hand() -> None:
    network = nn.Sequential(nn.Conv2d(3, 10, 3, padding=1, bias=False), nn.Conv2d(10, 4, 1)).eval()
    facts = network_facts(network, (100, 50), channels=3)
    assert facts.parameters == 3 * 10 * 9 + 10 * 4 + 4
    assert facts.gmacs_per_megapixel == pytest.approx((3 * 10 * 9 + 10 * 4) / 1000)
    # At most the image with the first layer, or the first with the second, is alive.
    assert facts.activation_mb_per_megapixel == pytest.approx(4 * (3 + 10 + 4))
