"""ESPNet equals the original: golden logits, parameter counts, and what its graph says."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import nn

from tests.golden import assert_logits, filled_state, reference_module
from wsiseg.errors import ModelError
from wsiseg.graph.network import NetworkGraph
from wsiseg.models.espnet import build_espnet
from wsiseg.models.importing import import_checkpoint, window_spec
from wsiseg.models.layers import ESP
from wsiseg.models.originals import recognise
from wsiseg.models.originals.espnet import CITYSCAPES
from wsiseg.models.registry import build_network, load_network
from wsiseg.models.weights import fill
from wsiseg.preprocess import apply

PUBLISHED = (
    "espnetA_q3_c20_synth",
    "espnetA_q8_c20_synth",
    "espnetA_q3_c20_synth_255x263",
    "espnetc_q3_c20_synth",
)
FILLED = ("det_espnetA_q3_c8", "det_espnetB_q3_c8", "det_espnetc_q3_c8")


def original_size(name: str) -> tuple[int, int]:
    return (255, 263) if name.endswith("255x263") else (256, 512)


def assert_equals_fixture(fixtures: Path, name: str, network: nn.Module) -> None:
    height, width = original_size(name)
    bgr = reference_module(fixtures).synth_image(2018, 256, 512)[:height, :width]
    # The fixture's image is in BGR; files are read as RGB.
    pixels = torch.from_numpy(bgr[..., ::-1].copy()).permute(2, 0, 1)[None]
    with torch.inference_mode():
        logits = network.eval()(apply(pixels, None, CITYSCAPES))[0].numpy()
    assert_logits(fixtures, name, logits)


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_weights_imported_give_the_golden_logits(shared: Path, tmp_path: Path, name: str) -> None:
    fixtures = shared / "fixtures"
    meta = json.loads((fixtures / f"{name}.json").read_text())
    card = import_checkpoint(fixtures / meta["weights"], tmp_path / "model.json")
    assert card.preprocessing.channel_order == "BGR"
    assert_equals_fixture(fixtures, name, load_network(tmp_path / "model.json"))


@pytest.mark.parametrize("name", FILLED)
def test_filled_weights_give_the_golden_logits_in_all_variants(shared: Path, name: str) -> None:
    fixtures = shared / "fixtures"
    recognised = recognise(filled_state(fixtures, name), name=name)
    assert recognised.arguments["variant"] == name[10].upper()
    network = build_network(recognised.network, **recognised.arguments)
    fill(network, recognised.state, name=name)
    assert_equals_fixture(fixtures, name, network)


@pytest.mark.parametrize(
    ("variant", "q", "classes", "count"),
    [
        ("C", 3, 20, 187_529), ("C", 5, 20, 252_297), ("C", 8, 20, 349_449),
        ("A", 3, 20, 202_649), ("A", 5, 20, 267_417), ("A", 8, 20, 364_569), ("B", 8, 12, 354_517),
    ],
)  # fmt: skip
def test_parameters_are_as_many_as_published(variant: str, q: int, classes: int, count: int) -> None:
    network = build_network("espnet", classes=classes, q=q, variant=variant)
    assert sum(p.numel() for p in network.parameters()) == count


@pytest.mark.parametrize("ndim", [1, 2, 3])
@pytest.mark.parametrize("variant", ["A", "B", "C"])
def test_one_definition_serves_any_number_of_axes(ndim: int, variant: str) -> None:
    torch.manual_seed(0)
    network = build_network("espnet", classes=6, p=1, q=1, variant=variant, ndim=ndim).eval()
    shape = (32, 16, 24)[:ndim]
    with torch.inference_mode():
        out = network(torch.rand(2, 3, *shape))
    scale = 8 if variant == "C" else 1
    assert tuple(out.shape) == (2, 6, *(n // scale for n in shape))
    if ndim > 1:  # constant along the last axis in, the network one axis fewer out (away from the ends)
        flat = torch.rand(1, 3, *shape[:-1], 1).expand(1, 3, *shape[:-1], 1024)
        with torch.inference_mode():
            wide = network(flat)
        middle = wide.shape[-1] // 2
        torch.testing.assert_close(wide[..., middle], wide[..., middle + 8 // scale], rtol=1e-4, atol=1e-4)


def test_units_that_cannot_be_built_are_refused() -> None:
    with pytest.raises(ModelError, match="at least 1, got p=0"):
        build_network("espnet", classes=4, p=0)
    with pytest.raises(ModelError, match="variant 'D' is unknown"):
        build_network("espnet", classes=4, variant="D")
    with pytest.raises(ModelError, match="unexpected keyword"):
        build_network("espnet", classes=4, width=2)
    with pytest.raises(ModelError, match="unknown network 'resnet'"):
        build_network("resnet")
    with pytest.raises(ValueError, match="too few for 5 branches"):
        ESP(4, 4)
    with pytest.raises(ValueError, match="keeps its shape"):
        ESP(8, 16)


# -- what the graph says -------------------------------------------------------------------------------


def make_positive(network: nn.Module) -> nn.Module:
    """Weights with which no gradient can cancel or vanish: every dependency shows."""
    for name, parameter in network.named_parameters():
        value = 0.25 if name.endswith("act.weight") else 1.0 / max(1, parameter[0].numel())
        nn.init.constant_(parameter, value)
    return network.double().eval()


def gradient_extents(network: nn.Module, *, rows: list[int], height: int, ndim: int) -> list[tuple[int, int]]:
    """First and last row of the input that each of some output rows depends on."""
    image = torch.zeros(1, 3, height, *(8,) * (ndim - 1), dtype=torch.double, requires_grad=True)
    scores = network(image)
    extents = []
    for row in rows:
        (gradient,) = torch.autograd.grad(scores[0, :, row].sum(), image, retain_graph=True)
        touched = torch.nonzero(gradient.abs().reshape(3, height, -1).sum(dim=(0, 2)))[:, 0]
        extents.append((int(touched.min()), int(touched.max())))
    return extents


def assert_reach_is_that_of_the_gradient(network: nn.Module, *, ndim: int, height: int) -> int:
    """Compares all 8 phases; returns the largest width."""
    graph = NetworkGraph(network)
    middle = height // 2 // 8 * 8
    rows = [middle + phase for phase in range(8)]
    reaches = [graph.phase_reach(phase, axis=0) for phase in range(8)]
    derived = [(row - r.before, row + r.after) for row, r in zip(rows, reaches, strict=True)]
    assert derived == gradient_extents(network, rows=rows, height=height, ndim=ndim)
    return max(r.width for r in reaches)


@pytest.mark.parametrize(
    ("q", "ndim", "width"),
    [
        (3, 1, 1559),
        *(pytest.param(*p, marks=pytest.mark.slow) for p in [(3, 2, 1559), (5, 1, 2071), (8, 1, 2839)]),
    ],
)
def test_the_receptive_field_is_that_of_the_gradient_at_every_phase(q: int, ndim: int, width: int) -> None:
    network = make_positive(build_espnet(classes=5, q=q, ndim=ndim))
    graph = NetworkGraph(network)
    assert (graph.output_stride, graph.output_scale) == (8, 1)
    height = 8 * (width // 8 + 40)
    assert assert_reach_is_that_of_the_gradient(network, ndim=ndim, height=height) == width
    largest = max(graph.reach(axis=0).before, graph.reach(axis=0).after)
    assert graph.exact_halo(axis=0) == -(-largest // 8) * 8


def test_enlarged_scores_have_a_receptive_field_that_is_that_of_the_gradient() -> None:
    encoder = build_espnet(classes=5, q=1, p=1, variant="C")
    spec = window_spec(encoder)
    assert (spec.output_stride, spec.output_scale) == (8, 8)
    whole = nn.Sequential(make_positive(encoder), nn.Upsample(scale_factor=8, mode="bilinear"))
    assert_reach_is_that_of_the_gradient(whole, ndim=2, height=1600)
    reach = NetworkGraph(whole).reach(axis=0)
    assert spec.receptive_field == (reach.before, reach.after)


def test_a_layer_that_sees_the_whole_image_is_named() -> None:
    with pytest.raises(ModelError, match="layer '1' .AdaptiveAvgPool2d. sees more"):
        NetworkGraph(nn.Sequential(nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1)))

    class Mean(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.softmax(x, dim=-1)

    with pytest.raises(ModelError, match="layer 'softmax' .softmax. works along another axis"):
        NetworkGraph(Mean())
    with pytest.raises(ModelError, match="enlarges its input"):
        _ = NetworkGraph(nn.Sequential(nn.ConvTranspose2d(3, 3, 2, stride=2))).output_scale


def test_statistics_of_a_case_replace_those_of_the_card() -> None:
    from tests.conftest import array_source, random_image
    from wsiseg.preprocess import fit

    image: NDArray[np.uint8] = random_image((70, 50))
    spec = CITYSCAPES.model_copy(update={"statistics": "case", "channel_order": "RGB", "factor": 1.0})
    stats = fit(array_source(image), spec)
    assert stats is not None
    np.testing.assert_allclose(stats.mean, image.reshape(3, -1).mean(axis=1), rtol=1e-12)
    np.testing.assert_allclose(stats.std, image.reshape(3, -1).std(axis=1), rtol=1e-9)
    normal = apply(torch.from_numpy(image[None]), stats, spec)
    torch.testing.assert_close(normal.mean(dim=(0, 2, 3)), torch.zeros(3), atol=1e-4, rtol=0)
    torch.testing.assert_close(normal.std(dim=(0, 2, 3), correction=0), torch.ones(3), atol=1e-4, rtol=0)
    flipped = apply(torch.from_numpy(image[None]), stats, spec.model_copy(update={"channel_order": "BGR"}))
    torch.testing.assert_close(flipped, normal.flip(1))
    assert fit(array_source(image), CITYSCAPES) is None
    nothing = fit(array_source(image), spec, wanted=lambda region: False)
    assert nothing is not None
    assert nothing.pixels == 0
    stained = fit(array_source(image), spec.model_copy(update={"foreground": "stained"}))
    assert stained is not None
    tissue = image[:, (image < 220).any(axis=0)]
    assert 0 < tissue.shape[1] == stained.pixels < 70 * 50
    np.testing.assert_allclose(stained.mean, tissue.mean(axis=1), rtol=1e-12)
    np.testing.assert_allclose(stained.std, tissue.std(axis=1), rtol=1e-9)
