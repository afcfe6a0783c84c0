"""Pooling over windows and over all positions, and `Flatten`."""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

from ntk._kernel import Kernel
from ntk.stax._covariance import map_covariances, spatial_shape
from ntk.stax._kernel_fn import as_network
from ntk.stax._layer import Layer, Need, Network, axes_of, check_axes
from ntk.stax._window import (
    Padding,
    Window,
    counts,
    forward_window,
    parse_padding,
    shifted,
    single_windows,
    window_sum,
)

Array = jax.Array
#: What pooling needs of its inputs.
ALL_PAIRS = Need(pairs=True, own=True, own_pairs=True)


def pairs_if_read(need: Need) -> Need:
    """Covariances of different positions, of those covariances that are read at all."""
    return Need(pairs=True, own=need.own, own_pairs=need.own)


@dataclasses.dataclass(frozen=True)
class PoolLayer(Layer):
    """Description of `AvgPool` and `SumPool`."""

    kind: str
    window_shape: tuple[int, ...]
    strides: tuple[int, ...]
    padding: Padding
    normalize_edges: bool
    batch_axis: int
    channel_axis: int

    @property
    def name(self) -> str:
        """The name in messages."""
        return self.kind

    @property
    def input_axes(self) -> tuple[int, int]:
        """Batch and channel axis of the inputs."""
        return self.batch_axis, self.channel_axis

    def windows(self, shape: Any) -> list[tuple[int, Window]]:
        """Axis and window of each spatial axis."""
        _, _, spatial = axes_of(len(shape), self.batch_axis, self.channel_axis)
        if len(spatial) != len(self.window_shape):
            raise ValueError(
                f"window_shape {self.window_shape} has {len(self.window_shape)} axes, the inputs "
                f"have {len(spatial)} spatial axes (shape {tuple(shape)})."
            )
        return [
            (axis, forward_window(shape[axis], size, stride, 1, self.padding))
            for axis, size, stride in zip(spatial, self.window_shape, self.strides)
        ]

    def output_shape(self, shape: Any) -> Any:
        """Spatial sizes after the windows."""
        out = list(shape)
        for axis, window in self.windows(shape):
            out[axis] = window.out
        return tuple(out)

    def _divisors(self, shape: Any, dtype: Any) -> list[Array | None]:
        """What the sums along each spatial axis are divided by."""
        if self.kind == "SumPool":
            return [None for _ in self.window_shape]
        out = []
        for axis, window in self.windows(shape):
            count = counts(window, shape[axis]).astype(dtype)
            edges = self.normalize_edges and self.padding is Padding.SAME
            out.append(count if edges else jnp.full_like(count, window.size))
        return out

    def apply(self, params: Any, inputs: Any, **kwargs: Any) -> Any:
        """Sums or averages of windows."""
        del params, kwargs
        divisors = self._divisors(inputs.shape, inputs.dtype)
        for (axis, window), divisor in zip(self.windows(inputs.shape), divisors):
            inputs = window_sum(inputs, (axis,), window)
            if divisor is not None:
                inputs = inputs / divisor.reshape(_along(inputs.ndim, axis))
        return inputs

    def mask(self, mask: Array, shape: Any) -> Array:
        """Masked where the centre of the window is, as after a convolution."""
        hidden = mask.astype(jnp.float32)
        for axis, window in self.windows(shape):
            hidden = shifted(hidden, (axis,), window, (window.size - 1) // 2 - window.low)
        return hidden > 0

    def need(self, need: Need) -> Need:
        """Covariances within the windows."""
        return pairs_if_read(need)

    def kernel(self, kernel: Kernel, **kwargs: Any) -> Kernel:
        """Both positions of a pair run over their windows."""
        del kwargs
        check_axes(kernel, self.batch_axis, self.channel_axis)
        windows = [window for _, window in self.windows(kernel.shape1)]
        divisors = self._divisors(kernel.shape1, kernel.nngp.dtype)

        def pooled(array, lead, diagonal):
            del diagonal
            array = single_windows(array, lead, windows)
            for i, divisor in enumerate(divisors):
                if divisor is not None:
                    for axis in (lead + 2 * i, lead + 2 * i + 1):
                        array = array / divisor.reshape(_along(array.ndim, axis))
            return array

        masks = {
            f"mask{side}": None if mask is None else self.mask(mask, shape)
            for side, mask, shape in (
                (1, kernel.mask1, kernel.shape1),
                (2, kernel.mask2, kernel.shape2),
            )
        }
        out = map_covariances(
            kernel, pooled, mixes=True, is_input=False, shape1=self.output_shape(kernel.shape1),
            shape2=self.output_shape(kernel.shape2), **masks,
        )  # fmt: skip
        return out if out.mask1 is None and out.mask2 is None else out.mask(out.mask1, out.mask2)


def _along(ndim: int, axis: int) -> tuple[int, ...]:
    return tuple(-1 if a == axis else 1 for a in range(ndim))


def _pool(kind, window_shape, strides, padding, normalize_edges, batch_axis, channel_axis):
    window_shape = tuple(window_shape)
    strides = (1,) * len(window_shape) if strides is None else tuple(strides)
    for key, value in (("window_shape", window_shape), ("strides", strides)):
        if len(value) != len(window_shape) or any(int(n) != n or n < 1 for n in value):
            raise ValueError(
                f"{kind}: {key} must be {len(window_shape)} positive integers, got {value}."
            )
    padding = parse_padding(kind, padding)
    return as_network(
        PoolLayer(kind, window_shape, strides, padding, normalize_edges, batch_axis, channel_axis)
    )


def AvgPool(
    window_shape: Sequence[int],
    strides: Sequence[int] | None = None,
    padding: Any = "VALID",
    normalize_edges: bool = False,
    batch_axis: int = 0,
    channel_axis: int = -1,
) -> Network:
    """Average over windows.

    Args:
      window_shape: along each spatial axis.
      strides: along each spatial axis; None for 1.
      padding: "VALID", "SAME" or "CIRCULAR".
      normalize_edges: with "SAME", divide by the number of entries inside, not by the window.
      batch_axis: of the inputs.
      channel_axis: of the inputs.
    """
    return _pool("AvgPool", window_shape, strides, padding, normalize_edges, batch_axis,
                 channel_axis)  # fmt: skip


def SumPool(
    window_shape: Sequence[int],
    strides: Sequence[int] | None = None,
    padding: Any = "VALID",
    batch_axis: int = 0,
    channel_axis: int = -1,
) -> Network:
    """Sum over windows; see `AvgPool` for the arguments."""
    return _pool("SumPool", window_shape, strides, padding, False, batch_axis, channel_axis)


@dataclasses.dataclass(frozen=True)
class GlobalPoolLayer(Layer):
    """Description of `GlobalAvgPool` and `GlobalSumPool`."""

    kind: str
    batch_axis: int
    channel_axis: int

    @property
    def name(self) -> str:
        """The name in messages."""
        return self.kind

    @property
    def input_axes(self) -> tuple[int, int]:
        """Batch and channel axis of the inputs."""
        return self.batch_axis, self.channel_axis

    def output_shape(self, shape: Any) -> Any:
        """Batch and channels, in their order."""
        batch, channel, _ = axes_of(len(shape), self.batch_axis, self.channel_axis)
        return tuple(shape[a] for a in sorted((batch, channel)))

    def apply(self, params: Any, inputs: Any, mask: Any = None, **kwargs: Any) -> Any:
        """Mean or sum over the positions that are not masked."""
        del params, kwargs
        _, _, spatial = axes_of(inputs.ndim, self.batch_axis, self.channel_axis)
        total = jnp.sum(inputs, axis=spatial)
        if self.kind == "GlobalSumPool":
            return total
        if mask is None:
            return total / math.prod(inputs.shape[a] for a in spatial)
        count = jnp.sum(jnp.broadcast_to(~mask, inputs.shape), axis=spatial)
        return total / jnp.maximum(count, 1)

    def mask(self, mask: Array, shape: Any) -> Array:
        """Masked where every position is."""
        _, _, spatial = axes_of(len(shape), self.batch_axis, self.channel_axis)
        return jnp.all(mask, axis=spatial)

    def need(self, need: Need) -> Need:
        """All pairs of positions, of what is read."""
        return pairs_if_read(need)

    def kernel(self, kernel: Kernel, **kwargs: Any) -> Kernel:
        """The mean or sum over all pairs of positions."""
        del kwargs
        check_axes(kernel, self.batch_axis, self.channel_axis)
        batch, channel, spatial = axes_of(len(kernel.shape1), self.batch_axis, self.channel_axis)
        total = math.prod(spatial_shape(kernel))

        def pooled(array, lead, diagonal):
            del diagonal
            summed = jnp.sum(array, axis=tuple(range(lead, array.ndim)))
            if self.kind == "GlobalSumPool":
                return summed
            return summed if kernel.mask1 is not None else summed / total**2

        order = sorted((batch, channel))
        masks = [
            None if m is None else jnp.all(m, axis=spatial) for m in (kernel.mask1, kernel.mask2)
        ]
        out = map_covariances(
            kernel, pooled, mixes=True, is_input=False, mask1=masks[0], mask2=masks[1],
            shape1=self.output_shape(kernel.shape1), shape2=self.output_shape(kernel.shape2),
            batch_axis=order.index(batch), channel_axis=order.index(channel),
        )  # fmt: skip
        if kernel.mask1 is not None and self.kind == "GlobalAvgPool":
            out = _divide_by_counts(out, kernel, spatial, channel)
        return out


def _divide_by_counts(out: Kernel, kernel: Kernel, spatial: Any, channel: int) -> Kernel:
    def seen(mask):
        count = jnp.sum(~mask, axis=spatial + (channel,)).reshape(-1)
        return jnp.maximum(count, 1).astype(out.nngp.dtype)

    n1, n2 = seen(kernel.mask1), seen(kernel.mask2)
    pairs = n1[:, None] * n2[None, :]

    def own(cov, n):
        if cov is None:
            return None
        return cov / (n * n) if out.diagonal_batch else cov / (n[:, None] * n[None, :])

    return out.replace(
        nngp=out.nngp / pairs,
        ntk=out.ntk if out.ntk is None or out.ntk.ndim == 0 else out.ntk / pairs,
        cov1=own(out.cov1, n1),
        cov2=own(out.cov2, n2),
    )


def GlobalAvgPool(batch_axis: int = 0, channel_axis: int = -1) -> Network:
    """Average over all positions."""
    return as_network(GlobalPoolLayer("GlobalAvgPool", batch_axis, channel_axis))


def GlobalSumPool(batch_axis: int = 0, channel_axis: int = -1) -> Network:
    """Sum over all positions."""
    return as_network(GlobalPoolLayer("GlobalSumPool", batch_axis, channel_axis))


@dataclasses.dataclass(frozen=True)
class FlattenLayer(Layer):
    """Description of `Flatten`."""

    batch_axis: int
    batch_axis_out: int

    @property
    def input_axes(self) -> tuple[int, int] | None:
        """Unknown: the channels may be any axis."""
        return None

    def output_shape(self, shape: Any) -> Any:
        """Two axes, the batch at `batch_axis_out`."""
        batch = self.batch_axis % len(shape)
        rest = [n for a, n in enumerate(shape) if a != batch]
        size = -1 if any(n < 0 for n in rest) else math.prod(rest)
        return (shape[batch], size) if self.batch_axis_out % 2 == 0 else (size, shape[batch])

    def apply(self, params: Any, inputs: Any, **kwargs: Any) -> Any:
        """One row per input."""
        del params, kwargs
        rows = jnp.moveaxis(inputs, self.batch_axis, 0)
        rows = rows.reshape((rows.shape[0], -1))
        return rows if self.batch_axis_out % 2 == 0 else rows.T

    def mask(self, mask: Array, shape: Any) -> Array:
        """The mask, in rows."""
        return self.apply((), jnp.broadcast_to(mask, shape))

    def need(self, need: Need) -> Need:
        """Equal positions only: weights behind it see every position once."""
        return Need(pairs=False, own=need.own, own_pairs=False)

    def kernel(self, kernel: Kernel, **kwargs: Any) -> Kernel:
        """The mean over equal positions."""
        del kwargs
        if kernel.batch_axis % len(kernel.shape1) != self.batch_axis % len(kernel.shape1):
            raise ValueError(
                f"batch_axis={self.batch_axis}, but the inputs have their batch at axis "
                f"{kernel.batch_axis} of a shape {kernel.shape1}."
            )
        count = kernel.spatial_ndim
        total = math.prod(spatial_shape(kernel))

        def traced(array, lead, diagonal):
            if not diagonal:
                for _ in range(count):
                    array = jnp.trace(array, axis1=lead, axis2=lead + 1)
                return array / total
            return jnp.sum(array, axis=tuple(range(lead, array.ndim))) / total

        batch = kernel.batch_axis % len(kernel.shape1)
        axis = self.batch_axis_out % 2

        def hidden(mask):
            if mask is None:
                return None
            rows = jnp.moveaxis(mask, batch, 0)
            rows = jnp.all(rows.reshape(rows.shape[0], -1), axis=1)
            return rows[:, None] if axis == 0 else rows[None, :]

        changes = {} if count else {"residual": kernel.residual}
        if count == 0:
            out = kernel.replace(is_input=False)
        else:
            out = map_covariances(kernel, traced, is_input=False, **changes)
        return out.replace(
            shape1=self.output_shape(kernel.shape1), shape2=self.output_shape(kernel.shape2),
            batch_axis=axis, channel_axis=1 - axis, diagonal_spatial=False, diagonal_cov=False,
            mask1=hidden(kernel.mask1), mask2=hidden(kernel.mask2),
        )  # fmt: skip


def Flatten(batch_axis: int = 0, batch_axis_out: int = 0) -> Network:
    """One row of all channels and positions per input.

    Args:
      batch_axis: of the inputs.
      batch_axis_out: of the outputs, 0 or 1 (or -1).
    """
    if batch_axis_out not in (0, 1, -1, -2):
        raise ValueError(f"Flatten: batch_axis_out must be 0, 1, -1 or -2, got {batch_axis_out}.")
    return as_network(FlattenLayer(batch_axis, batch_axis_out))
