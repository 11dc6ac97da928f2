"""A network streamed in bands of rows makes what the network makes of the whole image."""

from __future__ import annotations

from collections.abc import Callable
from itertools import product
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

from tests import streams
from tests.random_networks import Case, Joined, cases
from tests.streams import (
    DETERMINISTIC,
    EXACT,
    FLOAT,
    Net,
    assert_same,
    assert_streams,
    check_whole,
    conv,
    noise,
    part_and_whole,
    streamed,
)
from wsiseg.execute.lines import LineStream
from wsiseg.execute.schedule import make_schedule
from wsiseg.graph.network import NetworkGraph
from wsiseg.graph.operations import Pointwise, Rows, Window

pytestmark = pytest.mark.usefixtures("one_thread_without_gradients")


@settings(DETERMINISTIC, max_examples=80)
@given(cases(ndim=2, dtype=torch.double))
def test_a_streamed_network_is_the_network_in_two_dimensions(case: Case) -> None:
    check_whole(case, within=EXACT)


@settings(DETERMINISTIC, max_examples=40)
@given(cases(ndim=3, dtype=torch.double))
def test_a_streamed_network_is_the_network_in_three_dimensions(case: Case) -> None:
    check_whole(case, within=EXACT)


@settings(DETERMINISTIC, max_examples=20)
@given(cases(ndim=1, dtype=torch.double))
def test_a_streamed_network_is_the_network_in_one_dimension(case: Case) -> None:
    check_whole(case, within=EXACT)


@settings(DETERMINISTIC, max_examples=40)
@given(st.one_of(cases(ndim=2, dtype=torch.float), cases(ndim=3, dtype=torch.float)))
def test_in_single_precision_only_rounding_differs(case: Case) -> None:
    check_whole(case, within=FLOAT)


@settings(DETERMINISTIC, max_examples=40)
@given(cases(ndim=2, dtype=torch.double, outputs=3))
def test_every_one_of_several_outputs_comes_out_whole(case: Case) -> None:
    check_whole(case, within=EXACT)


@settings(DETERMINISTIC, max_examples=80)
@given(st.one_of(cases(ndim=2, dtype=torch.float), cases(ndim=3, dtype=torch.float)))
def test_a_part_of_the_rows_is_bit_by_bit_that_part_of_the_whole(case: Case) -> None:
    height = case.network(case.image.clone()).shape[2]
    part, whole = part_and_whole(case.network, case.image, case.rows(height), bands=case.bands)
    assert torch.equal(part, whole)


def test_every_part_of_a_network_with_a_long_wait_is_that_part_of_the_whole() -> None:
    """The narrow branch is ready long before the deep one that it is joined with."""
    deep = nn.Sequential(*[conv(2, 2) for _ in range(5)])
    network = Joined([conv(2, 1, 1), deep], "cat").eval()
    image = torch.randn(1, 2, 40, 6)
    for first, stop in product(range(0, 40, 3), range(1, 41, 3)):
        if first < stop:
            part, whole = part_and_whole(network, image, (first, stop), bands=8)
            assert torch.equal(part, whole), (first, stop)


def test_every_row_alone_is_that_row_of_the_whole() -> None:
    """Rows that no input reaches (stride beyond the kernel) are made like all others."""
    network = nn.Sequential(
        nn.ConvTranspose2d(2, 2, 1, stride=2, output_padding=1), nn.AvgPool2d(5, stride=1, padding=2)
    )
    image = torch.randn(1, 2, 9, 6)
    for row in range(18):
        part, whole = part_and_whole(network, image, (row, row + 1), bands=1)
        assert torch.equal(part, whole), row


def test_an_image_is_fed_once_from_its_first_row_to_its_last() -> None:
    fed: list[Rows] = []
    image = noise(2, 12, 5)
    graph = NetworkGraph(nn.Sequential(conv(2, 2, 5), conv(2, 2, 3)).double())
    schedule = make_schedule(graph, (12, 5), channels=2)

    def feed(rows: Rows) -> Tensor:
        fed.append(rows)
        return image[:, :, rows[0] : rows[1]]

    assert len(list(LineStream(schedule, band=5).run(feed, (0, 12)))) >= 3
    assert fed == [(0, 5), (5, 10), (10, 12)]


@pytest.mark.parametrize(
    "layer",
    [
        nn.Conv2d(2, 2, 1, padding=1),
        nn.Conv2d(2, 2, 1, padding=3),
        nn.Conv2d(2, 2, 3, padding=(5, 1)),
        nn.Conv2d(2, 2, (2, 1), stride=(2, 1), padding=(4, 0)),
        nn.Conv2d(2, 2, (2, 1), stride=(4, 1), padding=(2, 0)),
        nn.ConvTranspose2d(2, 2, 2, stride=2, output_padding=1),
        nn.ConvTranspose2d(2, 2, 1, stride=3, output_padding=2),
        nn.ConvTranspose2d(2, 2, 2, stride=1, dilation=3, padding=1, output_padding=2),
    ],
    ids=str,
)
def test_rows_that_only_padding_reaches_come_out_too(layer: nn.Module) -> None:
    """At the bottom they come when all of the image has been there for a while."""
    assert_streams(nn.Sequential(conv(2, 2, 1), layer), noise(2, 12, 6))
    assert_streams(nn.Sequential(conv(2, 2, 3), layer, conv(2, 2, 3)), noise(2, 12, 6))
    waiting = Joined([nn.Sequential(conv(2, 2), conv(2, 1)), conv(2, 1, 1)], "cat")
    assert_streams(nn.Sequential(waiting, layer), noise(2, 12, 6))


def test_a_stride_beyond_the_kernel_leaves_rows_that_are_made_late() -> None:
    """The transposed convolution waits for the other branch: its steps begin with a row nobody reaches."""
    across = nn.ConvTranspose2d(2, 2, 1, stride=(2, 1), output_padding=(1, 0))
    down_up = [
        nn.Conv2d(2, 2, (2, 1), stride=(2, 1), padding=(1, 0), dilation=(3, 1)),
        nn.Upsample(scale_factor=(2, 1)),
    ]
    assert_streams(
        nn.Sequential(across, Joined([nn.Sequential(*down_up), nn.Identity()], "add")), noise(2, 5, 4)
    )


def test_an_output_that_other_layers_read_comes_out_too() -> None:
    def both(net: Any, x: Tensor) -> tuple[Tensor, Tensor]:
        early = net.a(x)
        return early, net.b(early)

    assert_streams(Net(both, a=conv(2, 3), b=conv(3, 2, 5)), noise(2, 9, 5))
    assert_streams(Net(lambda n, x: both(n, x)[::-1], a=conv(2, 3), b=conv(3, 2, 5)), noise(2, 9, 5))


def test_an_output_longer_than_the_first_comes_out_whole() -> None:
    network = Net(lambda net, x: (net.a(x), net.b(x)), a=conv(2, 2), b=conv(2, 2, 3, padding=2))
    assert_streams(network, noise(2, 9, 5))


def test_the_same_output_twice_comes_out_twice() -> None:
    def thrice(net: Any, x: Tensor) -> tuple[Tensor, ...]:
        made = net.a(x)
        return made, made, net.b(x)

    assert_streams(Net(thrice, a=conv(2, 2), b=conv(2, 3)), noise(2, 9, 5))


def test_the_image_itself_can_be_an_output() -> None:
    assert_streams(Net(lambda net, x: (net.a(x), x), a=conv(2, 3)), noise(2, 9, 5))
    assert_streams(nn.Sequential(nn.Identity()), noise(2, 9, 5))


def test_enlarging_the_output_is_interpolating_it() -> None:
    network = nn.Sequential(nn.Conv2d(2, 3, 4, stride=4), conv(3, 3)).double().eval()
    image = noise(2, 16, 8)
    graph = NetworkGraph(network, enlarge=4)
    schedule = make_schedule(graph, (16, 8), channels=2)
    items = LineStream(schedule, band=4).run(lambda rows: image[:, :, rows[0] : rows[1]], (0, 16))
    made = [item[0][1].clone() for item in items if item[0] is not None]
    expected = F.interpolate(network(image), scale_factor=4, mode="bilinear")
    assert_same((0, torch.cat(made, dim=2)), expected, within=EXACT)


class Hourglass(nn.Module):
    """Dilated, strided, with a skip."""

    def __init__(self) -> None:
        super().__init__()
        self.first = conv(2, 3)
        self.down = conv(3, 4, stride=2)
        self.wide = nn.Conv2d(4, 4, 3, padding=3, dilation=3)
        self.up = nn.ConvTranspose2d(4, 3, 2, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        fine = self.first(x)
        made: Tensor = self.up(self.wide(self.down(fine))) + fine
        return made


def _dilated_delay_one_short(monkeypatch: pytest.MonkeyPatch) -> None:
    delay = Window.delay

    def short(self: Window, delay_in: int) -> int:
        return delay(self, delay_in) - (self.dilation not in (1, (1, 1)))

    monkeypatch.setattr(Window, "delay", short)


def _phase_of_a_stride_off_by_one(monkeypatch: pytest.MonkeyPatch) -> None:
    needs = Window.needs

    def shifted(self: Window, out: Rows, axis: int = 0) -> Rows:
        off = int(self.stride not in (1, (1, 1)))
        first, stop = needs(self, out, axis)
        return first + off, stop + off

    monkeypatch.setattr(Window, "needs", shifted)


def _skip_misaligned_by_one_row(monkeypatch: pytest.MonkeyPatch) -> None:
    schedules = make_schedule

    def mistaken(graph: NetworkGraph, shape: tuple[int, ...], *, channels: int) -> Any:
        made = schedules(graph, shape, channels=channels)
        for layer in graph.layers:
            if isinstance(layer.operation, Pointwise) and len(layer.inputs) == 2:
                object.__setattr__(layer, "operation", Pointwise(lambda a, b: a + b.roll(1, dims=2)))
        return made

    monkeypatch.setattr(streams, "make_schedule", mistaken)


def _zero_rows_around_the_image(monkeypatch: pytest.MonkeyPatch) -> None:
    right = streamed

    def mistaken(network: nn.Module, image: Tensor, *, bands: int = 1) -> list[tuple[int, Tensor]]:
        framed = F.pad(image, (0, 0, 16, 16))
        return [(0, made[:, :, 16:-16]) for _, made in right(network, framed, bands=bands)]

    monkeypatch.setattr(streams, "streamed", mistaken)


def comparison_holds(network: nn.Module, image: Tensor) -> bool:
    try:
        assert_streams(network, image)
    except (AssertionError, IndexError, KeyError, RuntimeError):
        return False
    return True


@pytest.mark.parametrize(
    "mistake",
    [
        _dilated_delay_one_short,
        _zero_rows_around_the_image,
        _skip_misaligned_by_one_row,
        _phase_of_a_stride_off_by_one,
    ],
    ids=lambda f: f.__name__.strip("_"),
)
def test_the_comparison_fails_with_this_mistake(
    mistake: Callable[[pytest.MonkeyPatch], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    network, image = Hourglass(), noise(2, 24, 6)
    assert comparison_holds(network, image)
    mistake(monkeypatch)
    assert not comparison_holds(network, image)
