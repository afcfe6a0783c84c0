"""Constant linear maps of positions: `DotGeneral`."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from ntk._kernel import Kernel
from ntk.stax._kernel_fn import as_network
from ntk.stax._layer import Layer, Need, Network, check_axes, with_size
from ntk.stax._pool import pairs_if_read

Array = jax.Array
Dims = Any  # ((contracted left, contracted right), (along left, along right)), as in jax.lax


def _own_and_other(dims: Dims, is_lhs: bool) -> tuple[list[int], list[int], list[int], list[int]]:
    """Contracted and common axes of the inputs, then those of the constant."""
    own, other = (1, 0) if is_lhs else (0, 1)
    return list(dims[0][own]), list(dims[1][own]), list(dims[0][other]), list(dims[1][other])


def output_axes(ndim: int, other_ndim: int, is_lhs: bool, dims: Dims) -> list[int | None]:
    """Which axis of the inputs each axis of the product is; None for one of the constant."""
    contracted, along, other_contracted, other_along = _own_and_other(dims, is_lhs)
    free: list[int | None] = [a for a in range(ndim) if a not in contracted + along]
    new: list[int | None] = [None] * (other_ndim - len(other_contracted) - len(other_along))
    return [*along, *(new + free if is_lhs else free + new)]


def dot_general_kernel(
    kernel: Kernel, other1: Array, other2: Array, is_lhs: bool, dims: Dims
) -> Kernel:
    """The kernel of jax.lax.dot_general of x1 with `other1`, and of x2 with `other2`.

    Args:
      kernel: of the inputs.
      other1, other2: constants of one rank.
      is_lhs: whether the constants are on the left.
      dims: as in jax.lax.dot_general. The batch may be among the axes, the channels may not; a
        contracted batch is gone from the arrays of the result.
    Raises:
      NotImplementedError: `dims` touch the channels.
      ValueError: the kernel lacks the pairs that are contracted.
    """
    ndim, other_ndim = len(kernel.shape1), jnp.ndim(other1)
    dims = tuple(
        tuple(
            tuple(int(a) % (other_ndim if (side == 0) == is_lhs else ndim) for a in axes)
            for side, axes in enumerate(pair)
        )
        for pair in dims
    )
    contracted, along, other_contracted, other_along = _own_and_other(dims, is_lhs)
    batch, channel = kernel.batch_axis % ndim, kernel.channel_axis % ndim
    spatial = [a for a in range(ndim) if a not in (batch, channel)]
    if channel in contracted + along:
        raise NotImplementedError(
            f"dimension_numbers={dims} touch the channels (axis {channel}), which are infinitely "
            "many; use Dense or Conv to mix channels."
        )
    if batch in contracted and kernel.diagonal_batch:
        raise ValueError("a contraction over the batch needs diagonal_batch=False.")
    if set(contracted) & set(spatial) and kernel.diagonal_spatial:
        raise ValueError(
            "the kernel holds only equal positions (diagonal_spatial=True), and this product needs "
            "all pairs; compute the kernel below it with diagonal_spatial=False."
        )
    if set(contracted) & set(spatial) and kernel.diagonal_cov:
        kernel = kernel.replace(cov1=None, cov2=None)
    order = output_axes(ndim, other_ndim, is_lhs, dims)
    # Names of axes: (axis of the inputs, 0 or 1 for the first or second of the pair), and the same
    # for axes of the constant alone.
    place = dict(zip(other_contracted + other_along, contracted + along))

    def mapped(array: Array | None, lead: int, flat: bool, first: Array, second: Array) -> Any:
        if array is None or array.ndim == 0:
            return array
        letters: dict[Any, int] = {}

        def name(kind, axis, side):
            single = (flat and axis != batch) if kind == "x" else flat
            single = single or (kind == "x" and axis == batch and lead == 1)
            return letters.setdefault((kind, axis, 0 if single else side), len(letters))

        def constant(side):
            return [
                name("x", place[a], side) if a in place else name("c", a, side)
                for a in range(other_ndim)
            ]

        sides = (0,) if lead == 1 else (0, 1)
        inner = (0,) if flat else (0, 1)
        own = [name("x", batch, s) for s in sides]
        own += [name("x", a, s) for a in spatial for s in inner]
        out = [name("x", batch, s) for s in sides] if batch not in contracted else []
        new = iter([a for a in range(other_ndim) if a not in place])
        for axis in order:
            if axis is None:
                fresh = next(new)
                out += [name("c", fresh, s) for s in inner]
            elif axis not in (batch, channel):
                out += [name("x", axis, s) for s in inner]
        first, second = (o.astype(array.dtype) for o in (first, second))
        return jnp.einsum(first, constant(0), array, own, second, constant(1), out,
                          precision="highest", optimize=True)  # fmt: skip

    outer = 1 if kernel.diagonal_batch else 2
    touched = batch in contracted + along

    def shape(old, other):
        args = (other, jax.ShapeDtypeStruct(old, other.dtype))
        args = args if is_lhs else args[::-1]
        return jax.eval_shape(lambda a, b: lax.dot_general(a, b, dims), *args).shape

    left = [a for a in order if a not in (batch, channel)]
    return kernel.replace(
        nngp=mapped(kernel.nngp, 2, kernel.diagonal_spatial, other1, other2),
        ntk=mapped(kernel.ntk, 2, kernel.diagonal_spatial, other1, other2),
        cov1=mapped(kernel.cov1, outer, kernel.diagonal_cov, other1, other1),
        cov2=mapped(kernel.cov2, outer, kernel.diagonal_cov, other2, other2),
        residual=None,
        same=_still_same(kernel, other1 is other2, touched),
        is_input=False,
        mask1=None,
        mask2=None,
        diagonal_spatial=kernel.diagonal_spatial and bool(left),
        diagonal_cov=kernel.diagonal_cov and bool(left),
        shape1=shape(kernel.shape1, other1),
        shape2=shape(kernel.shape2, other2),
        batch_axis=-1 if batch in contracted else order.index(batch),
        channel_axis=order.index(channel),
    )


def _still_same(kernel: Kernel, one_constant: bool, by_input: bool) -> Array | None:
    """Where products of equal inputs are equal: only of an input with itself when `by_input`."""
    if kernel.same is None or not one_constant or (by_input and not kernel.x1_is_x2):
        return None
    return kernel.same & jnp.eye(*kernel.same.shape, dtype=bool) if by_input else kernel.same


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
    def _contracted(self) -> tuple[int, ...]:
        """Axes of the inputs that are contracted."""
        return tuple(self.dims[0][0 if self.inputs_left else 1])

    @property
    def mixes_batch(self) -> bool:  # pyright: ignore[reportIncompatibleVariableOverride]
        """Whether inputs are summed over the batch."""
        return self.batch_axis in self._contracted

    def apply(self, params: Any, inputs: Any, **kwargs: Any) -> Any:
        """jax.lax.dot_general with the constant."""
        del params, kwargs
        if self.constant is None:
            return inputs
        constant = jnp.asarray(self.constant, inputs.dtype)
        pair = (inputs, constant) if self.inputs_left else (constant, inputs)
        return lax.dot_general(*pair, self.dims, precision=self.precision)

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
        order = output_axes(len(shape), jnp.ndim(self.constant), not self.inputs_left, self.dims)
        return tuple(shape[a] if isinstance(a, int) else n for a, n in zip(order, out))

    def mask(self, mask: Array, shape: Any) -> Array | None:
        """Masked where everything that an entry reads is masked."""
        if self.constant is None:
            return mask
        one = with_size(shape, self.channel_axis, mask.shape[self.channel_axis])
        keep = (~jnp.broadcast_to(mask, one)).astype(jnp.float32)
        read = jnp.asarray(jnp.asarray(self.constant) != 0, jnp.float32)
        pair = (keep, read) if self.inputs_left else (read, keep)
        return lax.dot_general(*pair, self.dims) == 0

    def need(self, need: Need) -> Need:
        """All pairs, when positions are summed."""
        summed: Sequence[int] = [a for a in self._contracted if a != self.batch_axis]
        return pairs_if_read(need) if summed else need

    def kernel(self, kernel: Kernel, **kwargs: Any) -> Kernel:
        """The map, on both members of every pair."""
        del kwargs
        if self.constant is None:
            return kernel
        check_axes(kernel, self.batch_axis, self.channel_axis)
        constant = jnp.asarray(self.constant, kernel.nngp.dtype)
        if constant.ndim == 0:
            return kernel.scale(constant**2).replace(is_input=False)
        masks = {
            f"mask{side}": None if mask is None else self.mask(mask, shape)
            for side, mask, shape in (
                (1, kernel.mask1, kernel.shape1),
                (2, kernel.mask2, kernel.shape2),
            )
        }
        out = dot_general_kernel(kernel, constant, constant, not self.inputs_left, self.dims)
        return out.replace(**masks)


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
      batch_axis: of the inputs; when it is contracted, no layer can follow.
      channel_axis: of the inputs; a kernel needs it untouched.
    """
    if lhs is not None and rhs is not None:
        raise ValueError("DotGeneral: give lhs or rhs, not both.")
    constant = lhs if rhs is None else rhs
    dims = tuple(tuple(tuple(axes) for axes in pair) for pair in dimension_numbers)
    return as_network(
        DotGeneralLayer(constant, lhs is None, dims, precision, batch_axis, channel_axis)
    )
