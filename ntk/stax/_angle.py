"""The angle between two Gaussian variables, accurate from equal to opposite, with derivatives.

Letters: K = E[u v], v1 = E[u^2], v2 = E[v^2], q = v1 v2 - K^2 >= 0, r = sqrt(q),
theta = atan2(r, K) in [0, pi], phi = atan2(r, |K|) in [0, pi/2], T = r - phi |K|.

q is data: it was carried here without cancellation, and no derivative flows through it. The
derivatives of phi and T in K, v1, v2 are written out, since through q they are 0/0 at q = 0.
"""

import jax
import jax.numpy as jnp

from ntk.stax._covariance import settle

Array = jax.Array

# Chebyshev interpolants of atan(u) / u in u^2 on [0, 1], in powers of u^2, from mpmath with 50
# digits: the errors are 2.9e-9 (10 terms) and 8.9e-19 (22 terms).
SINGLE = (
    0.9999999971605454, -0.3333327629198255, 0.19998075281148714, -0.14260016082820906,
    0.10932341501303093, -0.08349724968301601, 0.05708955593030619, -0.030351864785781172,
    0.010487649254949306, -0.0017011700640685973,
)  # fmt: skip
DOUBLE = (
    1.0, -0.3333333333333325, 0.19999999999986157, -0.14285714284820428, 0.11111111080383854,
    -0.09090908440338843, 0.07692298432985685, -0.06666572806289763, 0.05881647236717415,
    -0.05259103789485882, 0.0474370596643217, -0.042828645702794474, 0.038129809754225044,
    -0.03264116292977077, 0.0259471057039563, -0.018386836817918875, 0.011122014669752633,
    -0.005484778971809356, 0.002090633535263676, -0.0005727925781292097, 9.978410811953032e-05,
    -8.26799581733715e-06,
)  # fmt: skip


@jax.custom_jvp
def atan_in_unit(u: Array) -> Array:
    """atan(u) for -1 <= u <= 1, in arithmetic that vectorizes.

    >>> print(f"{4 * atan_in_unit(1.0):.6f}")
    3.141593
    """
    dtype = jnp.result_type(u)
    z = u * u
    terms = DOUBLE if dtype == jnp.float64 else SINGLE
    out = jnp.full_like(z, terms[-1])
    for term in terms[-2::-1]:
        out = out * z + jnp.asarray(term, dtype)
    return u * out


@atan_in_unit.defjvp
def _atan_jvp(primals, tangents):
    (u,), (du,) = primals, tangents
    return atan_in_unit(u), du / (1 + u * u)


def safe_inverse(x: Array) -> Array:
    """1 / x, and 0 where x is not positive."""
    positive = x > 0
    return jnp.where(positive, 1 / jnp.where(positive, x, 1), 0)


@jax.custom_jvp
def folded(cross: Array, var1: Array, var2: Array, q: Array) -> tuple[Array, Array]:
    """phi and T, see above; arrays that broadcast against each other."""
    root = jnp.sqrt(q)
    size = jnp.abs(cross)
    # phi / 2 has the tangent r / (sqrt(v1 v2) + |K|), which is at most 1.
    phi = 2 * atan_in_unit(root / _total(cross, var1, var2))
    # Each reader would evaluate the polynomial anew.
    (phi,) = settle(phi) if phi.ndim > 1 else (phi,)
    return phi, root - phi * size


def _total(cross: Array, var1: Array, var2: Array) -> Array:
    total = jnp.sqrt(var1) * jnp.sqrt(var2) + jnp.abs(cross)
    return jnp.maximum(total, jnp.finfo(total.dtype).tiny)


@folded.defjvp
def _folded_jvp(primals, tangents):
    cross, var1, var2, q = primals
    dcross, dvar1, dvar2, _ = tangents
    phi, rest = folded(cross, var1, var2, q)
    root = _root(cross, var1, var2, q)
    sign = jnp.where(cross >= 0, 1, -1).astype(cross.dtype)
    relative = dvar1 * safe_inverse(var1) + dvar2 * safe_inverse(var2)
    dphi = (cross * relative / 2 - dcross) * sign * safe_inverse(root)
    drest = root * relative / 2 - phi * sign * dcross
    shape = phi.shape
    return (phi, rest), (jnp.broadcast_to(dphi, shape), jnp.broadcast_to(drest, shape))


@jax.custom_jvp
def _root(cross: Array, var1: Array, var2: Array, q: Array) -> Array:
    """r, with the derivative that it has as a function of K, v1 and v2; 0 where r is 0."""
    return jnp.sqrt(q) + jnp.zeros_like(cross)


@_root.defjvp
def _root_jvp(primals, tangents):
    cross, var1, var2, q = primals
    dcross, dvar1, dvar2, _ = tangents
    root = _root(cross, var1, var2, q)
    dq = var2 * dvar1 + var1 * dvar2 - 2 * cross * dcross
    return root, jnp.broadcast_to(dq * safe_inverse(root) / 2, root.shape)


def root_of(cross: Array, var1: Array, var2: Array, q: Array) -> Array:
    """r = sqrt(v1 v2 - K^2)."""
    return _root(cross, var1, var2, q)


def size_gap(cross: Array, var1: Array, var2: Array, q: Array) -> Array:
    """sqrt(v1 v2) - |K| = q / (sqrt(v1 v2) + |K|), without a derivative."""
    cross, var1, var2, q = jax.lax.stop_gradient((cross, var1, var2, q))
    root = jnp.sqrt(q)
    return root * (root / _total(cross, var1, var2))


def live(cross: Array, var1: Array, var2: Array, q: Array) -> Array:
    """q with the derivative of v1 v2 - K^2, for smooth functions of it."""
    formula = var1 * var2 - cross * cross
    return formula + jax.lax.stop_gradient(q - formula)
