"""Functions of a kernel matrix through its eigenvectors, right where eigenvalues vanish or meet."""

import functools

import jax
import jax.numpy as jnp

Array = jax.Array
HIGHEST = jax.lax.Precision.HIGHEST


def null_tolerance(eigenvalues: Array) -> Array:
    """Below this an eigenvalue cannot be told from zero."""
    count = eigenvalues.shape[-1]
    eps = jnp.finfo(eigenvalues.dtype).eps
    return max(8.0, count**0.5) * eps * jnp.max(jnp.abs(eigenvalues), axis=-1)


def decay(eigenvalues: Array, tau: Array) -> Array:
    """exp(-eigenvalue tau): what is left of an error after time tau; 1 at eigenvalue 0."""
    clipped, tau = _pair(eigenvalues, tau)
    finite = jnp.isfinite(tau)
    left = jnp.exp(-clipped * jnp.where(finite, tau, 0.0))
    return jnp.where(finite, left, jnp.where(clipped > 0, 0.0, 1.0))


def gain(eigenvalues: Array, tau: Array) -> Array:
    """(1 - exp(-eigenvalue tau)) / eigenvalue: tau at eigenvalue 0, its inverse at tau = inf.

    At eigenvalue 0 and tau = inf the limit is infinite; 0 is returned, as in a pseudo-inverse.
    """
    clipped, tau = _pair(eigenvalues, tau)
    finite = jnp.isfinite(tau)
    safe_tau = jnp.where(finite, tau, 0.0)
    positive = clipped > 0
    safe = jnp.where(positive, clipped, 1.0)
    grown = jnp.where(finite, -jnp.expm1(-safe * safe_tau), 1.0) / safe
    return jnp.where(positive, grown, safe_tau)


def _pair(eigenvalues: Array, tau: Array) -> tuple[Array, Array]:
    """Eigenvalues with those at the level of rounding set to 0; tau with an axis to pair."""
    small = eigenvalues <= null_tolerance(eigenvalues)[..., None]
    clipped = jnp.where(small, 0.0, eigenvalues)
    times = jnp.asarray(tau, clipped.dtype)[..., None]
    shape = jnp.broadcast_shapes(clipped.shape, times.shape)
    return jnp.broadcast_to(clipped, shape), jnp.broadcast_to(times, shape)


def scale_rows(scale: Array, matrix: Array) -> Array:
    """diag(scale) @ matrix for scales [..., n] and one matrix [n, c]."""
    return jnp.einsum("...n,nc->...nc", scale, matrix)


def scale_columns(matrix: Array, scale: Array) -> Array:
    """matrix @ diag(scale) for one matrix [m, n] and scales [..., n]."""
    return jnp.einsum("mn,...n->...mn", matrix, scale)


FUNCTIONS = {"decay": decay, "gain": gain}


def _slopes(kind: str, values: Array, tau: Array) -> Array:
    """Divided differences (f(a) - f(b)) / (a - b) of a spectral function, [..., n, n]."""
    f = FUNCTIONS[kind](values, tau)
    gap = values[:, None] - values[None, :]
    near = jnp.abs(gap) <= 1e-5 * (jnp.abs(values[:, None]) + jnp.abs(values[None, :]))
    near |= gap == 0
    middle = 0.5 * (values[:, None] + values[None, :])
    tau = jnp.asarray(tau, values.dtype)[..., None, None]
    tau = jnp.broadcast_to(tau, (*tau.shape[:-2], *middle.shape))
    slope = _derivative(kind, jnp.broadcast_to(middle, tau.shape), tau)
    safe = jnp.broadcast_to(jnp.where(near, 1.0, gap), slope.shape)
    return jnp.where(near, slope, (f[..., :, None] - f[..., None, :]) / safe)


def _derivative(kind: str, value: Array, tau: Array) -> Array:
    """df/d(eigenvalue), for the divided differences of equal eigenvalues."""
    finite = jnp.isfinite(tau)
    time = jnp.where(finite, tau, 0.0)
    z = jnp.maximum(value, 0.0) * time
    left = jnp.where(finite, jnp.exp(-z), jnp.where(value > 0, 0.0, 1.0))
    if kind == "decay":
        return -time * left
    # (exp(-z)(1 + z) - 1) / value^2 by its series where the digits cancel
    small = z < 1e-2
    safe = jnp.where(value > 0, value, 1.0)
    series = -(time**2) * (0.5 - z / 3 + z**2 / 8 - z**3 / 30 + z**4 / 144)
    exact = (
        jnp.where(finite, time, 0.0) * left - jnp.where(finite, -jnp.expm1(-z), 1.0) / safe
    ) / (safe)
    exact = jnp.where(finite | (value > 0), exact, 0.0)
    return jnp.where(small & finite, series, exact)


@functools.partial(jax.custom_jvp, nondiff_argnums=(0,))
def spectral_apply(
    kind: str, kernel: Array, values: Array, vectors: Array, right: Array, tau: Array
) -> Array:
    """f(kernel) @ right for f = "decay" or "gain" at times tau.

    Differentiable in `kernel`, `right` and `tau`, also where eigenvalues coincide: the derivative
    goes through divided differences (Daleckii and Krein), not through those of eigenvectors.

    Args:
      kernel: symmetric [n, n].
      values, vectors: its eigendecomposition, treated as known.
      right: [n, c].
      tau: times, any shape.
    Returns:
      [*tau.shape, n, c].
    """
    modes = jnp.matmul(vectors.T, right, precision=HIGHEST)
    scaled = scale_rows(FUNCTIONS[kind](values, tau), modes)
    return jnp.matmul(vectors, scaled, precision=HIGHEST)


@spectral_apply.defjvp
def _spectral_apply_jvp(kind, primals, tangents):
    kernel, values, vectors, right, tau = primals
    d_kernel, _, _, d_right, d_tau = tangents
    matmul = functools.partial(jnp.matmul, precision=HIGHEST)
    out = spectral_apply(kind, kernel, values, vectors, right, tau)
    modes = matmul(vectors.T, right)
    moved = matmul(matmul(vectors.T, 0.5 * (d_kernel + d_kernel.T)), vectors)
    change = matmul(jnp.einsum("...ij,ij->...ij", _slopes(kind, values, tau), moved), modes)
    change = change + scale_rows(FUNCTIONS[kind](values, tau), matmul(vectors.T, d_right))
    left = decay(values, tau)
    speed = (
        scale_columns(-jnp.maximum(values, 0.0)[None], left)[..., 0, :] if kind == "decay" else left
    )
    d_time = jnp.where(jnp.isfinite(tau), d_tau, 0.0)
    change = change + scale_rows(speed * d_time[..., None], modes)
    return out, matmul(vectors, change)


def quiet_null(cross: Array, values: Array) -> Array:
    """Cross terms k(test, train) @ vectors, with what is rounding in null directions removed.

    A direction in which the training kernel vanishes carries nothing to any test input. What is
    computed there is rounding, and would grow with time.
    """
    scale = jnp.max(jnp.abs(cross), initial=0.0)
    noise = 64.0 * values.shape[-1] ** 0.5 * jnp.finfo(cross.dtype).eps * scale
    null = values <= null_tolerance(values)
    return jnp.where(null[None] & (jnp.abs(cross) <= noise), 0.0, cross)
