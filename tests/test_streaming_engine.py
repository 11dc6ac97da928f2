"""A network streamed in bands of rows makes what the network makes of the whole image."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Sequence
from itertools import pairwise, product
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

from tests.random_networks import MAX_POOLS, Case, Joined, cases
from wsiseg.errors import ModelError
from wsiseg.execute.lines import LineStream
from wsiseg.execute.schedule import make_schedule
from wsiseg.models.graph import NetworkGraph
from wsiseg.models.operations import Operation, Pointwise, Resize, Rows, Transposed, Window
from wsiseg.models.supported import of_module

DETERMINISTIC = settings(
    derandomize=True,
    deadline=None,
    database=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.large_base_example],
)
EXACT = 1e-11  # of float64: the order of sums may differ
FLOAT = 1e-5


@pytest.fixture(autouse=True)
def _one_thread_without_gradients(_few_threads: None) -> Any:
    torch.set_num_threads(1)
    torch.manual_seed(0)
    with torch.no_grad():
        yield


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


# Any network


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


# Geometry

WINDOWS = [
    Window(lambda pixels, padding: pixels, kernel=k, stride=s, padding=p, dilation=d)
    for k, s, d, p in product((1, 2, 3, 5), (1, 2, 3), (1, 2, 4), range(9))
    if p <= d * (k - 1)
]
TRANSPOSED = [
    Transposed(lambda pixels, padding, beyond: pixels, 1, kernel=k, stride=s, padding=p, dilation=d)
    for k, s, d, p in product((1, 2, 3, 4), (1, 2, 3), (1, 2), range(4))
]
RESIZES = [
    Resize(lambda pixels: pixels, f, linear=linear) for f, linear in product(range(1, 6), (False, True))
]


def least_delay(operation: Operation, delay_in: int) -> int:
    """By trial: far below the top, rows of output that the rows there allow, against those due."""
    scale = operation.scale(0)
    fed = 100 * scale.numerator
    due = int(fed / scale)
    row = 2 * due
    while operation.needs((row, row + 1))[1] > fed - delay_in:
        row -= 1
    return due - (row + 1)


@pytest.mark.parametrize(
    "operations", [WINDOWS, TRANSPOSED, RESIZES], ids=["windows", "transposed", "resize"]
)
def test_the_delay_is_the_least_with_which_all_needed_rows_are_there(operations: list[Operation]) -> None:
    for operation, delay_in in product(operations, range(8)):
        assert operation.delay(delay_in) == least_delay(operation, delay_in), (operation, delay_in)


CONVOLUTIONS = [
    nn.Conv2d(1, 1, k, stride=s, padding=p, dilation=d)
    for k, s, p, d in product((1, 2, 3), (1, 2, 3), (0, 1, 2), (1, 3))
]
TRANSPOSED_CONVOLUTIONS = [
    nn.ConvTranspose2d(1, 1, k, stride=s, padding=p, output_padding=o, dilation=d)
    for k, s, p, o, d in product((1, 2, 3), (1, 2, 3), (0, 1), (0, 1), (1, 3))
    if o < max(s, d)
]
AVERAGES = [nn.AvgPool2d(k, stride=s, padding=p) for k, s, p in product((2, 3), (1, 2, 3), (0, 1))]
HIGHEST = [nn.MaxPool2d(k, stride=s, padding=p) for k, s, p in product((2, 3), (1, 2, 3), (0, 1))]
ENLARGED = [
    nn.Upsample(scale_factor=(f, 1), mode=m) for f, m in product(range(1, 5), ("nearest", "bilinear"))
]
LAYERS: dict[str, Sequence[nn.Module]] = {
    "convolutions": CONVOLUTIONS,
    "transposed": TRANSPOSED_CONVOLUTIONS,
    "averages": AVERAGES,
    "highest": HIGHEST,
    "enlarged": ENLARGED,
}


@pytest.mark.parametrize("kind", LAYERS)
def test_the_size_is_what_torch_makes(kind: str) -> None:
    for layer, rows in product(LAYERS[kind], range(7, 13)):
        assert of_module(layer).size(rows, 0) == layer(torch.zeros(1, 1, rows, 9)).shape[2], layer


@pytest.mark.parametrize("kind", ["convolutions", "transposed", "averages", "enlarged"])
def test_the_rows_needed_are_the_extent_of_the_gradient(kind: str) -> None:
    for layer in LAYERS[kind]:
        for parameter in layer.parameters():
            nn.init.ones_(parameter)
        with torch.enable_grad():
            image = torch.ones(1, 1, 14, 9, requires_grad=True)
            by_row = layer(image).sum(dim=(0, 1, 3)).unbind()
        # Of a dilated transposed kernel not every row between the outermost is met, nor always these.
        widened = isinstance(layer, nn.ConvTranspose2d) and layer.dilation[0] > 1
        for row, made in enumerate(by_row):
            (gradient,) = torch.autograd.grad(made, image, retain_graph=True)
            reached = (gradient[0, 0].abs().sum(1) > 1e-5).nonzero().flatten().tolist()
            first, stop = of_module(layer).needs((row, row + 1))
            assert all(first <= r < stop for r in reached), (layer, row)
            if first >= 0 and stop <= 14 and reached and not widened:
                assert (first, stop) == (reached[0], reached[-1] + 1), (layer, row)


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


# Outputs


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


# Memory


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


# Channels


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


# Refusals


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


# Mistakes are seen


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

    monkeypatch.setitem(globals(), "make_schedule", mistaken)


def _zero_rows_around_the_image(monkeypatch: pytest.MonkeyPatch) -> None:
    right = streamed

    def mistaken(network: nn.Module, image: Tensor, *, bands: int = 1) -> list[tuple[int, Tensor]]:
        framed = F.pad(image, (0, 0, 16, 16))
        return [(0, made[:, :, 16:-16]) for _, made in right(network, framed, bands=bands)]

    monkeypatch.setitem(globals(), "streamed", mistaken)


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
