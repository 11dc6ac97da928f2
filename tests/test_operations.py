"""Which rows an operation needs and by how many it lags, against torch itself."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product

import pytest
import torch
from torch import nn

from wsiseg.graph.modules import of_module
from wsiseg.graph.operations import Operation, Resize, Transposed, Window

pytestmark = pytest.mark.usefixtures("one_thread_without_gradients")


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
