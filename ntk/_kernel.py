"""The result of an infinite-width network on two batches of inputs, and what it says of itself."""

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp


def _static(default: Any = False) -> Any:
    return dataclasses.field(default=default, metadata={"static": True})


class Gap(NamedTuple):
    """A residual in the form that weights want: sqrt(E[u^2] E[v^2]) - E[u v], not cancelled."""

    value: jax.Array


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, eq=False)
class Kernel:
    """Covariances of the outputs of a wide network, a pytree.

    A network of inputs [N1, H, W, C] and [N2, H, W, C] has pairs of positions in the order
    [N1, N2, H, H, W, W]; with `diagonal_spatial` only equal positions, [N1, N2, H, W].

    Attributes:
      nngp: covariance of the outputs at initialization, [N1, N2, ...].
      ntk: the tangent kernel, shaped as `nngp`; a scalar 0 at the input, None when not asked for.
      cov1: covariance of the outputs on x1 with themselves: [N1, ...] with `diagonal_batch`,
        [N1, N1, ...] without.
      cov2: the same for x2; None stands for "equal to cov1".
      residual: E[u^2] E[v^2] - E[u v]^2 free of cancellation, shaped as `nngp`; None when it has
        to be recomputed. No derivative flows through it. Between layers it may be a `Gap`.
      same: whether two inputs are known to be equal, bool [N1, N2], or None.
      mask1: True where a position of x1 is masked, [N1, ..., 1], or None.
      mask2: the same for x2.
      x1_is_x2: the two batches are one.
      is_gaussian: the outputs are mean-zero Gaussian in the limit.
      is_reversed: always False; kept for readers of kernels of older programs.
      is_input: no layer has been applied yet.
      diagonal_batch: see `cov1`.
      diagonal_spatial: see above.
      diagonal_cov: `cov1` and `cov2` hold only equal positions.
      shape1: shape of the finite-width outputs on x1, channels included.
      shape2: the same for x2.
      batch_axis: of `shape1` and `shape2`.
      channel_axis: of `shape1` and `shape2`.
      depth: number of copies made by FanOut that are still to be joined.
      shared: depths of the copies from which no layer with weights separates the outputs.
    """

    nngp: Any
    ntk: Any
    cov1: Any
    cov2: Any
    residual: Any = None
    same: Any = None
    mask1: Any = None
    mask2: Any = None
    x1_is_x2: bool = _static()
    is_gaussian: bool = _static()
    is_reversed: bool = _static()
    is_input: bool = _static()
    diagonal_batch: bool = _static()
    diagonal_spatial: bool = _static()
    diagonal_cov: bool = _static()
    shape1: tuple[int, ...] = _static(())
    shape2: tuple[int, ...] = _static(())
    batch_axis: int = _static(0)
    channel_axis: int = _static(-1)
    depth: int = _static(0)
    shared: tuple[int, ...] = _static(())

    def replace(self, **changes: Any) -> "Kernel":
        """A copy with some fields changed."""
        return dataclasses.replace(self, **changes)

    def asdict(self) -> dict[str, Any]:
        """The fields by name; arrays are not copied."""
        return {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}

    def astuple(self) -> tuple[Any, ...]:
        """The fields in order; arrays are not copied."""
        return tuple(self.asdict().values())

    @property
    def spatial_ndim(self) -> int:
        """Number of axes of the finite outputs that are neither batch nor channels."""
        return len(self.shape1) - 2

    def scale(self, variance: Any) -> "Kernel":
        """The kernel of outputs multiplied by a constant whose square is `variance`."""

        def times(array, power=1):
            return None if array is None else array * variance**power

        return self.replace(
            nngp=times(self.nngp),
            ntk=times(self.ntk),
            cov1=times(self.cov1),
            cov2=times(self.cov2),
            residual=(
                Gap(times(self.residual.value))
                if isinstance(self.residual, Gap)
                else times(self.residual, 2)
            ),
        )

    def __mul__(self, factor: Any) -> "Kernel":
        """The kernel of the outputs times `factor`: covariances take its square."""
        return self.scale(factor**2)

    __rmul__ = __mul__

    def __truediv__(self, divisor: Any) -> "Kernel":
        """The kernel of the outputs divided by `divisor`."""
        return self.scale(1 / divisor**2)

    def __add__(self, shift: Any) -> "Kernel":
        """The kernel of the outputs plus an independent constant: covariances gain `shift`**2."""
        if isinstance(shift, Kernel):
            raise TypeError("Kernel + Kernel is ambiguous; use stax.FanInSum for branches.")
        square = shift**2
        return self.replace(
            nngp=self.nngp + square,
            cov1=self.cov1 + square,
            cov2=None if self.cov2 is None else self.cov2 + square,
            residual=None,
        )

    __radd__ = __add__
    __sub__ = __add__

    def __neg__(self) -> "Kernel":
        """The kernel of the outputs with the other sign, which is the same kernel."""
        return self

    __pos__ = __neg__

    def __getitem__(self, idx: Any) -> "Kernel":
        """The kernel of outputs indexed by integers, slices and `...`, as by `stax.Index`."""
        from ntk.stax._index import check_index, index_kernel

        parts = idx if isinstance(idx, tuple) else (idx,)
        check_index("Kernel[...]", parts)
        return index_kernel(self, parts)

    def dot_general(
        self, other1: Any, other2: Any, is_lhs: bool, dimension_numbers: Any
    ) -> "Kernel":
        """The kernel of outputs multiplied by constants, as by `stax.DotGeneral`.

        Args:
          other1: constant for the outputs on x1, or None for a factor of 1.
          other2: the same for x2.
          is_lhs: whether the constants are on the left of the product.
          dimension_numbers: as in jax.lax.dot_general.
        Raises:
          ValueError: only one of the constants is None, or their ranks differ.
        """
        from ntk.stax._dot_general import dot_general_kernel

        if other1 is None and other2 is None:
            return self
        if other1 is None or other2 is None or jnp.ndim(other1) != jnp.ndim(other2):
            raise ValueError(
                "Kernel.dot_general: other1 and other2 must both be None or have the same number "
                f"of axes, got {other1!r} and {other2!r}."
            )
        one = jnp.asarray(other1)
        two = one if other2 is other1 else jnp.asarray(other2)
        return dot_general_kernel(self, one, two, is_lhs, dimension_numbers)

    def reverse(self) -> "Kernel":
        """The kernel with the spatial axes of the network in reverse order."""
        order = tuple(reversed(range(self.spatial_ndim)))
        return self.transpose(order)

    def transpose(self, axes: tuple[int, ...] | None = None) -> "Kernel":
        """The kernel of outputs whose spatial axes are permuted.

        Args:
          axes: a permutation of range(spatial_ndim); None reverses, as in NumPy.
        """
        count = self.spatial_ndim
        axes = tuple(reversed(range(count))) if axes is None else tuple(axes)
        if sorted(axes) != list(range(count)):
            raise ValueError(f"Kernel.transpose: axes must permute {tuple(range(count))}: {axes}.")

        def permuted(array, diagonal):
            if array is None or array.ndim == 0:
                return array
            width = 1 if diagonal else 2
            lead = array.ndim - width * count
            order = [lead + width * axis + i for axis in axes for i in range(width)]
            return array.transpose(tuple(range(lead)) + tuple(order))

        def masked(mask):
            if mask is None:
                return None
            spatial = [a for a in range(mask.ndim) if a not in self._outer_axes()]
            order = list(range(mask.ndim))
            for slot, axis in zip(spatial, axes):
                order[slot] = spatial[axis]
            return mask.transpose(order)

        def reshaped(shape):
            spatial = [a for a in range(len(shape)) if a not in self._outer_axes()]
            new = list(shape)
            for slot, axis in zip(spatial, axes):
                new[slot] = shape[spatial[axis]]
            return tuple(new)

        return self.replace(
            nngp=permuted(self.nngp, self.diagonal_spatial),
            ntk=permuted(self.ntk, self.diagonal_spatial),
            residual=jax.tree.map(lambda r: permuted(r, self.diagonal_spatial), self.residual),
            cov1=permuted(self.cov1, self.diagonal_cov),
            cov2=permuted(self.cov2, self.diagonal_cov),
            mask1=masked(self.mask1),
            mask2=masked(self.mask2),
            shape1=reshaped(self.shape1),
            shape2=reshaped(self.shape2),
        )

    def slice(self, n1_slice: slice, n2_slice: slice) -> "Kernel":
        """The kernel of some of the inputs."""

        def cut(array, *slices):
            return None if array is None else array if array.ndim == 0 else array[slices]

        def batch(array, part):
            if array is None:
                return None
            index = [slice(None)] * array.ndim
            index[self.batch_axis] = part
            return array[tuple(index)]

        def resized(shape, part):
            count = len(range(*part.indices(shape[self.batch_axis])))
            return shape[: self.batch_axis] + (count,) + shape[self.batch_axis + 1 :]

        first = (n1_slice,) if self.diagonal_batch else (n1_slice, n1_slice)
        second = (n2_slice,) if self.diagonal_batch else (n2_slice, n2_slice)
        cov2 = self.cov1 if self.cov2 is None else self.cov2
        return self.replace(
            nngp=cut(self.nngp, n1_slice, n2_slice),
            ntk=cut(self.ntk, n1_slice, n2_slice),
            residual=jax.tree.map(lambda r: cut(r, n1_slice, n2_slice), self.residual),
            same=cut(self.same, n1_slice, n2_slice),
            cov1=cut(self.cov1, *first),
            cov2=cut(cov2, *second),
            mask1=batch(self.mask1, n1_slice),
            mask2=batch(self.mask2, n2_slice),
            shape1=resized(self.shape1, n1_slice),
            shape2=resized(self.shape2, n2_slice),
            x1_is_x2=self.x1_is_x2 and n1_slice == n2_slice,
        )

    def _outer_axes(self) -> tuple[int, int]:
        count = len(self.shape1)
        return self.batch_axis % count, self.channel_axis % count

    def mask(self, mask1: jax.Array | None, mask2: jax.Array | None) -> "Kernel":
        """The kernel of outputs that are set to zero where a mask is True.

        Args:
          mask1: bool, broadcastable to `shape1` with one channel, or None.
          mask2: the same for `shape2`.
        """
        if mask1 is None and mask2 is None:
            return self.replace(mask1=None, mask2=None)
        batch, channel = self._outer_axes()

        def keep(mask, shape):
            one = tuple(1 if axis == channel else size for axis, size in enumerate(shape))
            full = jnp.zeros(one, bool) if mask is None else jnp.broadcast_to(mask, one)
            return ~jnp.moveaxis(jnp.squeeze(full, channel), batch - (channel < batch), 0)

        keep1, keep2 = keep(mask1, self.shape1), keep(mask2, self.shape2)

        def pairs(array, left, right, outer, diagonal):
            if array is None or array.ndim == 0:
                return array
            rows, columns = left.shape[0], right.shape[0]
            spatial = left.shape[1:]
            if diagonal:
                a = left.reshape((rows,) + (1,) * (outer - 1) + spatial)
                b = right.reshape((1,) * (outer - 1) + (columns,) + spatial)
            else:
                a = left.reshape((rows,) + (1,) * (outer - 1) + _interleave(spatial, 0))
                b = right.reshape((1,) * (outer - 1) + (columns,) + _interleave(spatial, 1))
            return jnp.where(a & b, array, jnp.zeros((), array.dtype))

        outer = 1 if self.diagonal_batch else 2
        flat, cov = self.diagonal_spatial, self.diagonal_cov
        return self.replace(
            nngp=pairs(self.nngp, keep1, keep2, 2, flat),
            ntk=pairs(self.ntk, keep1, keep2, 2, flat),
            residual=jax.tree.map(lambda r: pairs(r, keep1, keep2, 2, flat), self.residual),
            cov1=pairs(self.cov1, keep1, keep1, outer, cov),
            cov2=pairs(self.cov2, keep2, keep2, outer, cov),
            mask1=~_with_channel(keep1, batch, channel),
            mask2=~_with_channel(keep2, batch, channel),
        )


def _interleave(spatial: tuple[int, ...], slot: int) -> tuple[int, ...]:
    return tuple(size if slot == i else 1 for size in spatial for i in range(2))


def _with_channel(keep: jax.Array, batch: int, channel: int) -> jax.Array:
    return jnp.expand_dims(jnp.moveaxis(keep, 0, batch - (channel < batch)), channel)
