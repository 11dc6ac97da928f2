"""SegNet: its parameters, and its pooling and its way back up pixel by pixel."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from wsiseg.errors import ModelError
from wsiseg.graph.network import NetworkGraph
from wsiseg.models.registry import build_network
from wsiseg.models.segnet import SegNet, build_segnet

Place = tuple[int, int]


def pooled_by_hand(x: Tensor) -> tuple[Tensor, dict[tuple[int, int, int], Place]]:
    """Maxima of (C, h, w) over 2 x 2 pixels, and for every channel, row and column where each was."""
    height, width = x.shape[1] // 2, x.shape[2] // 2
    out, places = torch.empty(len(x), height, width), {}
    for c, plane in enumerate(x.tolist()):
        for i in range(height):
            for j in range(width):
                corners = [(2 * i + a, 2 * j + b) for a in (0, 1) for b in (0, 1)]
                best = max(corners, key=lambda at: plane[at[0]][at[1]])
                out[c, i, j] = plane[best[0]][best[1]]
                places[c, i, j] = best
    return out, places


def unpooled_by_hand(x: Tensor, places: dict[tuple[int, int, int], Place], size: tuple[int, ...]) -> Tensor:
    """Zeros of `size`, but for each value of (C, h, w) at its place."""
    out = torch.zeros(len(x), *size)
    for (c, i, j), (row, column) in places.items():
        out[c, row, column] = x[c, i, j]
    return out


def by_hand(network: Any, image: Tensor) -> Tensor:
    """What the network makes of (1, channels, h, w), pooled and enlarged pixel by pixel."""
    x, memory = image, []
    for stage in network.encoder:
        x = stage(x)
        maxima, places = pooled_by_hand(x[0])
        memory.append((places, tuple(x.shape[2:])))
        x = maxima[None]
    for stage in network.decoder:
        x = stage(unpooled_by_hand(x[0], *memory.pop())[None])
    return x


@pytest.mark.parametrize("size", [(32, 32), (37, 46)])
def test_maxima_go_back_to_where_they_were_at_every_size(size: tuple[int, int]) -> None:
    torch.manual_seed(0)
    network = build_segnet(classes=5).eval()
    for module in network.modules():  # norms that keep the signal alive through 26 layers
        if isinstance(module, nn.BatchNorm2d):
            assert module.running_var is not None
            nn.init.constant_(module.running_var, 0.15)
            nn.init.normal_(module.bias, std=0.3)
    image = torch.rand(1, 3, *size)
    with torch.inference_mode():
        found, expected = network(image), by_hand(network, image)
    assert found.shape == (1, 5, *size)
    assert float(expected.std()) > 0.01
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5 * float(expected.abs().max()))


def test_parameters_are_those_of_vgg_16_and_its_mirror_image() -> None:
    network = build_network("segnet")
    assert isinstance(network, SegNet)
    # Convolutions of VGG-16 with biases (14,714,688), and twice the channels of each for its norm.
    assert sum(p.numel() for p in network.encoder.parameters()) == 14_714_688 + 2 * 4_224
    assert sum(p.numel() for p in network.parameters()) == 29_447_624
    convs = [m for m in network.modules() if isinstance(m, nn.Conv2d)]
    assert all(m.bias is not None and m.kernel_size == (3, 3) for m in convs)
    widths = [m.out_channels for m in convs]
    assert widths[:13] == [64, 64, 128, 128, 256, 256, 256, *(512,) * 6]
    assert widths[13:] == [*(512,) * 5, 256, 256, 256, 128, 128, 64, 64, 8]
    assert sum(isinstance(m, nn.BatchNorm2d) for m in network.modules()) == 25  # scores have none


def test_images_that_would_be_pooled_away_are_refused() -> None:
    with pytest.raises(ValueError, match=r"\(31, 64\) is too small; sides must be at least 32"):
        build_segnet()(torch.rand(1, 3, 31, 64))


def test_remembered_places_are_no_fixed_neighbourhood_for_the_graph() -> None:
    with pytest.raises(ModelError, match="SegNet.forward cannot be followed"):
        NetworkGraph(build_segnet().eval())
