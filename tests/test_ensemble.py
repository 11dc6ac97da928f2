"""Ensembles of cards, and means over views of the image."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import wsiseg
from tests.cases import mask_of
from tests.test_cli import CROP
from wsiseg.errors import ModelError, UsageError
from wsiseg.graph.network import NetworkGraph
from wsiseg.models.averaging import Ensemble, OverViews
from wsiseg.models.ensemble import combine
from wsiseg.models.importing import import_checkpoint
from wsiseg.models.registry import build_network, load_network

ARGUMENTS: dict[str, Any] = {"classes": 5, "p": 1, "q": 1}


def member(folder: Path, name: str, *, seed: int, **changes: Any) -> Path:
    torch.manual_seed(seed)
    torch.save(build_network("espnet", **ARGUMENTS).state_dict(), folder / f"{name}.pth")
    path = folder / f"{name}.json"
    import_checkpoint(folder / f"{name}.pth", path, network="espnet", arguments=ARGUMENTS)
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    return path


@pytest.fixture(scope="module")
def cards(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("cards")
    return [member(folder, "a", seed=1), member(folder, "b", seed=2, temperature=2.5)]


def image(side: int = 64) -> Tensor:
    return torch.rand(1, 3, side, side, generator=torch.Generator().manual_seed(0))


def test_an_ensemble_gives_the_mean_of_its_members_probabilities(cards: list[Path], tmp_path: Path) -> None:
    made = combine(cards, tmp_path / "both.json")
    assert (made.scores, made.network.arguments["temperatures"]) == ("probabilities", [1.0, 2.5])
    pixels = image()
    with torch.inference_mode():
        one, two = (load_network(card)(pixels) for card in cards)
        expected = (one.softmax(1) + (two / 2.5).softmax(1)) / 2
        torch.testing.assert_close(load_network(tmp_path / "both.json")(pixels), expected)
    torch.testing.assert_close(expected.sum(1), torch.ones(1, 64, 64))


def test_an_ensemble_streams_like_its_members(cards: list[Path], tmp_path: Path) -> None:
    made = combine(cards, tmp_path / "both.json")
    alone = NetworkGraph(load_network(cards[0]), ndim=2)
    graph = NetworkGraph(load_network(tmp_path / "both.json"), ndim=2)
    assert graph.exact_halo(axis=0) == alone.exact_halo(axis=0) == made.windows.exact_halo
    assert graph.output_stride == alone.output_stride


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"background": 0}, "differ in background: null and 0"),
        ({"spacing": {"value": 0.5}}, "differ in spacing"),
        ({"scores": "probabilities"}, "gives probabilities; name its members"),
    ],
)
def test_models_that_do_not_go_together_are_refused(
    cards: list[Path], tmp_path: Path, changes: dict[str, Any], match: str
) -> None:
    other = member(tmp_path, "c", seed=3, **changes)
    with pytest.raises(ModelError, match=match):
        combine([cards[0], other], tmp_path / "both.json")
    assert not (tmp_path / "both.json").exists()


def test_an_ensemble_of_one_or_in_place_of_a_card_is_refused(cards: list[Path], tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="two models or more"):
        combine(cards[:1], tmp_path / "one.json")
    before = cards[0].read_bytes()
    with pytest.raises(ModelError, match="is there already; use --overwrite"):
        combine(cards, cards[0])
    with pytest.raises(ModelError, match=r"a card is a \.json file"):
        combine(cards, tmp_path / "both.yaml")
    assert cards[0].read_bytes() == before
    for temperatures, match in (([1.0], "2 members and 1 temperatures"), ([1.0, 0.0], "must be positive")):
        with pytest.raises(ValueError, match=match):
            Ensemble([nn.Identity(), nn.Identity()], temperatures=temperatures)


class Corner(nn.Module):
    """Scores that grow towards the end of every axis: no view looks like another."""

    def forward(self, pixels: Tensor) -> Tensor:
        places = [
            torch.arange(n, dtype=torch.float32) * 0.1 * (i + 1) for i, n in enumerate(pixels.shape[2:])
        ]
        total = sum(grid for grid in torch.meshgrid(*places, indexing="ij"))
        return torch.stack([pixels[:, 0] + total, pixels[:, 0] * 0], dim=1)


@pytest.mark.parametrize(
    ("axes", "views", "count"), [(2, "flips", 4), (2, "flips and turns", 8), (3, "flips", 8)]
)
def test_every_view_is_brought_back_before_the_mean(axes: int, views: Any, count: int) -> None:
    pixels = torch.rand(1, 1, *(6,) * axes, generator=torch.Generator().manual_seed(1))
    seen = []

    class Local(nn.Module):
        def forward(self, given: Tensor) -> Tensor:
            seen.append(given.clone())
            return torch.cat([given, 1 - given], dim=1)

    made = OverViews(Local(), views=views, axes=axes, temperature=None)(pixels)
    torch.testing.assert_close(made, torch.cat([pixels, 1 - pixels], dim=1))  # a local network minds no view
    distinct = {np.asarray(view).tobytes() for view in seen}
    assert len(seen) == len(distinct) == count
    averaged = OverViews(Corner(), views=views, axes=axes, temperature=1.0)(pixels * 0)
    for axis in range(2, 2 + axes):
        torch.testing.assert_close(averaged, averaged.flip(axis))


def test_turns_of_volumes_are_refused() -> None:
    with pytest.raises(ValueError, match="turns are for pictures"):
        OverViews(nn.Identity(), views="flips and turns", axes=3, temperature=None)


def test_views_are_averaged_in_windows_only(tmp_path: Path) -> None:
    options: dict[str, Any] = {"image": "none", "threads": 1, "tissue_filter": False}
    plain = wsiseg.segment(CROP, tmp_path / "plain", executor="windowed", mpp=0.5, **options)
    report = wsiseg.segment(CROP, tmp_path / "flips", views="flips", mpp=0.5, **options)
    assert report.execution["executor"] == "windowed"
    assert report.execution["reason"] == "views belongs to windows"
    assert report.settings["views"] == "flips"
    same = (mask_of(plain) == mask_of(report)).mean()
    assert 0.5 < same < 1.0  # another opinion of the same network
    with pytest.raises(UsageError, match="views flips belongs to windows; use --executor windowed"):
        wsiseg.segment(CROP, tmp_path / "s", views="flips", executor="streaming", mpp=0.5, **options)
