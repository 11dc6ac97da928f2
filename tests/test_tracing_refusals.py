"""What cannot be followed row by row is refused, with the layer's name."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tests.streams import (
    Net,
    conv,
)
from wsiseg.errors import ModelError
from wsiseg.execute.lines import LineStream
from wsiseg.execute.schedule import make_schedule
from wsiseg.graph.network import NetworkGraph

pytestmark = pytest.mark.usefixtures("one_thread_without_gradients")


def with_layer(odd: nn.Module) -> nn.Module:
    return nn.Sequential(OrderedDict(first=conv(2, 2), odd=odd)).eval()


def interpolated(**options: Any) -> nn.Module:
    return Net(lambda net, x: F.interpolate(x, **options))


UNKNOWN = "sees more than a fixed neighbourhood, or is not known"
NORMALISES = "normalises by the statistics of the whole image"
MODULES: list[tuple[nn.Module, str]] = [
    (nn.AdaptiveAvgPool2d(1), UNKNOWN),
    (nn.AdaptiveMaxPool2d(4), UNKNOWN),
    (nn.InstanceNorm2d(2), UNKNOWN),
    (nn.GroupNorm(1, 2), UNKNOWN),
    (nn.LayerNorm(5), UNKNOWN),
    (nn.MultiheadAttention(2, 1), UNKNOWN),
    (nn.Flatten(), UNKNOWN),
    (nn.Softmax(dim=2), UNKNOWN),
    (nn.UpsamplingBilinear2d(scale_factor=2), UNKNOWN),
    (nn.BatchNorm2d(2, track_running_stats=False), NORMALISES),
    (conv(2, 2, padding_mode="reflect"), "pads with 'reflect'; only zeros are supported"),
    (conv(2, 2, padding_mode="circular"), "pads with 'circular'; only zeros are supported"),
    (
        nn.Conv2d(2, 2, 4, padding="same"),
        "pads one side more than the other (padding='same' with an even kernel)",
    ),
    (nn.MaxPool2d(2, ceil_mode=True), "rounds its size up (ceil_mode), which depends on the image's size"),
    (nn.AvgPool2d(2, ceil_mode=True), "rounds its size up (ceil_mode), which depends on the image's size"),
    (nn.MaxPool2d(2, return_indices=True), "returns places in the whole image (return_indices)"),
    (
        nn.Upsample(scale_factor=2, mode="bicubic"),
        "interpolates by 'bicubic'; nearest and linear are supported",
    ),
    (nn.Upsample(size=(8, 8)), "makes an image of a given size"),
    (
        nn.Upsample(scale_factor=2, mode="bilinear", align_corners=True),
        "aligns corners, which depends on the image's size",
    ),
    (nn.Upsample(scale_factor=1.5), "enlarges by 1.5; whole factors are supported"),
    (nn.Upsample(scale_factor=0.5), "enlarges by 0.5; whole factors are supported"),
]


@pytest.mark.parametrize(("layer", "reason"), MODULES, ids=lambda p: str(p).split("(")[0])
def test_a_module_that_is_not_local_is_refused_by_name(layer: nn.Module, reason: str) -> None:
    with pytest.raises(ModelError) as refused:
        NetworkGraph(with_layer(layer))
    assert str(refused.value) == f"layer 'odd' ({type(layer).__name__}) {reason}"


@pytest.mark.parametrize(
    "layer", [nn.BatchNorm2d(2), nn.Dropout(), nn.Dropout2d(), nn.AlphaDropout()], ids=str
)
def test_a_network_in_training_mode_is_refused(layer: nn.Module) -> None:
    with pytest.raises(ModelError) as refused:
        NetworkGraph(with_layer(layer).train())
    assert (
        str(refused.value) == f"layer 'odd' ({type(layer).__name__}) is in training mode; call eval() first"
    )


def in_place_then_read(net: Any, x: Tensor) -> Any:
    y = net.a(x)
    z = net.act(y)
    return y + z


def changed_then_read(net: Any, x: Tensor) -> Any:
    y = net.a(x)
    z = y
    z += x
    return y + z


def relu_then_read(net: Any, x: Tensor) -> Any:
    y = net.a(x)
    return y.relu_() + y


UNKNOWN_CALL = "is not known to be local"
WHOLE_SHAPE = nn.Parameter(torch.ones(1, 2, 8, 8))
CALLS: list[tuple[Callable[[Any, Tensor], Any], str]] = [
    (lambda net, x: x - x.mean(), f"layer 'mean' (mean) {UNKNOWN_CALL}"),
    (lambda net, x: torch.roll(x, 1, 2), f"layer 'roll' (roll) {UNKNOWN_CALL}"),
    (lambda net, x: torch.flip(x, [2]), f"layer 'flip' (flip) {UNKNOWN_CALL}"),
    (
        lambda net, x: F.adaptive_avg_pool2d(x, 1),
        f"layer 'adaptive_avg_pool2d' (adaptive_avg_pool2d) {UNKNOWN_CALL}",
    ),
    (lambda net, x: x.view(1, -1), f"layer 'view' (view) {UNKNOWN_CALL}"),
    (lambda net, x: F.interpolate(x, size=x.shape[2:]), f"layer 'getattr_1' (getattr) {UNKNOWN_CALL}"),
    (lambda net, x: F.dropout(x, training=True), f"layer 'dropout' (dropout) {UNKNOWN_CALL}"),
    (
        lambda net, x: F.interpolate(x, size=(4, 4)),
        "layer 'interpolate' (interpolate) makes an image of a given size",
    ),
    (
        lambda net, x: F.interpolate(x, scale_factor=1.5),
        "layer 'interpolate' (interpolate) enlarges by 1.5; whole factors are supported",
    ),
    (
        lambda net, x: F.max_pool2d(x, 2, ceil_mode=True),
        "layer 'max_pool2d' (max_pool2d) rounds its size up (ceil_mode), which depends on the image's size",
    ),
    (lambda net, x: torch.cat([x, x], dim=2), "layer 'cat' (cat) works along another axis than the channels"),
    (lambda net, x: torch.cat([x, x]), "layer 'cat' (cat) works along another axis than the channels"),
    (
        lambda net, x: F.softmax(x, dim=3),
        "layer 'softmax' (softmax) works along another axis than the channels",
    ),
    (lambda net, x: x[:, :, 1:], "layer 'getitem' (getitem) takes a part that is not a slice of channels"),
    (lambda net, x: x[:, 0], "layer 'getitem' (getitem) takes a part that is not a slice of channels"),
    (lambda net, x: x[..., 1:, :], "layer 'getitem' (getitem) takes a part that is not a slice of channels"),
    (
        lambda net, x: x.chunk(2, dim=2)[0],
        "layer 'getitem' (getitem) takes a part along another axis than the channels",
    ),
    (
        lambda net, x: x + net.whole,
        "layer 'add' (add) joins a constant of shape (1, 2, 8, 8); one per channel is supported",
    ),
    (
        in_place_then_read,
        "layer 'act' (ReLU) changes its input in place, which 'add' reads afterwards",
    ),
    (changed_then_read, "layer 'iadd' (iadd) changes its input in place, which 'add' reads afterwards"),
    (relu_then_read, "layer 'relu_' (relu_) changes its input in place, which 'add' reads afterwards"),
]


@pytest.mark.parametrize(("forward", "message"), CALLS, ids=[message for _, message in CALLS])
def test_a_call_that_is_not_local_is_refused_by_name(forward: Callable[..., Any], message: str) -> None:
    network = Net(forward, a=conv(2, 2), act=nn.ReLU(inplace=True), whole=WHOLE_SHAPE)
    with pytest.raises(ModelError) as refused:
        NetworkGraph(network.eval())
    assert str(refused.value) == message


def branch_on_data(net: Any, x: Tensor) -> Tensor:
    return x if x.sum() > 0 else -x


def not_written(net: Any, x: Tensor) -> Tensor:
    raise NotImplementedError


@pytest.mark.parametrize(
    ("forward", "reason"),
    [
        (branch_on_data, "what it does depends on the size or the values of its image"),
        (lambda net, x: x * float(x.max()), "what it does depends on the size or the values of its image"),
        (lambda net, x: x * len(x), "'len' is not supported in symbolic tracing"),
        (not_written, ""),
    ],
    ids=["branch", "number", "length", "not written"],
)
def test_a_network_that_cannot_be_followed_is_refused(forward: Callable[..., Any], reason: str) -> None:
    with pytest.raises(ModelError) as refused:
        NetworkGraph(Net(forward))
    assert str(refused.value).startswith(f"Net.forward cannot be followed: {reason}")


def test_a_network_of_two_images_is_refused() -> None:
    class Two(nn.Module):
        def forward(self, x: Tensor, y: Tensor) -> Tensor:
            return x + y

    with pytest.raises(ModelError, match="the network takes more than an image: 'y'"):
        NetworkGraph(Two())


def test_features_of_unequal_size_cannot_be_joined() -> None:
    graph = NetworkGraph(Net(lambda net, x: net.a(x) + x, a=nn.Conv2d(2, 2, 3)))
    with pytest.raises(ModelError) as refused:
        graph.shapes((9, 8), channels=2)
    assert str(refused.value) == (
        "layer 'add' would join features of (7, 6) and (9, 8) for an image of (9, 8)"
    )


def test_features_of_unequal_scale_cannot_be_joined_where_their_size_is_equal_by_chance() -> None:
    """The rows of the coarser ones would be kept without end."""
    network = Net(
        lambda net, x: net.a(x) + net.b(x), a=nn.Conv2d(2, 2, 1, stride=2), b=nn.Conv2d(2, 2, (7, 6))
    )
    with pytest.raises(ModelError, match="layer 'add' "):
        make_schedule(NetworkGraph(network), (12, 10), channels=2)


def test_an_image_of_which_nothing_is_left_is_refused() -> None:
    graph = NetworkGraph(nn.Sequential(conv(2, 2), nn.Conv2d(2, 2, 5)))
    with pytest.raises(ModelError, match="layer '1' leaves nothing of an image of .9, 4. pixels"):
        make_schedule(graph, (9, 4), channels=2)


@pytest.mark.parametrize("band", [0, -2, 3])
def test_a_band_is_a_multiple_of_the_output_stride(band: int) -> None:
    schedule = make_schedule(NetworkGraph(nn.Sequential(nn.MaxPool2d(2))), (8, 8), channels=2)
    with pytest.raises(ValueError, match=f"bands of {band} rows are no multiple of the output stride 2"):
        LineStream(schedule, band=band)


def test_a_hook_that_changes_a_layer_is_not_left_out() -> None:
    """Rows are made by the layer's weights, not by calling it: its hooks would not run."""
    layer = conv(2, 2)
    layer.register_forward_hook(lambda module, given, made: made * 2)
    with pytest.raises(ModelError, match="layer '0' .Conv2d. .*hook"):
        NetworkGraph(nn.Sequential(layer))
