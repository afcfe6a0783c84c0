"""Windows that slide over positions: sums over offsets, of one axis or of pairs in step."""

import dataclasses
import enum
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

Array = jax.Array


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


def window_sum(array: Array, axes: Sequence[int], window: Window) -> Array:
    """Sum over the offsets of a window along `axes`, in step."""
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
    for i, window in enumerate(windows):
        if window is None:
            continue
        axes = (lead + i,) if diagonal else (lead + 2 * i, lead + 2 * i + 1)
        array = window_sum(array, axes, window)
    return array


def single_windows(array: Array, lead: int, windows: Sequence[Window | None]) -> Array:
    """Sums in which each position of a pair moves on its own: what pooling does."""
    for i, window in enumerate(windows):
        if window is None:
            continue
        for axis in (lead + 2 * i, lead + 2 * i + 1):
            array = window_sum(array, (axis,), window)
    return array


def counts(window: Window, length: int) -> Array:
    """How many entries of an axis each position of a window reads."""
    return window_sum(jnp.ones((length,)), (0,), window)
