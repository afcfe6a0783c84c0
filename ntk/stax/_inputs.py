"""From two batches of inputs to the Kernel that the first layer sees."""

import jax
import jax.numpy as jnp
import numpy as np

from ntk._kernel import Kernel
from ntk.stax._covariance import equal_positions
from ntk.stax._layer import axes_of, masked

Array = jax.Array
HIGHEST = jax.lax.Precision.HIGHEST


def fingerprints(inputs: Array) -> Array:
    """Two 32-bit hashes of each input, [N, 2]: inputs with equal entries have equal hashes.

    Sums of well-mixed words do not depend on the order of the sum, so equal rows of different
    arrays agree to the bit, which no product of floats promises.
    """
    rows = jax.lax.stop_gradient(inputs).reshape(inputs.shape[0], -1)
    words = jax.lax.bitcast_convert_type(rows + 0.0, jnp.uint32)  # + 0.0 makes -0.0 equal 0.0
    words = words.reshape(words.shape[0], -1)
    if words.shape[1] == 0:
        return jnp.zeros((words.shape[0], 2), jnp.uint32)
    salts = np.random.default_rng(0).integers(0, 2**32, (2, words.shape[1]), dtype=np.uint32)

    def mixed(salt):
        # The finalizer of MurmurHash3: every input bit reaches every output bit.
        x = words ^ jnp.asarray(salt)[None, :]
        x = (x ^ (x >> 16)) * np.uint32(0x85EBCA6B)
        x = (x ^ (x >> 13)) * np.uint32(0xC2B2AE35)
        return jnp.sum(x ^ (x >> 16), axis=1, dtype=jnp.uint32)

    return jnp.stack([mixed(salts[0]), mixed(salts[1])], axis=1)


def equal_rows(first: Array, second: Array) -> Array:
    """Whether fingerprints agree, bool [N1, N2]."""
    left, right = first[:, None, :], second[None, :, :]
    return (left[..., 0] == right[..., 0]) & (left[..., 1] == right[..., 1])


def canonical(inputs: Array, batch_axis: int, channel_axis: int) -> Array:
    """Inputs as [N, spatial..., channels]."""
    batch, channel, spatial = axes_of(inputs.ndim, batch_axis, channel_axis)
    return inputs.transpose((batch,) + spatial + (channel,))


def _pair_products(first: Array, second: Array, diagonal: bool) -> Array:
    """Inner products over channels of all pairs of inputs, divided by the number of channels."""
    count = first.ndim - 2
    channels = first.shape[-1]
    if diagonal and count:
        batch = tuple(range(1, count + 1))
        dims = (((count + 1,), (count + 1,)), (batch, batch))
        out = jax.lax.dot_general(first, second, dims, precision=HIGHEST)
        out = out.transpose((count, count + 1) + tuple(range(count)))
    else:
        dims = (((count + 1,), (count + 1,)), ((), ()))
        out = jax.lax.dot_general(first, second, dims, precision=HIGHEST)
        inner = [axis for i in range(count) for axis in (1 + i, count + 2 + i)]
        out = out.transpose([0, count + 1] + inner)
    return out / channels


def _own_products(inputs: Array, diagonal: bool) -> Array:
    """Inner products over channels of the positions of each input."""
    if diagonal or inputs.ndim == 2:
        return jnp.sum(inputs * inputs, axis=-1) / inputs.shape[-1]
    return jax.vmap(lambda x: _pair_products(x[None], x[None], False)[0, 0])(inputs)


def exact_residual(first: Array, second: Array) -> Array:
    """|x|^2 |y|^2 - (x.y)^2 of each row of `first` and of `second`, relative to the angle.

    The part of y orthogonal to x is formed entry by entry, so that its error is one rounding of
    y however small it is; the difference of products loses all digits of a small angle.
    """
    square = jnp.sum(first * first, axis=-1)
    safe = jnp.where(square > 0, square, 1)
    slope = jnp.sum(first * second, axis=-1) / safe
    rest = second - slope[..., None] * first
    # Once more: the rounding of the slope left a part along x.
    rest = rest - (jnp.sum(rest * first, axis=-1) / safe)[..., None] * first
    return square * jnp.sum(rest * rest, axis=-1)


def residual_of(
    first: Array, second: Array, cross: Array, var1: Array, var2: Array, same: Array, accurate: bool
) -> Array:
    """The residual E[u^2] E[v^2] - E[u v]^2 of inputs without positions, [N1, N2].

    Pairs that are nearly parallel are computed anew from the inputs: all of them when `accurate`,
    up to 2 (N1 + N2) of them otherwise, which covers repeated inputs, antipodes and multiples.
    """
    first, second, cross, var1, var2 = jax.lax.stop_gradient((first, second, cross, var1, var2))
    rows, columns = cross.shape
    norm = var1[:, None] * var2[None, :]
    plain = jnp.maximum(norm - cross * cross, 0)
    # Below this squared sine the cancellation costs more than the target of the dtype.
    tolerance = 1e-4 if cross.dtype == jnp.float64 else 1e-2
    near = (plain <= tolerance * norm) & (norm > 0) & ~same
    scale = float(first.shape[-1]) ** 2

    def refine_some(plain):
        size = min(rows * columns, 2 * (rows + columns))
        (where,) = jnp.nonzero(near.reshape(-1), size=size, fill_value=rows * columns)
        i, j = where // columns, where % columns
        exact = exact_residual(first[jnp.minimum(i, rows - 1)], second[j]) / scale
        return plain.at[i, j].set(exact, mode="drop")

    def refine_all(plain):
        exact = jax.lax.map(
            lambda x: exact_residual(jnp.broadcast_to(x, second.shape), second) / scale, first
        )
        return jnp.where(near, exact, plain)

    refined = jax.lax.cond(
        jnp.any(near), refine_all if accurate else refine_some, lambda plain: plain, plain
    )
    return jnp.where(same, jnp.zeros((), plain.dtype), refined)


def input_kernel(
    x1: Array,
    x2: Array | None,
    *,
    batch_axis: int,
    channel_axis: int,
    with_ntk: bool,
    diagonal_batch: bool,
    diagonal_spatial: bool,
    diagonal_cov: bool,
    x1_is_x2: bool,
    mask_constant: float | None = None,
    accurate: bool = False,
    prints: tuple[Array, Array] | None = None,
) -> Kernel:
    """The Kernel of the inputs themselves.

    Args:
      x1, x2: inputs of one shape but for the batch; None stands for x1.
      batch_axis, channel_axis: where the inputs have them.
      with_ntk: whether the tangent kernel is carried.
      diagonal_batch, diagonal_spatial, diagonal_cov: as in Kernel.
      x1_is_x2: the batches are one.
      mask_constant: entries of this value are masked.
      accurate: exact angles of all nearly parallel pairs.
      prints: fingerprints of x1 and x2, when they are known.
    """
    shape1, shape2 = x1.shape, x1.shape if x2 is None else x2.shape
    batch, channel, _ = axes_of(x1.ndim, batch_axis, channel_axis)
    value1, mask1 = masked(x1, mask_constant)
    value2, mask2 = (value1, mask1) if x2 is None else masked(x2, mask_constant)
    first = canonical(value1, batch, channel)
    second = first if x2 is None else canonical(value2, batch, channel)
    hash1, hash2 = prints if prints is not None else (fingerprints(first), fingerprints(second))
    same = equal_rows(hash1, hash2)
    count = first.ndim - 2
    cross = _pair_products(first, second, diagonal_spatial)
    var1 = _own_products(first, True)
    var2 = var1 if x2 is None else _own_products(second, True)
    if diagonal_batch:
        cov1 = _own_products(first, diagonal_cov)
        cov2 = None if x2 is None else _own_products(second, diagonal_cov)
    else:
        cov1 = _pair_products(first, first, diagonal_cov)
        cov2 = None if x2 is None else _pair_products(second, second, diagonal_cov)
    known = same.reshape(same.shape + (1,) * (cross.ndim - 2))
    if count and not diagonal_spatial:
        positions = equal_positions(first.shape[1:-1])
        known = known if positions is None else known & positions[None, None]
    exact = var1.reshape((var1.shape[0], 1) + _inner(var1.shape[1:], diagonal_spatial))
    # The value only: as a function of x1 alone the covariance of equal inputs is not a variance.
    cross = cross + jax.lax.stop_gradient(
        jnp.where(known, exact - cross, jnp.zeros((), cross.dtype))
    )
    residual = None
    if count == 0 and mask1 is None:
        residual = residual_of(first, second, cross, var1, var2, same, accurate)
    kernel = Kernel(
        nngp=cross,
        ntk=jnp.zeros((), cross.dtype) if with_ntk else None,
        cov1=cov1,
        cov2=cov2,
        residual=residual,
        same=same,
        x1_is_x2=x1_is_x2,
        is_input=True,
        diagonal_batch=diagonal_batch,
        diagonal_spatial=diagonal_spatial,
        diagonal_cov=diagonal_cov,
        shape1=tuple(shape1),
        shape2=tuple(shape2),
        batch_axis=batch,
        channel_axis=channel,
    )
    if mask1 is None and mask2 is None:
        return kernel
    hidden1 = None if mask1 is None else jnp.all(mask1, axis=channel, keepdims=True)
    hidden2 = None if mask2 is None else jnp.all(mask2, axis=channel, keepdims=True)
    return kernel.mask(hidden1, hidden2)


def _inner(spatial: tuple[int, ...], diagonal: bool) -> tuple[int, ...]:
    return spatial if diagonal else tuple(n if i == 0 else 1 for n in spatial for i in range(2))
