"""Operations that see a fixed neighbourhood: which rows they need, and the rows that they make.

Rows are half-open intervals along an axis, counted in an operation's own frame: row 0 is the first
row of the whole image at that scale. Everything that follows from the geometry of an operation is
here once; `graph.network` derives receptive fields from it, `execute.schedule` the order of work.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Protocol

import torch
from torch import Tensor
from torch.nn import functional

Rows = tuple[int, int]  # first row, and one beyond the last
PerAxis = int | tuple[int, ...]  # as torch takes it: one value for all axes, or one each
ROW_AXIS = 2  # of tensors (B, C, rows, ...)


class Operation(Protocol):
    """What a layer does, as far as rows are concerned."""

    def scale(self, axis: int) -> Fraction:
        """Input pixels per output pixel."""
        ...

    def size(self, pixels: int, axis: int) -> int:
        """Pixels of output for a whole input of `pixels`."""
        ...

    def channels(self, inputs: Sequence[int]) -> int:
        """Channels of the output."""
        ...

    def needs(self, out: Rows, axis: int = 0) -> Rows:
        """The input that some rows of output depend on; it may stick out of the image."""
        ...

    def delay(self, delay_in: int) -> int:
        """Rows by which the output lags behind the image when the input lags by `delay_in` rows.

        Each lag is counted in rows of its own frame, after a whole number of output strides.
        """
        ...

    def make(self, inputs: Sequence[Tensor], *, given: Rows, out: Rows, height: int) -> Tensor:
        """Rows `out` from the rows `given` of each input, the part of `needs(out)` inside the image.

        `height` is the number of rows of the whole input.
        """
        ...


def at(value: PerAxis, axis: int) -> int:
    """The value for one axis."""
    return value[axis] if isinstance(value, tuple) else value


def _with_rows(value: PerAxis, rows: int, ndim: int) -> tuple[int, ...]:
    """`value` for all axes but the first, which gets `rows`."""
    return (rows, *(at(value, axis) for axis in range(1, ndim)))


@dataclass(frozen=True)
class Pointwise:
    """Element by element, or channel by channel: norms in evaluation, activations, add, cat, slices."""

    function: Callable[..., Tensor]
    count: Callable[[Sequence[int]], int] = max
    """Channels of the output from those of the inputs."""
    into: Callable[..., object] | None = None
    """The same with an argument `out`, where torch can write into memory that is there."""
    constant_axes: int | None = None
    """Spatial axes of a constant per channel that takes part."""
    joined: tuple[int, ...] = ()
    """Of a sum (`joins` torch.add) or concatenation (torch.cat): the inputs in the order of its arguments."""
    joins: Callable[..., Tensor] | None = None

    def scale(self, axis: int) -> Fraction:
        return Fraction(1)

    def size(self, pixels: int, axis: int) -> int:
        return pixels

    def channels(self, inputs: Sequence[int]) -> int:
        return self.count(inputs)

    def needs(self, out: Rows, axis: int = 0) -> Rows:
        return out

    def delay(self, delay_in: int) -> int:
        return delay_in

    def make(self, inputs: Sequence[Tensor], *, given: Rows, out: Rows, height: int) -> Tensor:
        return self.function(*inputs)


@dataclass(frozen=True)
class Window:
    """A convolution or a pooling: `function(pixels, padding)` with a fixed kernel."""

    function: Callable[[Tensor, tuple[int, ...]], Tensor]
    kernel: PerAxis
    stride: PerAxis = 1
    padding: PerAxis = 0
    dilation: PerAxis = 1
    outside: float = 0.0
    mean_of_inside: bool = False
    """An average that does not count what lies outside."""
    out_channels: int | None = None
    """None: as many as come in."""

    def scale(self, axis: int) -> Fraction:
        return Fraction(at(self.stride, axis))

    def size(self, pixels: int, axis: int) -> int:
        return (pixels + 2 * at(self.padding, axis) - self._reach(axis) - 1) // at(self.stride, axis) + 1

    def channels(self, inputs: Sequence[int]) -> int:
        return self.out_channels or inputs[0]

    def _reach(self, axis: int) -> int:
        return at(self.dilation, axis) * (at(self.kernel, axis) - 1)

    def needs(self, out: Rows, axis: int = 0) -> Rows:
        s, p = at(self.stride, axis), at(self.padding, axis)
        return out[0] * s - p, (out[1] - 1) * s - p + self._reach(axis) + 1

    def delay(self, delay_in: int) -> int:
        # Of A image rows A/S - delay_in are there. The last row that they allow is
        # (A/S - delay_in - 1 + p - reach) // s, and A/S is a multiple of s.
        s, p = at(self.stride, 0), min(at(self.padding, 0), self._reach(0))
        return -((p - 1 - delay_in - self._reach(0)) // s) - 1

    def make(self, inputs: Sequence[Tensor], *, given: Rows, out: Rows, height: int) -> Tensor:
        (pixels,) = inputs
        first, stop = self.needs(out)
        start, end = min(max(first, given[0]), stop), max(min(stop, given[1]), first)
        if start >= end:  # padding only
            start, end = (first, first) if given[1] <= first else (stop, stop)
        missing = (start - first, stop - end)
        pixels = pixels.narrow(ROW_AXIS, 0, end - start)
        axes = pixels.ndim - 2
        if any(missing):
            # The border of this layer's own frame: zeros here, not what zeros in the image would become.
            pixels = functional.pad(pixels, (*(0, 0) * (axes - 1), *missing), value=self.outside)
        made = self.function(pixels, _with_rows(self.padding, 0, axes))
        if self.mean_of_inside and any(missing):
            s, p, k = at(self.stride, 0), at(self.padding, 0), at(self.kernel, 0)
            starts = torch.arange(*out, device=made.device) * s - p
            inside = (starts + k).clamp(max=height) - starts.clamp(min=0)
            made = made * (k / inside.to(made.dtype)).view(-1, *(1,) * (axes - 1))
        return made


@dataclass(frozen=True)
class Transposed:
    """A transposed convolution: `function(pixels, padding, output_padding)`."""

    function: Callable[[Tensor, tuple[int, ...], tuple[int, ...]], Tensor]
    out_channels: int
    kernel: PerAxis
    stride: PerAxis = 1
    padding: PerAxis = 0
    output_padding: PerAxis = 0
    dilation: PerAxis = 1

    def scale(self, axis: int) -> Fraction:
        return Fraction(1, at(self.stride, axis))

    def size(self, pixels: int, axis: int) -> int:
        cut = 2 * at(self.padding, axis) - at(self.output_padding, axis)
        return (pixels - 1) * at(self.stride, axis) + self._reach(axis) + 1 - cut

    def channels(self, inputs: Sequence[int]) -> int:
        return self.out_channels

    def _reach(self, axis: int) -> int:
        return at(self.dilation, axis) * (at(self.kernel, axis) - 1)

    def needs(self, out: Rows, axis: int = 0) -> Rows:
        s, p = at(self.stride, axis), at(self.padding, axis)
        stop = (out[1] - 1 + p) // s + 1
        # A stride beyond the kernel leaves rows that no input reaches: one is asked for all the same.
        return min(-((self._reach(axis) - out[0] - p) // s), (out[0] + p) // s), stop

    def delay(self, delay_in: int) -> int:
        return at(self.stride, 0) * delay_in + at(self.padding, 0)

    def make(self, inputs: Sequence[Tensor], *, given: Rows, out: Rows, height: int) -> Tensor:
        (pixels,) = inputs
        axes = pixels.ndim - 2
        top = given[0] * at(self.stride, 0) - at(self.padding, 0)  # the row that comes out first
        rows = (pixels.shape[ROW_AXIS] - 1) * at(self.stride, 0) + self._reach(0) + 1
        beyond = max(0, out[1] - top - rows)
        made = self.function(
            pixels, _with_rows(self.padding, 0, axes), _with_rows(self.output_padding, beyond, axes)
        )
        return made.narrow(ROW_AXIS, out[0] - top, out[1] - out[0])


@dataclass(frozen=True)
class Resize:
    """Interpolation by whole factors, pixel centres aligned: `function(pixels)`."""

    function: Callable[[Tensor], Tensor]
    factor: PerAxis
    linear: bool

    def scale(self, axis: int) -> Fraction:
        return Fraction(1, at(self.factor, axis))

    def size(self, pixels: int, axis: int) -> int:
        return pixels * at(self.factor, axis)

    def channels(self, inputs: Sequence[int]) -> int:
        return inputs[0]

    def needs(self, out: Rows, axis: int = 0) -> Rows:
        f = at(self.factor, axis)
        if not self.linear:
            return out[0] // f, (out[1] - 1) // f + 1
        # Output o lies at (o + 0.5) / f - 0.5, between two input pixels.
        return (2 * out[0] + 1 - f) // (2 * f), -(-(2 * out[1] - 1 - f) // (2 * f)) + 1

    def delay(self, delay_in: int) -> int:
        f = at(self.factor, 0)
        return f * delay_in + (f // 2 if self.linear else 0)

    def make(self, inputs: Sequence[Tensor], *, given: Rows, out: Rows, height: int) -> Tensor:
        (pixels,) = inputs
        top = given[0] * at(self.factor, 0)
        # Only the borders of the image are repeated: elsewhere the rows beyond `out` are cut off.
        return self.function(pixels).narrow(ROW_AXIS, out[0] - top, out[1] - out[0])
