"""Networks streamed in bands, put together again and held against one pass."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from typing import Any

import torch
from hypothesis import HealthCheck, settings
from torch import Tensor, nn

from tests.random_networks import Case
from wsiseg.execute.lines import LineStream
from wsiseg.execute.schedule import make_schedule
from wsiseg.graph.network import NetworkGraph
from wsiseg.graph.operations import Rows

DETERMINISTIC = settings(
    derandomize=True,
    deadline=None,
    database=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.large_base_example],
)
EXACT = 1e-11  # of float64: the order of sums may differ
FLOAT = 1e-5


class Net(nn.Module):
    """A forward pass as a function of its layers and the image."""

    def __init__(self, forward: Callable[[Any, Tensor], Any], **layers: nn.Module | nn.Parameter) -> None:
        super().__init__()
        self._forward = forward
        for name, layer in layers.items():
            setattr(self, name, layer)

    def forward(self, x: Tensor) -> Any:
        return self._forward(self, x)


def conv(channels_in: int, channels_out: int, kernel: int = 3, **options: Any) -> nn.Conv2d:
    """A convolution that keeps the size."""
    return nn.Conv2d(channels_in, channels_out, kernel, **{"padding": kernel // 2} | options)


def noise(*shape: int) -> Tensor:
    """An image (1, *shape)."""
    return torch.randn(1, *shape, dtype=torch.double)


def streamed(
    network: nn.Module, image: Tensor, *, bands: int = 1, rows: Rows | None = None
) -> list[tuple[int, Tensor]]:
    """What comes out, put together: for every output the number of its first row, and its rows.

    `bands` are output strides per band, `rows` those wanted of the first output.
    """
    graph = NetworkGraph(network)
    schedule = make_schedule(graph, tuple(image.shape[2:]), channels=image.shape[1])
    stream = LineStream(schedule, band=bands * graph.output_stride)
    whole = (0, schedule.shapes[graph.outputs[0]][1])
    pieces: list[list[tuple[Rows, Tensor]]] = [[] for _ in graph.outputs]
    for item in stream.run(lambda fed: image[:, :, fed[0] : fed[1]], rows or whole):
        for own, made in zip(pieces, item, strict=True):
            if made is not None:
                assert made[1].shape[2] == made[0][1] - made[0][0]
                own.append((made[0], made[1].clone()))
    for own in pieces:
        assert all(before[0][1] == after[0][0] for before, after in pairwise(own))
    return [(own[0][0][0], torch.cat([made for _, made in own], dim=2)) for own in pieces]


def assert_same(found: tuple[int, Tensor], expected: Tensor, *, within: float) -> None:
    first, values = found
    assert first == 0
    assert values.shape == expected.shape
    assert float((values - expected).abs().max()) <= within * float(expected.abs().max())


def assert_streams(network: nn.Module, image: Tensor, *, within: float = EXACT) -> None:
    """Bands of several heights make what the network makes of a copy of the image."""
    network = network.eval().to(image.dtype)
    expected = network(image.clone())
    all_expected = [expected] if isinstance(expected, Tensor) else list(expected)
    before = image.clone()
    for bands in (1, 2, 3, 50):
        for found, one in zip(streamed(network, image, bands=bands), all_expected, strict=True):
            assert_same(found, one, within=within)
    assert torch.equal(image, before)


def check_whole(case: Case, *, within: float) -> None:
    expected = case.network(case.image.clone())
    expected = [expected] if isinstance(expected, Tensor) else list(expected)
    for found, one in zip(streamed(case.network, case.image, bands=case.bands), expected, strict=True):
        assert_same(found, one, within=within)


def part_and_whole(network: nn.Module, image: Tensor, rows: Rows, *, bands: int) -> tuple[Tensor, Tensor]:
    """Some rows of the first output, when only they are wanted and when all are."""
    first, part = streamed(network, image, bands=bands, rows=rows)[0]
    _, whole = streamed(network, image, bands=bands)[0]
    return part[:, :, rows[0] - first : rows[1] - first], whole[:, :, rows[0] : rows[1]]
