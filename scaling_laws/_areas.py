"""The two areas of a learning-rate schedule, in O(T), three ways."""

import jax
import jax.numpy as jnp
import numpy as np

BLOCK = 32  # inner products of 32 keep a CPU's vector units busy; deeper blocks only add work


def learning_rate_areas(learning_rates, *, decay=0.999, method="blocked"):
    """Forward area S1 and annealing area S2 after every step of a schedule.

    S1[s] = sum_{i<=s} eta_i, and S2[s] = sum_{i=1..s} m_i with m_0 = 0 and
    m_i = decay * m_{i-1} + (eta_{i-1} - eta_i). Index s is the area after the update that used
    `learning_rates[s]`, so S1[0] = eta_0 and S2[0] = 0. The schedule is taken as it is given,
    warm-up included: a rising rate makes S2 negative. Both sums commute, so S2 is computed as the
    exponentially weighted deficit sum_{k<=s} decay^(s-k) (eta_0 - eta_k), where nothing cancels.

    Args:
      learning_rates: [steps], the rate of every step. NumPy arrays and lists are computed in
        float64 (float32 arrays in float32) and come back as NumPy; JAX arrays keep their dtype.
      decay: lambda, in (0, 1); may be traced, and both areas are differentiable in it.
      method: "blocked", inner products of 32 steps and a scan over blocks by recursion, the
        fastest on CPU and accelerators; "scan", the recursion as it stands; "associative", an
        associative scan.
    Returns:
      (S1, S2), each [steps].
    Raises:
      ValueError: `learning_rates` is not a one-dimensional array of finite numbers, `decay` is
        outside (0, 1), or `method` is unknown.
    Reference: Tissue, Wang & Wang 2024, arXiv:2408.11029.

    >>> s1, s2 = learning_rate_areas([3.0, 3.0, 2.0, 1.0], decay=0.5)
    >>> s1, s2
    (array([3., 6., 8., 9.]), array([0. , 0. , 1. , 2.5]))
    """
    if method not in FILTERS:
        raise ValueError(
            f"learning_rate_areas: method must be one of {sorted(FILTERS)}, got {method!r}."
        )
    if not isinstance(decay, jax.Array) and not 0.0 < float(decay) < 1.0:
        raise ValueError(f"learning_rate_areas: decay must be in (0, 1), got {decay!r}.")
    traced = isinstance(learning_rates, jax.Array) or isinstance(decay, jax.Array)
    if np.ndim(learning_rates) != 1 or np.size(learning_rates) == 0:
        raise ValueError(
            "learning_rate_areas: learning_rates must be the rate of every step, shape [steps], "
            f"got shape {np.shape(learning_rates)}."
        )
    if traced:
        return _areas(jnp.asarray(learning_rates), decay, method=method)
    rates = np.asarray(learning_rates)
    rates = rates if rates.dtype == np.float32 else rates.astype(np.float64)
    if not np.all(np.isfinite(rates)):
        where = int(np.flatnonzero(~np.isfinite(rates))[0])
        raise ValueError(
            f"learning_rate_areas: learning_rates[{where}] is {rates[where]}; rebuild the schedule "
            "with scaling_laws.curves before asking for its areas."
        )
    with jax.enable_x64(True):
        first, second = _areas(jnp.asarray(rates), decay, method=method)
        return np.asarray(first), np.asarray(second)


def piecewise_areas(knots, rates, *, decay=0.999):
    """Exact areas at the knots of a piecewise linear schedule, in O(knots).

    Args:
      knots: increasing integers [knots]; the rate is `rates[j]` at step `knots[j]`, linear in
        between. The first must be 0; a cliff is two knots one step apart.
      rates: [knots].
      decay: lambda, in (0, 1); may be traced. The limit 0 is handled (no logarithm of it).
    Returns:
      (S1, S2) at the knots, each [knots], as `learning_rate_areas` has them there.
    Raises:
      ValueError: the knots do not start at 0 or do not increase.

    >>> piecewise_areas([0, 1, 3], [3.0, 3.0, 1.0], decay=0.5)
    (array([3., 6., 9.]), array([0. , 0. , 2.5]))
    """
    knots = np.asarray(knots)
    if knots.ndim != 1 or knots[0] != 0 or np.any(np.diff(knots) < 1):
        raise ValueError(f"piecewise_areas: knots must increase from 0, got {knots.tolist()}.")
    traced = isinstance(rates, jax.Array) or isinstance(decay, jax.Array)
    with jax.enable_x64(True):
        rates = jnp.asarray(rates, dtype=float)
        lengths = jnp.asarray(np.diff(knots), dtype=float)
        first, second = _piecewise(lengths, rates, jnp.asarray(decay, dtype=float))
        return (first, second) if traced else (np.asarray(first), np.asarray(second))


def _piecewise(lengths, rates, decay):
    rise = rates[1:] - rates[:-1]
    first = rates[0] + jnp.concatenate(
        [jnp.zeros(1), jnp.cumsum(lengths * rates[:-1] + (lengths + 1) / 2 * rise)]
    )
    drop = -rise / lengths
    kept = decay**lengths
    # 1 - decay^n loses digits when decay^n is close to 1; expm1 does not.
    lost = -jnp.expm1(lengths * jnp.log(decay))
    far = 1 / (1 - decay)

    def piece(carry, inputs):
        momentum, area = carry
        kept, lost, drop, length = inputs
        area = area + momentum * decay * lost * far + drop * far * (length - decay * lost * far)
        momentum = kept * momentum + drop * lost * far
        return (momentum, area), area

    start = (jnp.zeros_like(decay), jnp.zeros_like(decay))
    _, second = jax.lax.scan(piece, start, (kept, lost, drop, lengths))
    return first, jnp.concatenate([jnp.zeros(1), second])


def _areas_impl(rates, decay, *, method):
    decay = jnp.asarray(decay, dtype=rates.dtype)
    one = jnp.ones((), rates.dtype)
    # The plain sum runs blocked whatever the method: a scan would round once per step.
    first = _filter_blocked(rates, one)
    return first, FILTERS[method](rates[0] - rates, decay)


def _filter_scan(values, decay):
    def step(carry, value):
        carry = decay * carry + value
        return carry, carry

    return jax.lax.scan(step, jnp.zeros((), values.dtype), values)[1]


def _filter_associative(values, decay):
    def combine(left, right):
        return left[0] * right[0], right[0] * left[1] + right[1]

    return jax.lax.associative_scan(combine, (jnp.full_like(values, decay), values))[1]


def _filter_blocked(values, decay):
    """y_i = decay * y_{i-1} + x_i: dense products inside blocks, the same filter between them."""
    (steps,) = values.shape
    if steps <= BLOCK:
        return _toeplitz(decay, steps) @ values
    blocks = -(-steps // BLOCK)
    rows = jnp.pad(values, (0, blocks * BLOCK - steps)).reshape(blocks, BLOCK)
    local = jnp.matmul(rows, _toeplitz(decay, BLOCK).T, precision=jax.lax.Precision.HIGHEST)
    carried = _filter_blocked(local[:, -1], decay**BLOCK)
    before = jnp.concatenate([jnp.zeros((1,), values.dtype), carried[:-1]])
    fading = decay ** jnp.arange(1, BLOCK + 1, dtype=values.dtype)
    return (local + before[:, None] * fading[None, :]).reshape(-1)[:steps]


def _toeplitz(decay, size):
    lag = np.arange(size)[:, None] - np.arange(size)[None, :]
    powers = decay ** jnp.asarray(np.maximum(lag, 0), dtype=decay.dtype)
    return jnp.where(lag >= 0, powers, 0.0)


FILTERS = {
    "blocked": _filter_blocked,
    "scan": _filter_scan,
    "associative": _filter_associative,
}
_areas = jax.jit(_areas_impl, static_argnames="method")
