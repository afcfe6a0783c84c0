"""Windows that slide over positions: sums over offsets, of one axis or of pairs in step."""

import dataclasses
import enum
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

from ntk.stax._covariance import settle

Array = jax.Array

#: Entries that one sum may read before it is kept: a 5 x 5 filter in one pass.
READS = 25


class Padding(enum.Enum):
    """What lies beyond the edges."""

    CIRCULAR = "CIRCULAR"
    SAME = "SAME"
    VALID = "VALID"


def parse_padding(name: str, padding: Any) -> Padding:
    """Reads a padding given by name or as a member of Padding."""
    if isinstance(padding, Padding):
        return padding
    try:
        return Padding(str(padding).upper())
    except ValueError:
        allowed = ", ".join(p.value for p in Padding)
        raise ValueError(f"{name}: padding must be one of {allowed}, got {padding!r}.") from None


@dataclasses.dataclass(frozen=True)
class Window:
    """A window along one axis.

    Output p reads inputs p * stride + o * dilation - low, o < size, of an input whose entries lie
    `expand` apart with zeros between them.
    """

    size: int
    stride: int
    dilation: int
    expand: int
    low: int
    out: int
    circular: bool

    def starts(self) -> list[int]:
        """Where output 0 reads, by offset."""
        return [o * self.dilation - self.low for o in range(self.size)]


def forward_window(length: int, size: int, stride: int, dilation: int, padding: Padding) -> Window:
    """The window of a convolution or of pooling along an axis of `length` entries."""
    reach = (size - 1) * dilation + 1
    if padding is Padding.VALID:
        out = (length - reach) // stride + 1
        low = 0
    else:
        out = -(-length // stride)
        low = max((out - 1) * stride + reach - length, 0) // 2
    if length >= 0 and out < 1:
        raise ValueError(
            f"a window of {reach} with padding VALID does not fit an axis of {length}; use padding "
            "SAME, a smaller filter, or larger inputs."
        )
    return Window(size, stride, dilation, 1, low, out, padding is Padding.CIRCULAR)


def transposed_window(length: int, size: int, stride: int, padding: Padding) -> Window:
    """The window of a transposed convolution, with the sizes of jax.lax.conv_transpose."""
    if padding is Padding.VALID:
        out = length * stride + max(size - stride, 0)
        low = size - 1
    else:
        out = length * stride
        low = size - 1 if stride > size - 1 else -(-(size + stride - 2) // 2)
    return Window(size, 1, 1, stride, low, out, padding is Padding.CIRCULAR)


def shifted(array: Array, axes: Sequence[int], window: Window, start: int) -> Array:
    """Entries start, start + stride, ... along `axes`, in step; zero beyond the edges.

    Args:
      array: any.
      axes: one axis, or two that move together.
      window: how far and how many.
      start: the first entry.
    """
    last = start + (window.out - 1) * window.stride
    if window.circular:
        length = array.shape[axes[0]] * window.expand
        if window.expand > 1:
            array = _expand(array, axes, window.expand, length)
        where = (start + window.stride * jnp.arange(window.out)) % length
        for axis in axes:
            array = _rolled(array, axis, start, window, length, where)
        return array
    config = [(0, 0, 0)] * array.ndim
    for axis in axes:
        length = (array.shape[axis] - 1) * window.expand + 1
        config[axis] = (-start, last + 1 - length, window.expand - 1)
    array = jax.lax.pad(array, jnp.zeros((), array.dtype), config)
    if window.stride > 1:
        for axis in axes:
            array = jax.lax.slice_in_dim(array, 0, None, window.stride, axis)
    return array


def _expand(array: Array, axes: Sequence[int], expand: int, length: int) -> Array:
    config = [(0, 0, 0)] * array.ndim
    for axis in axes:
        config[axis] = (0, expand - 1, expand - 1)
    del length
    return jax.lax.pad(array, jnp.zeros((), array.dtype), config)


def _rolled(array: Array, axis: int, start: int, window: Window, length: int, where: Array):
    if window.stride == 1 and window.out == length:
        return jnp.roll(array, -start, axis)
    return jnp.take(array, where, axis=axis)


def sum_windows(array: Array, groups: Sequence[tuple[Sequence[int], Window]]) -> Array:
    """Sums over the offsets of windows.

    Args:
      array: any.
      groups: windows, each with the axes along which it moves in step.
    """
    array = _padded(array, groups)
    reads = 1
    for axes, window in groups:
        reads *= window.size
        if reads > READS:
            (array,) = settle(array)
            reads = window.size
        parts = [_strided(array, axes, window, o * window.dilation) for o in range(window.size)]
        array = parts[0]
        for part in parts[1:]:
            array = array + part
    return array


def _padded(array: Array, groups: Sequence[tuple[Sequence[int], Window]]) -> Array:
    """Spread and padded such that the first offset of every window reads from 0 on."""
    zeros, wraps = [(0, 0, 0)] * array.ndim, [(0, 0)] * array.ndim
    for axes, window in groups:
        last = (window.out - 1) * window.stride + (window.size - 1) * window.dilation
        for axis in axes:
            length = (array.shape[axis] - 1) * window.expand + 1
            if window.circular:
                # Wrapped once it is spread; what follows the last entry belongs to the period.
                zeros[axis] = (0, window.expand - 1, window.expand - 1)
                high = last + 1 - window.low - (length + window.expand - 1)
                wraps[axis] = (window.low, max(high, 0))
            else:
                zeros[axis] = (window.low, last + 1 - window.low - length, window.expand - 1)
    if any(config != (0, 0, 0) for config in zeros):
        array = jax.lax.pad(array, jnp.zeros((), array.dtype), zeros)
    if any(pad != (0, 0) for pad in wraps):
        array = jnp.pad(array, wraps, mode="wrap")
    elif not any(low > 0 or high > 0 or inner for low, high, inner in zeros):
        return array
    # Slices of an array in memory are read in whole vectors; slices of a padding are not.
    (array,) = settle(array)
    return array


def _strided(array: Array, axes: Sequence[int], window: Window, start: int) -> Array:
    last = start + (window.out - 1) * window.stride
    for axis in axes:
        array = jax.lax.slice_in_dim(array, start, last + 1, window.stride, axis)
    return array


def window_sum(array: Array, axes: Sequence[int], window: Window) -> Array:
    """Sum over the offsets of a window along `axes`, in step; for finite layers and masks."""
    parts = [shifted(array, axes, window, start) for start in window.starts()]
    total = parts[0]
    for part in parts[1:]:
        total = total + part
    return total


def pair_windows(
    array: Array, lead: int, diagonal: bool, windows: Sequence[Window | None]
) -> Array:
    """Sums in which both positions of a pair move together: what shared filters do.

    Args:
      array: [batch axes, H, H, W, W], or [batch axes, H, W] when `diagonal`.
      lead: number of batch axes.
      diagonal: see `array`.
      windows: one for each spatial axis; None leaves it alone.
    """
    groups = []
    for i, window in enumerate(windows):
        if window is not None:
            axes = (lead + i,) if diagonal else (lead + 2 * i, lead + 2 * i + 1)
            groups.append((axes, window))
    return sum_windows(array, groups)


def single_windows(array: Array, lead: int, windows: Sequence[Window | None]) -> Array:
    """Sums in which each position of a pair moves on its own: what pooling does."""
    groups = []
    for i, window in enumerate(windows):
        if window is not None:
            groups += [((lead + 2 * i,), window), ((lead + 2 * i + 1,), window)]
    return sum_windows(array, groups)


def counts(window: Window, length: int) -> Array:
    """How many entries of an axis each position of a window reads."""
    return window_sum(jnp.ones((length,)), (0,), window)
