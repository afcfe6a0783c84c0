"""How far the curvature of softmax regression can bend, and when the loss is surely convex.

The Hessian is A^T (B + diag(weights^2)) A, and B, which depends on x through softmax(A x), has its
eigenvalues in an interval that depends on the size of b alone:

    b in the simplex   [-0.240409, 0.308117]
    ||b||_2 <= 1       [-5/16, 0.359117]

Both are exact for n = 2, where B has the single eigenvalue (1 - y^2) (1 - 3 y^2 + 2 beta y) / 4
with y = f_1 - f_2 and beta = b_1 - b_2, and numerical for n > 2: the same values are what an
optimiser finds for n = 3 ... 12. Deng, Li & Song (arXiv:2304.10411) prove the wider [-4, 8].
"""

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from in_context import _check
from in_context.softmax_regression._objective import prepare

Array = jax.Array
HIGHEST = jax.lax.Precision.HIGHEST
PUBLISHED = (-4.0, 8.0)  # arXiv:2304.10411, for ||b|| <= 1


def _two_row_extremes(beta: float) -> tuple[float, float]:
    """Least and largest eigenvalue of B for n = 2 over y in [-1, 1]."""
    eigenvalue = np.polymul([-1.0, 0.0, 1.0], [-3.0, 2.0 * beta, 1.0]) / 4
    critical = np.roots(np.polyder(eigenvalue)).real
    values = np.polyval(eigenvalue, critical[np.abs(critical) <= 1.0])
    return float(values.min()), float(values.max())


SIMPLEX = _two_row_extremes(1.0)
BALL = _two_row_extremes(math.sqrt(2.0))
ORIGIN = _two_row_extremes(0.0)  # b = 0: [-1/12, 1/4]
SECOND_DERIVATIVE = 2 / math.sqrt(54)  # sup over f and ||h|| = 1 of ||D^2 softmax [h, h]||


class SpectrumBounds(NamedTuple):
    """An interval that holds every eigenvalue of B, whatever x is."""

    low: Array  # scalar
    high: Array  # scalar
    in_simplex: Array  # bool: the narrower interval for the simplex applies
    published_low: float  # -4, proved for ||b|| <= 1
    published_high: float  # 8


class ConvexityCertificate(NamedTuple):
    """Whether the loss is convex for every x, and how strongly."""

    convex: Array  # bool: the Hessian is positive semidefinite everywhere
    strong_convexity: Array  # a lower bound on the least eigenvalue of the Hessian, any x
    smoothness: Array  # an upper bound on the largest absolute eigenvalue, any x
    sigma_min: Array  # least singular value of A; 0 if its columns are dependent
    published_convex: Array  # bool: what the published constant -4 certifies


def spectrum_bounds(b: Any) -> SpectrumBounds:
    """Bounds on the eigenvalues of B (see the module), for one target b.

    Args:
      b: [n]. Between the origin and the unit ball the bound is interpolated, because B is affine
        in b; outside the ball it grows linearly with ||b||.
    Raises:
      ValueError: b is not a vector or holds NaN or infinity.
    """
    if np.ndim(b) != 1:
        raise ValueError(f"spectrum_bounds: b must be a vector [n], got shape {np.shape(b)}.")
    _check.finite("spectrum_bounds", b=b)
    (b,) = _check.floating(b)
    tolerance = 4 * b.size * jnp.finfo(b.dtype).eps
    in_simplex = (jnp.min(b) >= -tolerance) & (jnp.abs(jnp.sum(b) - 1) <= tolerance)
    radius = jnp.linalg.norm(b)
    inside = jnp.minimum(radius, 1.0)
    outside = jnp.maximum(radius - 1.0, 0.0)
    # Inside, B(b) mixes B(0) and B on the sphere. Outside, B(b) = r B(b / r) - (r - 1) B(0), and
    # also B(0) - D^2 <b, softmax>; the better of the two.
    low = inside * BALL[0] + (1 - inside) * ORIGIN[0]
    low = low - outside * (ORIGIN[1] - BALL[0])
    low = jnp.maximum(low, ORIGIN[0] - radius * SECOND_DERIVATIVE)
    high = inside * BALL[1] + (1 - inside) * ORIGIN[1]
    high = high + outside * (BALL[1] - ORIGIN[0])
    high = jnp.minimum(high, ORIGIN[1] + radius * SECOND_DERIVATIVE)
    return SpectrumBounds(
        jnp.where(in_simplex, SIMPLEX[0], low).astype(b.dtype),
        jnp.where(in_simplex, SIMPLEX[1], high).astype(b.dtype),
        in_simplex,
        *PUBLISHED,
    )


def certify_convex(A: Any, b: Any, *, weights: Any = None) -> ConvexityCertificate:
    """A sufficient test that `loss(A, x, b, weights=weights)` is convex in x.

    B 1 = 0, so with A_c, the columns of A less their means, the Hessian is at least
    A^T diag(weights^2) A + low A_c^T A_c for every x; its least eigenvalue is the certificate.
    A certificate that says no does not show that the loss is not convex.

    Args:
      A: [n, d]; b: [n]; weights: [n] or None.
    Returns:
      A ConvexityCertificate; `convex` allows for rounding, relative to the size of the Hessian.
    Raises:
      ValueError: shapes disagree, or an argument that is not traced holds NaN or infinity.
    """
    A, _, b, weights = _prepared("certify_convex", A, b, weights)
    return _certify(A, b, weights)


@jax.jit
def _certify(A: Array, b: Array, weights: Array | None) -> ConvexityCertificate:
    bounds = spectrum_bounds(b)
    centred = A - jnp.mean(A, axis=0, keepdims=True)
    spread = jnp.matmul(centred.T, centred, precision=HIGHEST)
    ridge = jnp.zeros_like(spread)
    if weights is not None:
        weighted = weights[:, None] * A
        ridge = jnp.matmul(weighted.T, weighted, precision=HIGHEST)
    lowest = jnp.linalg.eigvalsh(ridge + bounds.low * spread)
    published = jnp.linalg.eigvalsh(ridge + PUBLISHED[0] * spread)
    highest = jnp.linalg.eigvalsh(ridge + bounds.high * spread)
    singular = jnp.linalg.svd(A, compute_uv=False)
    sigma_min = singular[-1] if A.shape[0] >= A.shape[1] else jnp.zeros((), A.dtype)
    rounding = A.shape[1] * jnp.finfo(A.dtype).eps
    slack = rounding * jnp.max(jnp.abs(highest))
    return ConvexityCertificate(
        convex=lowest[0] >= -slack,
        strong_convexity=lowest[0],
        smoothness=jnp.maximum(highest[-1], -lowest[0]),
        sigma_min=sigma_min,
        published_convex=published[0] >= -slack,
    )


def safe_learning_rate(A: Any, b: Any, *, weights: Any = None) -> Array:
    """1 / smoothness: gradient descent with it lowers the loss at every step.

    Never smaller than 1 / (0.36 ||A||^2) for ||b|| <= 1 and no weights. For a constant loss
    (equal rows of A) any step is safe and the answer is infinite.
    """
    return 1 / certify_convex(A, b, weights=weights).smoothness


def convex_weights(A: Any, b: Any, *, strong_convexity: float = 0.0) -> Array:
    """The uniform weights [n] that make the loss strongly convex by the sharp constant.

    weights^2 = -low + strong_convexity / sigma_min(A)^2, with `low` of `spectrum_bounds`; the
    published constant would put 4 in place of -low, which is at most 5/16 for ||b|| <= 1.

    Raises:
      ValueError: strong_convexity > 0 is asked for and the columns of A are dependent.
    """
    A, _, b, _ = _prepared("convex_weights", A, b, None)
    _check.number("convex_weights", low=0.0, strong_convexity=strong_convexity)
    square = -spectrum_bounds(b).low
    if strong_convexity > 0:
        certificate = certify_convex(A, b)
        rounding = max(A.shape) * jnp.finfo(A.dtype).eps * jnp.linalg.norm(A)
        if not _check.is_traced(A) and float(certificate.sigma_min) <= float(rounding):
            raise ValueError(
                "convex_weights: A must have independent columns for strong_convexity > 0, "
                f"its least singular value is {float(certificate.sigma_min):.3g}; "
                "drop dependent columns or ask for strong_convexity=0."
            )
        square = square + strong_convexity / certificate.sigma_min**2
    return jnp.full(b.shape, jnp.sqrt(square), A.dtype)


def _prepared(caller: str, A: Any, b: Any, weights: Any) -> tuple[Array, ...]:
    columns = np.shape(A)[1] if np.ndim(A) == 2 else 0
    return prepare(caller, A, jnp.zeros(columns, jnp.asarray(A).dtype), b, weights)
