"""How maps of positions and of values act on the covariances of a Kernel."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from ntk._kernel import Gap, Kernel

Array = jax.Array


def own_variance(cov: Array, spatial: int, diagonal_batch: bool, diagonal: bool) -> Array:
    """Variances [N, H, W] from a covariance of one batch with itself."""
    if not diagonal_batch:
        cov = jnp.moveaxis(jnp.diagonal(cov, axis1=0, axis2=1), -1, 0)
    if not diagonal:
        for _ in range(spatial):
            cov = jnp.diagonal(cov, axis1=1, axis2=2)
    return cov


def variances(kernel: Kernel) -> tuple[Array, Array]:
    """Variances of the outputs at every position of x1 and of x2, [N, H, W]."""
    count, flat = kernel.spatial_ndim, kernel.diagonal_cov
    if kernel.cov1 is None:
        raise ValueError("the kernel holds no variances; compute it with get=None.")
    var1 = own_variance(kernel.cov1, count, kernel.diagonal_batch, flat)
    if kernel.cov2 is None:
        return var1, var1
    return var1, own_variance(kernel.cov2, count, kernel.diagonal_batch, flat)


def spread(var: Array, slot: int, lead: int, diagonal: bool) -> Array:
    """Reshapes variances [N, H, W] so that they broadcast against pairs.

    Args:
      var: [N, H, W].
      slot: 0 for the first of each pair, 1 for the second.
      lead: 2 for [N1, N2, ...], 1 for [N, ...].
      diagonal: the pairs hold only equal positions.
    """
    number, *spatial = var.shape
    outer = (number,) if lead == 1 else (number, 1) if slot == 0 else (1, number)
    if diagonal:
        return var.reshape(outer + tuple(spatial))
    inner = tuple(size if i == slot else 1 for size in spatial for i in range(2))
    return var.reshape(outer + inner)


def plain_residual(kernel: Kernel) -> Array | None:
    """The residual as an array, whatever form the kernel holds it in."""
    if not isinstance(kernel.residual, Gap):
        return kernel.residual
    var1, var2 = jax.lax.stop_gradient(variances(kernel))
    flat = kernel.diagonal_spatial
    norm = spread(jnp.sqrt(var1), 0, 2, flat) * spread(jnp.sqrt(var2), 1, 2, flat)
    return kernel.residual.value * (norm + jax.lax.stop_gradient(kernel.nngp))


def equal_positions(spatial: Sequence[int]) -> Array | None:
    """True where two positions are one, [H, H, W, W]; None without positions."""
    mask = None
    for i, size in enumerate(spatial):
        eye = jnp.eye(size, dtype=bool)
        shape = [1] * (2 * len(spatial))
        shape[2 * i] = shape[2 * i + 1] = size
        mask = eye.reshape(shape) if mask is None else mask & eye.reshape(shape)
    return mask


def same_entries(kernel: Kernel) -> Array | None:
    """Where `nngp` is known to be a variance, broadcastable to it; None when nowhere."""
    if kernel.same is None:
        return None
    if kernel.diagonal_spatial:
        return kernel.same.reshape(kernel.same.shape + (1,) * kernel.spatial_ndim)
    positions = equal_positions(_spatial(kernel))
    if positions is None:
        return kernel.same
    return kernel.same.reshape(kernel.same.shape + (1,) * positions.ndim) & positions[None, None]


def own_entries(kernel: Kernel, cov: Array) -> Array | None:
    """Where `cov1` or `cov2` holds variances; None where pairs are full in neither sense."""
    spatial = () if kernel.diagonal_cov else _spatial(kernel)
    positions = equal_positions(spatial)
    if kernel.diagonal_batch:
        return None if positions is None else positions[None]
    number = cov.shape[0]
    eye = jnp.eye(number, dtype=bool)
    inner = cov.ndim - 2
    eye = eye.reshape(eye.shape + (1,) * inner)
    return eye if positions is None else eye & positions[None, None]


def _spatial(kernel: Kernel) -> tuple[int, ...]:
    ndim = len(kernel.shape1)
    outer = (kernel.batch_axis % ndim, kernel.channel_axis % ndim)
    return tuple(size for axis, size in enumerate(kernel.shape1) if axis not in outer)


def spatial_shape(kernel: Kernel) -> tuple[int, ...]:
    """Sizes of the axes that are neither batch nor channels."""
    return _spatial(kernel)


def map_covariances(
    kernel: Kernel,
    function: Callable[[Array, int, bool], Array],
    *,
    mixes: bool = False,
    **changes: Any,
) -> Kernel:
    """Applies one linear map to every covariance.

    Args:
      kernel: where the covariances are.
      function: of an array, its number of leading batch axes, and whether it holds equal
        positions only.
      mixes: whether the map needs pairs of different positions. Where `cov1` and `cov2` hold none,
        the plan found that nobody reads them any more, and they are dropped.
      **changes: fields to change as well.
    Raises:
      ValueError: the map needs pairs that `nngp` does not hold.
    """
    mixes = mixes and kernel.spatial_ndim > 0
    if mixes and kernel.diagonal_spatial:
        raise ValueError(
            "the kernel holds only equal positions (diagonal_spatial=True), and this layer needs "
            "all pairs; compute the kernel below it with diagonal_spatial=False."
        )
    if mixes and kernel.diagonal_cov:
        kernel = kernel.replace(cov1=None, cov2=None)

    def mapped(array, lead, diagonal):
        return array if array is None or array.ndim == 0 else function(array, lead, diagonal)

    outer = 1 if kernel.diagonal_batch else 2
    changes.setdefault("residual", None)
    return kernel.replace(
        nngp=mapped(kernel.nngp, 2, kernel.diagonal_spatial),
        ntk=mapped(kernel.ntk, 2, kernel.diagonal_spatial),
        cov1=mapped(kernel.cov1, outer, kernel.diagonal_cov),
        cov2=mapped(kernel.cov2, outer, kernel.diagonal_cov),
        **changes,
    )


def settle(*arrays: Any) -> tuple[Any, ...]:
    """The arrays themselves, computed once and kept.

    Fused into what reads them, the values of a nonlinearity are evaluated anew by every reader (4
    times slower and 3 times the memory for pooled networks on a CPU). Arrays may be None.
    """
    kept = iter(_kept(tuple(a for a in arrays if a is not None)))
    return tuple(None if a is None else next(kept) for a in arrays)


@jax.custom_jvp
def _kept(arrays: tuple[Array, ...]) -> tuple[Array, ...]:
    # No fusion reaches across a loop, and one that makes no round copies nothing. The compiler
    # knows neither that it makes none (one round when a corner is NaN) nor that a round would
    # change nothing.
    corner = arrays[0][(0,) * arrays[0].ndim]

    def again(state):
        kept = tuple(jnp.where(a == a, a, jnp.asarray(jnp.nan, a.dtype)) for a in state[1])
        return jnp.zeros((), bool), kept

    return jax.lax.while_loop(lambda state: state[0], again, (corner != corner, arrays))[1]


@_kept.defjvp
def _kept_jvp(primals, tangents):
    return _kept(*primals), tangents[0]
