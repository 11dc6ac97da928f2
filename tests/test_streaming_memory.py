"""Rows that are kept are not overwritten: views, layers in place, constants."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tests.random_networks import MAX_POOLS
from tests.streams import (
    EXACT,
    Net,
    assert_same,
    assert_streams,
    conv,
    noise,
)
from wsiseg.errors import ModelError
from wsiseg.execute.lines import LineStream
from wsiseg.execute.schedule import make_schedule
from wsiseg.graph.network import NetworkGraph
from wsiseg.graph.operations import Rows

pytestmark = pytest.mark.usefixtures("one_thread_without_gradients")


def shared_channels(net: Any, x: Tensor) -> Any:
    a, b = net.a(x).chunk(2, dim=1)
    return torch.cat([a, net.b(b), b], dim=1)


VIEWS: dict[str, nn.Module] = {
    "identity": Net(
        lambda net, x: net.view(net.a(x)) + net.b(net.a(x)), a=conv(2, 2), b=conv(2, 2, 9), view=nn.Identity()
    ),
    "slice": Net(
        lambda net, x: net.b(x)[:, 1:] + net.c(net.b(x)), b=conv(2, 3), c=conv(3, 2, 7, dilation=3, padding=9)
    ),
    "slice of a slice": Net(lambda net, x: x[:, 1:][:, :2] * net.b(x[:, :1]), b=conv(1, 2, 11)),
    "chunks": Net(shared_channels, a=conv(2, 4), b=conv(2, 2, 9)),
    "dropout": Net(lambda net, x: net.drop(x) - net.b(x), drop=nn.Dropout(), b=conv(2, 2, 9)),
    "contiguous": Net(lambda net, x: x.contiguous() / 2 + net.b(net.b(x)), b=conv(2, 2, 9)),
    "view waits twice": Net(
        lambda net, x: (x[:, :1] + net.b(x)) + net.c(net.b(x)), b=conv(2, 2, 7), c=conv(2, 2, 9)
    ),
}


@pytest.mark.parametrize("name", VIEWS)
def test_views_of_rows_that_are_kept_are_not_overwritten_by_later_bands(name: str) -> None:
    assert_streams(VIEWS[name], noise(3 if name == "slice of a slice" else 2, 41, 5))


def test_the_memory_that_the_feed_hands_over_may_be_used_again() -> None:
    """The reader fills one array again and again."""
    network = Net(lambda net, x: x + net.b(x), b=nn.Sequential(conv(2, 2, 9), conv(2, 2, 5))).double()
    image = noise(2, 24, 5)
    place = torch.empty(1, 2, 3, 5, dtype=torch.double)
    schedule = make_schedule(NetworkGraph(network), (24, 5), channels=2)

    def feed(rows: Rows) -> Tensor:
        return place.copy_(image[:, :, rows[0] : rows[1]])

    items = LineStream(schedule, band=3).run(feed, (0, 24))
    made = torch.cat([item[0][1].clone() for item in items if item[0] is not None], dim=2)
    assert_same((0, made), network(image), within=EXACT)


def iadd(net: Any, x: Tensor) -> Any:
    y = net.a(x)
    y += net.b(x)
    y *= 2
    y -= x
    y /= 3
    return net.b(y)


IN_PLACE: dict[str, nn.Module] = {
    "module": nn.Sequential(conv(2, 2), nn.ReLU(inplace=True), conv(2, 2), nn.Hardswish(inplace=True)),
    "on the image": nn.Sequential(nn.ReLU(inplace=True), conv(2, 2)),
    "operators": Net(iadd, a=conv(2, 2), b=conv(2, 2, 5)),
    "method": Net(
        lambda net, x: net.a(net.a(x).relu_()).add_(net.b(x)).tanh_(), a=conv(2, 2), b=conv(2, 2, 5)
    ),
    "function": Net(lambda net, x: F.elu(net.a(x), 1.0, True) * net.b(x), a=conv(2, 2), b=conv(2, 2, 7)),
    "of what is kept": Net(
        lambda net, x: F.relu(net.a(x), inplace=True) + net.b(x), a=conv(2, 2), b=conv(2, 2, 11)
    ),
}


@pytest.mark.parametrize("name", IN_PLACE)
def test_layers_that_work_in_place_change_nothing_that_is_kept(name: str) -> None:
    assert_streams(IN_PLACE[name], noise(2, 23, 5))


def change_part(net: Any, x: Tensor) -> Any:
    x = net.a(x)
    part = x[:, :1]
    part += 1
    return x * 2


def change_behind_a_slice(net: Any, x: Tensor) -> Any:
    x = net.a(x)
    part = x[:, :1]
    x += 1
    return torch.cat([part, x], dim=1)


def change_behind_a_view(net: Any, x: Tensor) -> Any:
    x = net.a(x)
    same = net.view(x)
    x.relu_()
    return same + 1


def change_a_chunk(net: Any, x: Tensor) -> Any:
    x = net.a(x)
    a, _ = x.chunk(2, dim=1)
    a += 1
    return x * 2


@pytest.mark.parametrize(
    "forward",
    [change_part, change_behind_a_slice, change_behind_a_view, change_a_chunk],
    ids=lambda f: f.__name__,
)
def test_a_change_in_place_that_is_read_through_a_view_is_refused(forward: Callable[..., Tensor]) -> None:
    with pytest.raises(ModelError, match=r"layer '(iadd|add|relu_)\w*' .* in place"):
        NetworkGraph(Net(forward, a=conv(2, 2), view=nn.Identity()))


def test_a_constant_for_every_channel_can_widen_one_channel() -> None:
    gain = nn.Parameter(torch.randn(1, 4, 1, 1))
    wide = Net(lambda net, x: net.a(x) * net.g + net.b(x) * net.g, a=conv(2, 1), b=conv(2, 1, 5), g=gain)
    assert_streams(wide, noise(2, 9, 5))
    last = Net(lambda net, x: (net.a(x) * net.g).chunk(2, dim=1)[1], a=conv(2, 1), g=gain)
    assert_streams(last, noise(2, 9, 5))


def test_constants_are_parameters_numbers_and_what_is_computed_of_them() -> None:
    gain, bias = nn.Parameter(torch.randn(1, 2, 1, 1)), nn.Parameter(torch.tensor(2.0))
    network = Net(
        lambda net, x: 1 + net.a(x) * torch.sigmoid(net.g) - net.b - 0.5, a=conv(2, 2), g=gain, b=bias
    )
    assert_streams(network, noise(2, 9, 5))


def test_a_constant_with_other_axes_than_the_image_is_refused() -> None:
    """In a volume the channels of (1, C, 1, 1) lie along the rows."""
    graph = NetworkGraph(Net(lambda net, x: x * 1 + net.g, g=nn.Parameter(torch.randn(1, 4, 1, 1))))
    with pytest.raises(ModelError, match="layer 'add' "):
        make_schedule(graph, (4, 6, 6), channels=2)


def test_one_channel_joined_with_several_is_spread_over_them() -> None:
    assert_streams(Net(lambda net, x: net.a(x) + net.b(x), a=conv(2, 1), b=conv(2, 3, 5)), noise(2, 9, 5))
    assert_streams(Net(lambda net, x: net.b(x) + net.a(x), a=conv(2, 1), b=conv(2, 3, 5)), noise(2, 9, 5))
    assert_streams(Net(lambda net, x: torch.cat([x, x, net.a(x)], 1), a=conv(2, 1, 5)), noise(2, 9, 5))
    assert_streams(Net(lambda net, x: torch.add(x, net.a(x), alpha=3), a=conv(2, 1, 5)), noise(2, 9, 5))


SPELLINGS: dict[str, nn.Module] = {
    "chunk by name": Net(lambda net, x: x.chunk(chunks=2, dim=1)[0]),
    "torch.split by name": Net(lambda net, x: torch.split(x, split_size_or_sections=1, dim=1)[1]),
    "split into unequal parts": Net(lambda net, x: torch.split(torch.cat([x, x], 1), [1, 3], 1)[1]),
    "all chunks": Net(lambda net, x: torch.cat(x.chunk(2, dim=1), dim=1)),
    "chunks turned round": Net(lambda net, x: torch.cat(x.chunk(2, dim=1)[::-1], dim=1)),
    "chunks come out": Net(lambda net, x: x.chunk(2, dim=1)),
    "cat with a constant": Net(
        lambda net, x: torch.cat([net.a(x), net.g], dim=1),
        a=conv(2, 2),
        g=nn.Parameter(torch.ones(1, 1, 9, 8)),
    ),
    "a constant comes out": Net(lambda net, x: (x + 1, net.g), g=nn.Parameter(torch.ones(1, 1, 9, 8))),
    "pool with a list": nn.Sequential(MAX_POOLS[2]([3, 3], stride=1, padding=1)),
    "pool function with a list": Net(lambda net, x: F.avg_pool2d(x, [3, 3], [1, 1], [1, 1])),
    "pool with a tuple of one": nn.Sequential(nn.MaxPool2d((3,), stride=1, padding=1)),
    "pool functions": Net(lambda net, x: F.max_pool2d(x, 3, 1, 1) + F.avg_pool2d(x, 3, 1, 1, False, False)),
    "interpolate by a list": Net(lambda net, x: F.interpolate(x, scale_factor=[2, 2])),
    "interpolate by a tuple": Net(lambda net, x: F.interpolate(x, scale_factor=(3, 2), mode="bilinear")),
    "one layer": conv(2, 2),
    "one activation": nn.ReLU(),
    "dropout function": Net(lambda net, x: F.dropout(x, training=net.training)),
}


@pytest.mark.parametrize("name", SPELLINGS)
def test_other_spellings_are_followed_or_refused(name: str) -> None:
    """Never another error, never another result."""
    network = SPELLINGS[name].eval()
    try:
        NetworkGraph(network)
    except ModelError:
        return
    assert_streams(network, noise(2, 9, 8))
