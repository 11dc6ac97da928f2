"""3D-ESPNet equals the original, its two-dimensional form, and what its graph says."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tests.golden import assert_logits, filled_network, filled_state
from wsiseg.errors import ModelError
from wsiseg.execute.lines import LineStream
from wsiseg.execute.schedule import make_schedule
from wsiseg.graph.network import NetworkGraph
from wsiseg.models.espnet3d import VolumeESP, build_espnet3d, scaled_channels
from wsiseg.models.layers import FUNCTIONAL_CONV, conv_of_doubled, hierarchical_fusion
from wsiseg.models.originals import espnet3d, recognise
from wsiseg.models.registry import build_network
from wsiseg.preprocess import apply


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def with_random_norms(network: nn.Module) -> nn.Module:
    """Norms that have been used, in double precision: no two channels are treated alike."""
    for module in network.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            for values in (module.weight, module.running_var):
                assert values is not None
                nn.init.uniform_(values, 0.75, 1.25)
            for values in (module.bias, module.running_mean):
                assert values is not None
                nn.init.normal_(values, std=0.1)
    return network.double().eval()


# -- the original --------------------------------------------------------------------------------------


@pytest.mark.parametrize("align_corners", [True, False])
@pytest.mark.parametrize(
    ("kind", "working_size"), [("full", None), ("odd", "rounded"), ("res64", [64, 64, 64])]
)
def test_filled_weights_give_the_golden_logits_at_every_working_size(
    shared: Path, kind: str, working_size: Any, align_corners: bool
) -> None:
    fixtures, name = shared / "fixtures", f"det_esp3d_{kind}_alignc{align_corners}"
    network = filled_network(fixtures, name, align_corners=align_corners, working_size=working_size)
    preprocessing = recognise(filled_state(fixtures, name), name=name).preprocessing
    pixels = torch.from_numpy(np.load(fixtures / f"{name}.npz")["input_u8"])
    with torch.inference_mode():
        logits = network(apply(pixels.reshape(1, *pixels.shape[-4:]), None, preprocessing))[0].numpy()
    assert_logits(fixtures, name, logits)


def test_the_checkpoint_of_3d_espnet_is_recognised_and_no_other(shared: Path) -> None:
    found = []
    for keymap in (shared / "fixtures" / "keymaps").glob("*.tsv"):
        lines = keymap.read_text().splitlines()[1:]
        if espnet3d.matches(dict.fromkeys((line.split("\t")[0] for line in lines), torch.empty(0))):
            found.append(keymap.stem)
    assert found == ["esp3d_c4_ch4"]


def test_arguments_are_told_from_the_shapes_of_a_checkpoint() -> None:
    keys = ("level0.conv.weight", "up_l3_l2.up.conv.weight", "classifier.4.conv.weight")
    state = dict(
        zip(keys, (torch.empty(16, 2, 7, 7, 7), torch.empty(0), torch.empty(5, 5, 1, 1, 1)), strict=True)
    )
    recognised = recognise(state, name="some.pth")
    assert (recognised.network, recognised.arguments) == ("espnet3d", {"classes": 5, "channels": 2})
    assert recognised.preprocessing.std == (255.0, 255.0)
    with pytest.raises(ModelError, match="some.pth looks like 3D-ESPNet but lacks 'classifier.4.conv"):
        recognise({key: state[key] for key in keys[:2]}, name="some.pth")
    with pytest.raises(ModelError, match="lacks 'level0.conv.weight' of 5 axes"):
        recognise({**state, keys[0]: torch.empty(16, 2, 7, 7)}, name="some.pth")


def test_parameters_are_as_many_as_published() -> None:
    assert sum(p.numel() for p in build_network("espnet3d").parameters()) == 3_626_584


@pytest.mark.parametrize(
    ("width", "channels"),
    [(1.0, (16, 32, 128, 256)), (0.5, (8, 16, 64, 128)), (0.3, (4, 8, 40, 76)), (2, (32, 64, 256, 512))],
)
def test_width_scales_all_channels_to_whole_branches(width: float, channels: tuple[int, ...]) -> None:
    assert scaled_channels(width) == channels
    network: Any = build_espnet3d(width=width)
    trunk = network.trunk
    units = (trunk.encode_half, trunk.decode_quarter, trunk.encode_eighth)
    found = [trunk.stem.norm.num_features, *(unit[0].norm.num_features for unit in units)]
    assert tuple(found) == channels


def test_branches_are_summed_hierarchically_but_for_the_first() -> None:
    one, *others = [torch.full((1, 1, 1), float(n)) for n in (1, 2, 3, 4)]
    assert hierarchical_fusion([one, *others]).flatten().tolist() == [1.0, 2.0, 5.0, 9.0]
    unit: Any = VolumeESP(6, 7)  # what does not divide evenly goes to the first branch
    assert [branch.weight.shape[0] for branch in unit.branches] == [4, 1, 1, 1]


# -- any number of axes --------------------------------------------------------------------------------


def embedded(flat: nn.Module, deep: nn.Module) -> nn.Module:
    """The three-dimensional network that treats each slice as the two-dimensional one treats it."""
    state = flat.state_dict()
    for key, own in deep.state_dict().items():
        if own.ndim == 5:
            state[key], kernel = torch.zeros_like(own, dtype=torch.double), state[key]
            state[key][:, :, own.shape[2] // 2] = kernel
    deep.double().load_state_dict(state)
    return deep.eval()


@pytest.mark.parametrize(
    "arguments",
    [{"align_corners": True}, {"align_corners": False}, {"refinement": False}],
)
def test_a_volume_of_equal_slices_is_segmented_like_one_of_its_slices(arguments: dict[str, Any]) -> None:
    arguments = {"width": 0.25, "channels": 2, "classes": 3, **arguments}
    flat = with_random_norms(build_espnet3d(**arguments, ndim=2))
    deep = embedded(flat, build_espnet3d(**arguments, ndim=3))
    size = (24, 40) if "refinement" in arguments else (21, 39)
    image = torch.rand(1, 2, *size, dtype=torch.double)
    with torch.inference_mode():
        expected = flat(image)
        found = deep(image[:, :, None].expand(1, 2, 16, *size))
    assert expected.std() > 0.01
    assert tuple(found.shape) == (1, 3, 16, *size)
    torch.testing.assert_close(found, expected[:, :, None].expand_as(found), rtol=1e-9, atol=1e-9)


def test_one_definition_serves_one_axis_too() -> None:
    network = with_random_norms(build_espnet3d(width=0.25, ndim=1))
    with torch.inference_mode():
        assert network(torch.rand(2, 4, 45, dtype=torch.double)).shape == (2, 4, 45)


# -- working sizes -------------------------------------------------------------------------------------


def small(**arguments: Any) -> nn.Module:
    """The same small two-dimensional network, whatever its working size."""
    torch.manual_seed(1)
    return with_random_norms(build_espnet3d(width=0.25, channels=2, classes=3, ndim=2, **arguments))


@pytest.mark.parametrize("align_corners", [True, False])
def test_a_fixed_working_size_is_averaging_before_and_interpolation_after(align_corners: bool) -> None:
    image = torch.rand(1, 2, 30, 50, dtype=torch.double)
    fixed = small(working_size=(24, 64), align_corners=align_corners)  # smaller on one axis, larger on one
    given = small(working_size="given", align_corners=align_corners)
    with torch.inference_mode():
        scores = given(F.adaptive_avg_pool2d(image, (24, 64)))
        expected = F.interpolate(scores, size=(30, 50), mode="bilinear", align_corners=align_corners)
        torch.testing.assert_close(fixed(image), expected, rtol=1e-12, atol=1e-12)


def test_volumes_of_whole_eighths_are_taken_as_they_are_and_others_rounded_up() -> None:
    rounded, given, fixed = (small(working_size=w) for w in ("rounded", "given", (24, 32)))
    with torch.inference_mode():
        image = torch.rand(1, 2, 24, 32, dtype=torch.double)
        assert torch.equal(rounded(image), given(image))
        image = torch.rand(1, 2, 17, 32, dtype=torch.double)
        assert torch.equal(rounded(image), fixed(image))
        image = torch.rand(
            1, 2, 23, 31, dtype=torch.double
        )  # 7 modulo 8: every scale rounds up to whole eighths
        assert given(image).shape == (1, 3, 23, 31)


def test_a_fixed_working_size_holds_in_evaluation_only() -> None:
    image = torch.rand(2, 2, 17, 30, dtype=torch.double)
    fixed, rounded = small(working_size=(48, 48)), small()
    assert not torch.allclose(fixed(image), rounded(image))
    torch.testing.assert_close(fixed.train()(image), rounded.train()(image), rtol=0, atol=0)


# -- without refinement --------------------------------------------------------------------------------


def streamed(network: nn.Module, image: Tensor, *, bands: int) -> Tensor:
    """The scores of a volume that is read a few slices at a time."""
    graph = NetworkGraph(network, ndim=3)
    schedule = make_schedule(graph, tuple(image.shape[2:]), channels=image.shape[1])
    stream = LineStream(schedule, band=bands * graph.output_stride)
    pieces = stream.run(lambda fed: image[:, :, fed[0] : fed[1]], (0, image.shape[2]))
    return torch.cat([made[1].clone() for (made,) in pieces if made is not None], dim=2)


@pytest.mark.parametrize("bands", [1, 3])
def test_without_refinement_a_volume_is_streamed_exactly(bands: int) -> None:
    network = with_random_norms(build_espnet3d(width=0.25, channels=2, classes=3, refinement=False))
    image = torch.rand(1, 2, 56, 16, 8, dtype=torch.double)
    with torch.inference_mode():
        torch.testing.assert_close(
            streamed(network, image, bands=bands), network(image), rtol=1e-10, atol=1e-10
        )


def test_without_refinement_scores_repeat_every_eight_voxels_and_see_so_far() -> None:
    graph = NetworkGraph(build_espnet3d(refinement=False).eval(), ndim=3)
    assert (graph.output_stride, graph.output_scale) == (8, 1)
    reach = graph.reach(axis=0)
    assert (reach.before, reach.after, graph.exact_halo(axis=0)) == (169, 162, 176)
    assert graph.shapes((16, 24, 40), channels=4)[graph.outputs[0]] == (4, 16, 24, 40)
    with pytest.raises(ModelError, match="would join features of"):
        graph.shapes((12, 24, 40), channels=4)


def test_without_refinement_the_reach_is_that_of_the_gradient() -> None:
    network = build_espnet3d(width=0.25, channels=1, classes=2, refinement=False, ndim=1)
    for parameter in network.parameters():  # no gradient can cancel or vanish: every dependency shows
        nn.init.constant_(parameter, 1 / max(1, parameter[0].numel()))
    graph = NetworkGraph(network.double().eval(), ndim=1)
    image = torch.zeros(1, 1, 512, dtype=torch.double, requires_grad=True)
    scores = network(image)
    for phase in range(8):
        (gradient,) = torch.autograd.grad(scores[0, :, 256 + phase].sum(), image, retain_graph=True)
        touched = torch.nonzero(gradient[0, 0])[:, 0]
        reach = graph.phase_reach(phase, axis=0)
        assert (int(touched.min()), int(touched.max())) == (
            256 + phase - reach.before,
            256 + phase + reach.after,
        )


def test_refinement_sees_the_whole_volume_and_is_refused_by_the_graph() -> None:
    with pytest.raises(ModelError, match="ESPNet3D.forward cannot be followed"):
        NetworkGraph(build_espnet3d().eval(), ndim=3)


# -- training ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kernel", [1, 3, 5, 7, 9])
@pytest.mark.parametrize("sides", [(5,), (5, 7), (4, 7, 5)])
def test_what_repeats_every_pixel_is_convolved_without_repeating_it(
    kernel: int, sides: tuple[int, ...]
) -> None:
    x = torch.randn(2, 3, *sides, dtype=torch.double)
    weight = torch.randn(4, 3, *(kernel,) * len(sides), dtype=torch.double)
    whole = FUNCTIONAL_CONV[len(sides)](F.interpolate(x, scale_factor=2.0), weight, padding=kernel // 2)
    torch.testing.assert_close(conv_of_doubled(x, weight), whole)


@pytest.mark.parametrize("ndim", [2, 3])
def test_in_training_the_head_gives_the_scores_and_gradients_of_its_layers(ndim: int) -> None:
    network: Any = build_espnet3d(classes=3, channels=1, width=0.25, refinement=False, ndim=ndim).double()
    features = torch.randn(2, 3, *(8, 12, 10)[:ndim], dtype=torch.double)
    found = []
    for make in (network.train()._scores, network.head):
        network.zero_grad()
        scores = make(features)
        scores.square().sum().backward()
        found.append([scores.detach(), *(p.grad for p in network.head.parameters())])
    torch.testing.assert_close(*found)


# -- what is refused -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"width": 0.1}, "width 0.1 leaves 16 channels fewer than 4 branches"),
        ({"width": -1}, "width -1 leaves"),
        ({"refinement": False, "align_corners": True}, "align_corners=True depends on the volume's size"),
        ({"refinement": False, "working_size": "rounded"}, "'rounded' needs refinement=True"),
        ({"refinement": False, "working_size": (64, 64, 64)}, "needs refinement=True"),
        ({"working_size": "largest"}, "working_size 'largest' is unknown"),
        ({"working_size": (64, 64)}, "working_size .64, 64. has not 3 axes"),
        ({"working_size": (64, 64, 60)}, "not all 0 or 7 modulo 8"),
        ({"working_size": (64, 8, 64)}, "a side of 8 is too small to refine"),
        ({"ndim": 4}, "ndim must be 1, 2 or 3, got 4"),
        ({"depth": 2}, "unexpected keyword"),
    ],
)
def test_arguments_that_make_no_network_are_refused(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ModelError, match=message):
        build_network("espnet3d", **arguments)


@pytest.mark.parametrize(
    ("working_size", "size", "message"),
    [
        ("given", (24, 30), "sides of .24, 30. are not all 0 or 7 modulo 8"),
        ("given", (24, 8), "a side of 8 is too small"),
        ("rounded", (7, 24), "a side of 8 is too small"),
    ],
)
def test_volumes_that_the_scales_do_not_fit_are_refused(
    working_size: str, size: Sequence[int], message: str
) -> None:
    network = small(working_size=working_size)
    with pytest.raises(ValueError, match=message):
        network(torch.rand(1, 2, *size, dtype=torch.double))


def test_a_unit_of_fewer_channels_than_branches_is_refused() -> None:
    with pytest.raises(ValueError, match="3 output channels are too few for 4 branches"):
        VolumeESP(8, 3)
