"""Sum of the k largest absolute entries, found without sorting.

The k-th largest size is a threshold. Non-negative IEEE floats are ordered like their bit patterns,
so the threshold is the largest integer pattern that at least k entries reach, and is found a few
bits per pass. A pass is one count over the array; `jax.lax.top_k` on a CPU sorts.
"""

import jax
import jax.numpy as jnp

from lion_lyapunov._checks import check_count
from lion_lyapunov._kappa import Array, Kappa, indicator, make_kappa, working


def top_k(k: int, name: str | None = None) -> Kappa:
    """Sum of the k largest |z_i|: minimises f under |x|_inf <= 1/lam and |x|_1 <= k/lam.

    Args:
      k: number of entries that move in a step, >= 1; for arrays of at most k entries it is `l1`.
      name: shown in messages.
    """
    check_count("top_k", k=k)

    def parts(z):
        size = jnp.abs(z)
        count = min(k, z.size)
        threshold = kth_largest(size, count)
        above = size > threshold
        tied = size == threshold
        left = count - jnp.sum(above, dtype=jnp.int32)
        return size, threshold, above, tied, left

    def value(z):
        wide = working(z)
        if wide.size == 0:
            return jnp.zeros((), wide.dtype)
        size, threshold, _, _, left = parts(wide)
        above = jnp.where(size <= threshold, 0.0, size)  # a NaN stays
        return jnp.sum(above) + left.astype(wide.dtype) * threshold

    def subgradient(z):
        z = jnp.asarray(z)
        if z.size <= k:
            return jnp.sign(z)
        _, _, above, tied, left = parts(z)
        ties = jnp.sum(tied, dtype=jnp.int32)
        wide = working(z).dtype
        share = left.astype(wide) / jnp.maximum(ties, 1).astype(wide)
        weight = jnp.where(above, 1.0, jnp.where(tied, share, 0.0)).astype(z.dtype)
        # A NaN has no rank; it must show in the update rather than vanish behind the mask.
        return jnp.where(jnp.isnan(z), z, jnp.sign(z) * weight)

    def dual_norm(y):
        size = jnp.abs(working(y))
        return jnp.maximum(jnp.max(size, initial=0.0), jnp.sum(size) / k)

    def conjugate(y):
        wide = working(y)
        return indicator(dual_norm(wide), wide)

    def cast(function):
        return lambda y: function(jnp.asarray(y)).astype(jnp.asarray(y).dtype)

    return make_kappa(
        name=name or f"top_k({k})",
        value=cast(value),
        subgradient=subgradient,
        conjugate=cast(conjugate),
        project=cast(lambda y: _project(working(y), float(k))),
        conjugate_subgradient=jnp.zeros_like,
        dual_norm=cast(dual_norm),
        is_even=True,
        is_smooth=False,
        is_support=True,
        is_symmetric=True,
        tie_rule="entries tied at the k-th size share what is left of k equally",
    )


def kth_largest(size: Array, k: int) -> Array:
    """The k-th largest entry of a non-negative array, exactly, for 1 <= k <= size.size.

    Two bits are settled per pass, by three counts that XLA fuses into one read of the array.
    """
    width = {2: jnp.int16, 4: jnp.int32, 8: jnp.int64}[size.dtype.itemsize]
    bits = jax.lax.bitcast_convert_type(size, width).reshape(-1)
    pairs = 4 * size.dtype.itemsize - 1  # the sign bit is 0; below it one bit, then pairs

    def reached(pattern):
        return (jnp.sum(bits >= pattern, dtype=jnp.int32) >= k).astype(width)

    def settle(done, pattern):
        unit = jnp.left_shift(jnp.ones((), width), (2 * (pairs - 1 - done)).astype(width))
        return pattern + unit * sum(reached(pattern + digit * unit) for digit in (1, 2, 3))

    first = jnp.asarray(1 << (2 * pairs), width)
    pattern = jax.lax.fori_loop(0, pairs, settle, first * reached(first))
    return jax.lax.bitcast_convert_type(pattern, size.dtype)


def _project(y: Array, total: float) -> Array:
    """Nearest point of {|x|_inf <= 1, |x|_1 <= total}: clip(|y| - theta, 0, 1), with signs."""
    size = jnp.abs(y)
    boxed = jnp.clip(size, 0.0, 1.0)

    def excess(theta):
        return jnp.sum(jnp.clip(size - theta, 0.0, 1.0)) - total

    def halve(_, bracket):
        low, high = bracket
        middle = 0.5 * (low + high)
        above = excess(middle) > 0
        return jnp.where(above, middle, low), jnp.where(above, high, middle)

    largest = jnp.max(size, initial=0.0)
    bracket = (jnp.zeros_like(largest), largest)
    low, high = jax.lax.fori_loop(0, 60, halve, bracket)
    # On the last bracket the sum is linear in theta: one exact step ends the search.
    middle = 0.5 * (low + high)
    moving = (size > middle) & (size < 1.0 + middle)
    slope = jnp.sum(moving).astype(y.dtype)
    theta = jnp.clip(middle + excess(middle) / jnp.maximum(slope, 1.0), low, high)
    shrunk = jnp.clip(size - theta, 0.0, 1.0)
    return jnp.sign(y) * jnp.where(jnp.sum(boxed) <= total, boxed, shrunk)
