"""ESPNetv2 equals the original: golden logits, parameter counts, and the same in any number of axes."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.golden import assert_logits, filled_network, reference_module
from wsiseg.errors import ModelError
from wsiseg.graph.network import NetworkGraph
from wsiseg.models.espnetv2 import (
    EESP,
    ENCODER_CHANNELS,
    LAST_DILATIONS,
    StridedEESP,
    build_espnetv2,
)
from wsiseg.models.layers import BATCH_NORM
from wsiseg.models.originals import recognise
from wsiseg.models.originals.espnetv2 import IMAGENET
from wsiseg.models.registry import build_network
from wsiseg.models.weights import fill, read_checkpoint
from wsiseg.preprocess import apply

PUBLISHED = {
    "espnetv2_s0.5_city_synth": {"classes": 20, "channels": 3, "scale": 0.5, "decoder_width": 64},
    "espnetv2_s0.5_city_synth_255x271": {"classes": 20, "channels": 3, "scale": 0.5, "decoder_width": 64},
    "espnetv2_s1.0_pascal_synth": {"classes": 21, "channels": 3, "scale": 1.0, "decoder_width": 64},
}
FILLED = "det_espnetv2_s0.5_c8"
KERNEL_AXES = 2  # kernels are (out, in, *axes)


def fixture_pixels(fixtures: Path, name: str) -> tuple[Tensor, dict[str, Any]]:
    """Pixels (B, C, y, x) uint8 as read, and what the fixture says of itself."""
    meta = json.loads((fixtures / f"{name}.json").read_text())
    height, width = meta["output_shape"][2:]
    bgr = reference_module(fixtures).synth_image(2018, 256, 512)[:height, :width]
    return torch.from_numpy(bgr[..., ::-1].copy()).permute(2, 0, 1)[None], meta


def mapped_state(fixtures: Path, *, scale: float, classes: int) -> dict[str, Tensor]:
    """A checkpoint of the right names and shapes; the values are numbers that tell keys apart."""
    path = fixtures / "keymaps" / f"espnetv2_s{scale}_c{classes}.tsv"
    rows = [line.split("\t") for line in path.read_text().splitlines()[1:]]
    shapes = {row[0]: () if row[1] == "scalar" else tuple(map(int, row[1].split("x"))) for row in rows}
    return {key: torch.full(shape, float(number)) for number, (key, shape) in enumerate(shapes.items())}


def lively(module: nn.Module) -> nn.Module:
    """Weights that keep signals at about their size through all layers, no two norms alike."""
    parts: list[Any] = list(module.modules())
    for part in parts:
        if type(part) in BATCH_NORM.values():
            nn.init.uniform_(part.weight, 0.75, 1.25)
            nn.init.normal_(part.bias, 0.0, 0.1)
            nn.init.normal_(part.running_mean, 0.0, 0.1)
            nn.init.uniform_(part.running_var, 0.5, 1.5)
        elif isinstance(part, nn.PReLU):
            nn.init.uniform_(part.weight, 0.05, 0.45)
        elif isinstance(part, (nn.Conv1d, nn.Conv2d, nn.Conv3d)):
            nn.init.kaiming_normal_(part.weight)
    return module.double().eval()


def embed(small: nn.Module, large: nn.Module, *, axis: int) -> nn.Module:
    """`large`, of one axis more than `small`, with the kernels of `small` in the middle along `axis`."""
    given = small.state_dict()
    for key, tensor in large.state_dict().items():
        target = tensor
        if tensor.ndim > KERNEL_AXES:
            tensor.zero_()
            target = tensor.select(KERNEL_AXES + axis, tensor.shape[KERNEL_AXES + axis] // 2)
        target.copy_(given[key])
    return large.double().eval()


# -- equal to the original -----------------------------------------------------------------------------


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_weights_give_the_golden_logits(shared: Path, name: str) -> None:
    fixtures = shared / "fixtures"
    pixels, meta = fixture_pixels(fixtures, name)
    recognised = recognise(read_checkpoint(fixtures / meta["weights"]), name=name)
    assert (recognised.network, recognised.arguments) == ("espnetv2", PUBLISHED[name])
    network = build_network(recognised.network, **recognised.arguments).eval()
    fill(network, recognised.state, name=name)
    with torch.inference_mode():
        logits = network(apply(pixels, None, recognised.preprocessing))[0].numpy()
    assert_logits(fixtures, name, logits)


def test_filled_weights_give_the_golden_logits(shared: Path) -> None:
    fixtures = shared / "fixtures"
    pixels, _ = fixture_pixels(fixtures, FILLED)
    with torch.inference_mode():
        logits = filled_network(fixtures, FILLED)(apply(pixels, None, IMAGENET))[0].numpy()
    assert_logits(fixtures, FILLED, logits)


def test_images_are_prepared_as_in_the_original(shared: Path) -> None:
    pixels, meta = fixture_pixels(shared / "fixtures", FILLED)
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
    original = ((pixels.float() / 255 - mean) / std).contiguous()
    assert hashlib.sha256(original.numpy().tobytes()).hexdigest() == meta["input_tensor_sha256_f32"]
    # The same sum in another order, in single precision.
    torch.testing.assert_close(apply(pixels, None, IMAGENET), original, rtol=0, atol=1e-6)


@pytest.mark.parametrize(("scale", "count"), [(0.5, 80_342), (1.0, 234_010), (1.5, 468_362), (2.0, 789_242)])
def test_parameters_are_as_many_as_published(scale: float, count: int) -> None:
    network = build_network("espnetv2", classes=20, scale=scale)
    assert sum(p.numel() for p in network.parameters()) == count
    norms = [m for m in network.modules() if isinstance(m, nn.BatchNorm2d)]
    assert {m.eps for m in norms} == {1e-5}


@pytest.mark.parametrize("classes", [8, 20, 21])
@pytest.mark.parametrize("scale", [0.5, 1.0, 1.5, 2.0])
def test_every_published_size_is_told_from_its_shapes_and_filled(
    shared: Path, scale: float, classes: int
) -> None:
    state = mapped_state(shared / "fixtures", scale=scale, classes=classes)
    recognised = recognise(state, name="checkpoint")
    assert recognised.arguments == {"classes": classes, "channels": 3, "scale": scale, "decoder_width": 64}
    network = build_network(recognised.network, **recognised.arguments)
    fill(network, recognised.state, name="checkpoint")
    # Each tensor went to a place of its own.
    given = sorted(v.flatten()[0].item() for v in state.values())
    assert sorted(v.flatten()[0].item() for v in network.state_dict().values()) == given


@pytest.mark.slow
def test_the_activation_that_a_down_sampler_never_uses_does_not_change_the_scores() -> None:
    torch.manual_seed(0)
    network = lively(build_espnetv2(classes=4, scale=0.5))
    unused = [p for name, p in network.named_parameters() if name.endswith(".unit.act.weight")]
    assert [p.numel() for p in unused] == [16, 32, 64]
    image = torch.rand(1, 3, 64, 48, dtype=torch.double)
    with torch.inference_mode():
        before = network(image)
        for parameter in unused:
            parameter.fill_(torch.nan)
        torch.testing.assert_close(network(image), before, rtol=0, atol=0)


# -- any number of axes, any size ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("ndim", "axis"), [(2, 0), (2, 1), (3, 0), (3, 1), pytest.param(3, 2, marks=pytest.mark.slow)]
)
def test_a_single_slice_gives_what_the_network_of_one_axis_fewer_gives(ndim: int, axis: int) -> None:
    torch.manual_seed(0)
    arguments: dict[str, Any] = {"classes": 6, "scale": 0.5}
    small = lively(build_espnetv2(**arguments, ndim=ndim - 1))
    large = embed(small, build_espnetv2(**arguments, ndim=ndim), axis=axis)
    for part in large.modules():
        if isinstance(part, (nn.AvgPool2d, nn.AvgPool3d)):
            # Beside a single slice lie two of zeros, which count in the mean.
            part.register_forward_hook(lambda module, given, made: 3 * made)
    image = torch.rand(2, 3, *(95, 64)[: ndim - 1], dtype=torch.double)
    with torch.inference_mode():
        expected = small(image)
        found = large(image.unsqueeze(2 + axis)).squeeze(2 + axis)
    assert expected.std() > 0.1
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("order", [(1, 0), (2, 0, 1), (0, 2, 1)])
def test_no_axis_is_treated_unlike_the_others(order: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    network = lively(build_espnetv2(classes=4, scale=0.5, ndim=len(order)))
    axes = (0, 1, *(2 + axis for axis in order))
    image = torch.rand(1, 3, *(33, 50, 21)[: len(order)], dtype=torch.double)
    with torch.inference_mode():
        scores = network(image)
        for tensor in network.state_dict().values():
            if tensor.ndim > KERNEL_AXES:
                tensor.copy_(tensor.permute(axes).clone())
        turned = network(image.permute(axes))
    assert scores.shape == (1, 4, *image.shape[2:])
    torch.testing.assert_close(turned, scores.permute(axes), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("dilations", [(1, 2, 3, 4), LAST_DILATIONS])
def test_a_unit_of_three_axes_with_flat_kernels_works_slice_by_slice(dilations: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    flat = lively(EESP(32, 32, dilations=dilations, ndim=2))
    unit = embed(flat, EESP(32, 32, dilations=dilations, ndim=3), axis=0)
    volume = torch.rand(2, 32, 5, 9, 12, dtype=torch.double)
    with torch.inference_mode():
        expected = torch.stack([flat(volume[:, :, z]) for z in range(5)], dim=2)
        torch.testing.assert_close(unit(volume), expected)


def test_a_strided_unit_of_three_axes_is_that_of_two_where_nothing_changes_along_the_third() -> None:
    torch.manual_seed(0)
    flat = lively(StridedEESP(32, 64, image_channels=3, ndim=2))
    unit = embed(flat, StridedEESP(32, 64, image_channels=3, ndim=3), axis=0)
    features = torch.rand(1, 32, 9, 12, dtype=torch.double)
    image = torch.rand(1, 3, 5, 6, dtype=torch.double)
    deep = [x.unsqueeze(2).expand(-1, -1, depth, -1, -1) for x, depth in ((features, 8), (image, 4))]
    with torch.inference_mode():
        expected, found = flat(features, image), unit(*deep)
    assert found.shape == (1, 64, 4, 5, 6)
    for z in range(1, 4):  # a third of what slice 0 averages lies outside
        torch.testing.assert_close(found[:, :, z], expected)
    assert not torch.allclose(found[:, :, 0], expected, rtol=1e-3)


def test_every_branch_takes_part_in_the_running_sum_the_first_one_too() -> None:
    torch.manual_seed(0)
    unit = lively(EESP(32, 32, ndim=1))
    assert isinstance(unit, EESP)
    branches: list[Tensor] = []
    fused: list[Tensor] = []
    for branch in unit.branches:
        branch.register_forward_hook(lambda module, given, made: branches.append(made))
    unit.fuse.register_forward_hook(lambda module, given, made: fused.append(given[0]))
    with torch.inference_mode():
        unit(torch.rand(1, 32, 20, dtype=torch.double))
    torch.testing.assert_close(fused[0], torch.stack(branches, dim=1).cumsum(dim=1).flatten(1, 2))


def test_a_wider_decoder_has_the_planes_of_the_one_for_coco() -> None:
    state = build_espnetv2(classes=20, decoder_width=128).state_dict()
    prefixes = ("", "step_eighth.", "step_quarter.", "step_half.")
    assert [state[f"{prefix}pyramid.expand.weight"].shape[0] for prefix in prefixes] == [128, 96, 64, 20]


@pytest.mark.parametrize("scale", ENCODER_CHANNELS)
def test_all_scales_end_in_a_classifier_with_a_bias_at_any_size(scale: float) -> None:
    network = build_espnetv2(classes=3, channels=2, scale=scale).eval()
    last = "step_half.pyramid.expand"
    # With nothing but the bias left, it is every pixel's scores, whatever the size.
    nn.init.zeros_(network.get_parameter(f"{last}.weight"))
    bias = network.get_parameter(f"{last}.bias")
    with torch.inference_mode():
        scores = network(torch.rand(1, 2, 41, 70))
        torch.testing.assert_close(scores, bias.view(1, 3, 1, 1).expand(1, 3, 41, 70))


def test_the_scores_of_a_pixel_depend_on_the_farthest_other() -> None:
    torch.manual_seed(0)
    network = lively(build_espnetv2(classes=4, scale=0.5, ndim=1))
    image = torch.rand(1, 3, 4096, dtype=torch.double, requires_grad=True)
    (gradient,) = torch.autograd.grad(network(image)[0, :, 0].sum(), image)
    assert gradient[..., -32:].abs().max() > 0
    with pytest.raises(ModelError, match="ESPNetv2.forward cannot be followed"):
        NetworkGraph(build_espnetv2(classes=4))


# -- what is refused -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"scale": 0.75}, "scale 0.75 is unknown; choose one of 0.5, 1.0, 1.25, 1.5, 2.0"),
        ({"decoder_width": 32}, "decoder_width 32 is unknown; choose 64 or 128"),
        ({"classes": 1}, "classes must be at least 2 .*, got 1"),
        ({"ndim": 4}, "ndim must be 1, 2 or 3, got 4"),
        ({"variant": "A"}, "unexpected keyword"),
    ],
)
def test_arguments_that_make_no_network_are_refused(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ModelError, match=message):
        build_network("espnetv2", **{"classes": 8, **arguments})


@pytest.mark.parametrize(
    ("key", "shape", "message"),
    [
        ("base_net.level1.conv.weight", None, "lacks 'base_net.level1.conv.weight'"),
        ("bu_dec_l4.merge_layer.3.weight", (8, 4), "lacks 'bu_dec_l4.merge_layer.3.weight' of 4 axes"),
        ("base_net.level3_0.act.weight", None, "lacks 'base_net.level3_0.act.weight' of 1 axes"),
        ("base_net.level3_0.act.weight", (65,), r"has \(16, 32, 65, 128\) channels, which no published"),
        ("base_net.level1.conv.weight", (16, 4, 3, 3), r"takes 4 channels; .* 3 \(RGB\) only"),
    ],
)
def test_a_checkpoint_that_does_not_tell_its_size_is_refused(
    shared: Path, key: str, shape: tuple[int, ...] | None, message: str
) -> None:
    state = mapped_state(shared / "fixtures", scale=0.5, classes=8)
    del state[key]
    if shape is not None:
        state[key] = torch.zeros(shape)
    with pytest.raises(ModelError, match=message):
        recognise(state, name="checkpoint")


@pytest.mark.parametrize(
    ("key", "shape", "message"),
    [
        ("base_net.level4.6.module_act.weight", None, "lacks 'base_net.level4.6.module_act.weight'"),
        ("bu_br_l3.0.running_var", None, "lacks 'bu_br_l3.0.running_var'"),
        (
            "bu_dec_l2.stages.3.weight",
            (4, 1, 5, 5),
            r"'bu_dec_l2.stages.3.weight' has shape \(4, 1, 5",
        ),
        ("merge_enc_dec_l2.extra", (1,), "holds 'merge_enc_dec_l2.extra', which the network lacks"),
    ],
)
def test_a_damaged_checkpoint_is_refused_by_its_first_difference(
    shared: Path, key: str, shape: tuple[int, ...] | None, message: str
) -> None:
    state = mapped_state(shared / "fixtures", scale=0.5, classes=8)
    state.pop(key, None)
    if shape is not None:
        state[key] = torch.zeros(shape)
    recognised = recognise(state, name="checkpoint")
    network = build_network(recognised.network, **recognised.arguments)
    with pytest.raises(ModelError, match=message):
        fill(network, recognised.state, name="checkpoint", called=recognised.name_in_file)


def test_the_width_of_the_decoder_is_told_from_its_first_layer(shared: Path) -> None:
    state = mapped_state(shared / "fixtures", scale=0.5, classes=8)
    state["bu_dec_l1.merge_layer.3.weight"] = torch.zeros(128, 4, 1, 1)
    assert recognise(state, name="checkpoint").arguments["decoder_width"] == 128
