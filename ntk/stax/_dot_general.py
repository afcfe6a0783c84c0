"""Constant linear maps of positions: `DotGeneral`."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from ntk._kernel import Kernel
from ntk.stax._covariance import map_covariances, on_positions
from ntk.stax._kernel_fn import as_network
from ntk.stax._layer import Layer, Need, Network, axes_of, check_axes
from ntk.stax._pool import pairs_if_read

Array = jax.Array


@dataclasses.dataclass(frozen=True, eq=False)
class DotGeneralLayer(Layer):
    """Description of `DotGeneral`."""

    constant: Any
    inputs_left: bool
    dims: Any
    precision: Any
    batch_axis: int
    channel_axis: int
    repeatable = False

    @property
    def input_axes(self) -> tuple[int, int]:
        """Batch and channel axis of the inputs."""
        return self.batch_axis, self.channel_axis

    @property
    def _own(self) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """Axes of the inputs that are contracted, and that run along axes of the constant."""
        side = 0 if self.inputs_left else 1
        return tuple(self.dims[0][side]), tuple(self.dims[1][side])

    @property
    def mixes_batch(self) -> bool:  # pyright: ignore[reportIncompatibleVariableOverride]
        """Whether the constant has an axis for the batch."""
        return any(self.batch_axis in axes for axes in self._own)

    def apply(self, params: Any, inputs: Any, **kwargs: Any) -> Any:
        """jax.lax.dot_general with the constant."""
        del params, kwargs
        if self.constant is None:
            return inputs
        return self._dot(inputs, self.dims)

    def _dot(self, inputs: Array, dims: Any) -> Array:
        constant = jnp.asarray(self.constant, inputs.dtype)
        pair = (inputs, constant) if self.inputs_left else (constant, inputs)
        return lax.dot_general(*pair, dims, precision=self.precision)

    def output_shape(self, shape: Any) -> Any:
        """The shape of the product."""
        if self.constant is None:
            return shape
        # An unknown batch is traced as one input and put back.
        concrete = tuple(1 if n is None or n < 0 else n for n in shape)
        out = jax.eval_shape(
            lambda x: self.apply((), x), jax.ShapeDtypeStruct(concrete, jnp.float32)
        ).shape
        if concrete == tuple(shape):
            return out
        order = self._order(len(shape))
        return tuple(shape[a] if isinstance(a, int) else n for a, n in zip(order, out))

    def _order(self, ndim: int) -> list[Any]:
        """Which axis of the inputs each axis of the outputs is; None for one of the constant."""
        contracted, along = self._own
        free = [a for a in range(ndim) if a not in contracted and a not in along]
        taken = len(self.dims[0][0]) + len(self.dims[1][0])
        new = [None] * (jnp.ndim(self.constant) - taken)
        return list(along) + (free + new if self.inputs_left else new + free)

    def need(self, need: Need) -> Need:
        """All pairs, but for a number."""
        if self.constant is None or jnp.ndim(self.constant) == 0:
            return need
        return pairs_if_read(need)

    def kernel(self, kernel: Kernel, **kwargs: Any) -> Kernel:
        """The map, on both members of every pair."""
        del kwargs
        if self.constant is None:
            return kernel
        check_axes(kernel, self.batch_axis, self.channel_axis)
        ndim = len(kernel.shape1)
        batch, channel, spatial = axes_of(ndim, self.batch_axis, self.channel_axis)
        contracted, along = self._own
        if channel in contracted + along:
            raise NotImplementedError(
                f"dimension_numbers={self.dims} touch the channels (axis {channel}), which are "
                "infinitely many; use Dense or Conv to mix channels."
            )
        if batch in contracted:
            raise NotImplementedError(
                "a contraction over the batch leaves no pairs of inputs; apply it to the kernel."
            )
        if jnp.ndim(self.constant) == 0:
            return kernel.scale(jnp.asarray(self.constant, kernel.nngp.dtype) ** 2).replace(
                is_input=False
            )
        with_batch = batch in along
        if with_batch and kernel.diagonal_batch:
            raise ValueError("the constant has a batch axis; call with diagonal_batch=False.")
        field = ((batch,) if with_batch else ()) + spatial
        names = {axis: i for i, axis in enumerate(field)}
        side = 0 if self.inputs_left else 1

        def renamed(pair):
            own = tuple(names[a] for a in pair[side])
            other = tuple(pair[1 - side])
            return (own, other) if side == 0 else (other, own)

        dims = (renamed(self.dims[0]), renamed(self.dims[1]))
        order = [a for a in self._order(ndim) if a != channel and (with_batch or a != batch)]

        def function(x):
            out = self._dot(x, dims)
            return jnp.moveaxis(out, order.index(batch), 0) if with_batch else out

        def mapped(array, lead, diagonal):
            del diagonal
            outer = 0 if with_batch else lead
            return on_positions(array, outer, len(field), function)

        full = self._order(ndim)
        return map_covariances(
            kernel, mapped, mixes=True, is_input=False, mask1=None, mask2=None, same=None,
            shape1=self.output_shape(kernel.shape1), shape2=self.output_shape(kernel.shape2),
            batch_axis=full.index(batch), channel_axis=full.index(channel),
        )  # fmt: skip


def DotGeneral(
    *,
    lhs: Any = None,
    rhs: Any = None,
    dimension_numbers: Any = (((), ()), ((), ())),
    precision: Any = None,
    batch_axis: int = 0,
    channel_axis: int = -1,
) -> Network:
    """A constant on the left or on the right of jax.lax.dot_general.

    Args:
      lhs: constant on the left; None when the inputs are there.
      rhs: constant on the right; None when the inputs are there.
      dimension_numbers: as in jax.lax.dot_general.
      precision: as in jax.lax.dot_general.
      batch_axis: of the inputs.
      channel_axis: of the inputs; a kernel needs it untouched.
    """
    if lhs is not None and rhs is not None:
        raise ValueError("DotGeneral: give lhs or rhs, not both.")
    constant = lhs if rhs is None else rhs
    dims = tuple(tuple(tuple(axes) for axes in pair) for pair in dimension_numbers)
    return as_network(
        DotGeneralLayer(constant, lhs is None, dims, precision, batch_axis, channel_axis)
    )
