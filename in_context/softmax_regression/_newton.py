"""Damped Newton for softmax regression from several starts, with a certificate.

Softmax regression is not convex, also under a weak regulariser: two local minima are easy to meet.
So the answer says how it was won: whether the loss is convex everywhere (then the minimum is the
global one), and if not, which distinct local minima the starts have found.
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from in_context import _check
from in_context.softmax_regression import _objective as objective
from in_context.softmax_regression._convexity import certify_convex
from in_context.softmax_regression._direction import newton_direction

Array = jax.Array
HIGHEST = jax.lax.Precision.HIGHEST
LOGIT_STEP = 10.0  # no step moves a logit by more: softmax is flat, not quadratic, beyond
START_LOGITS = 3.0  # root mean square of the logits at the deterministic starts


class MinimumCertificate(NamedTuple):
    """What is known about the x that is handed back."""

    gradient_norm: float
    smallest_eigenvalue: float  # of the Hessian at x
    stationary: bool  # the gradient is zero to rounding
    local_minimum: bool  # stationary, and the Hessian is positive semidefinite to rounding
    convex: bool  # the loss is convex for every x, by `certify_convex`
    global_minimum: bool  # proved: stationary and convex


class Minimum(NamedTuple):
    """One of the distinct minima that the starts have found."""

    x: Array  # [d]
    loss: float
    starts: int  # how many starts ended here


class NewtonResult(NamedTuple):
    """The best minimum of all starts."""

    x: Array  # [d]
    loss: Array  # scalar
    certificate: MinimumCertificate
    num_iterations: int  # Newton steps of the start that won
    losses: Array  # [num_iterations + 1], of the start that won
    minima: tuple[Minimum, ...]  # distinct in loss, lowest first


class _State(NamedTuple):
    x: Array
    loss: Array
    gradient: Array
    step: Array
    losses: Array
    stop: Array


def newton(
    A: Any,
    b: Any,
    *,
    weights: Any = None,
    x0: Any = None,
    num_starts: int | None = None,
    key: Array | None = None,
    max_iterations: int = 100,
) -> NewtonResult:
    """Minimises `loss` over x.

    Each step solves with the absolute eigenvalues of the closed-form Hessian, so that it goes
    downhill also where the loss is not convex, and is halved until the loss falls enough.

    Args:
      A: [n, d]; b: [n]; weights: [n] or None.
      x0: [d] or [k, d], starts of your own, tried beside the others.
      num_starts: how many starts to try; None means one where `certify_convex` holds and 2 + 2 d
        otherwise, at most 20: zero, the least-squares solution of A x = log b, and both ways
        along the leading right singular vectors of A. More than those need `key`.
      key: for the random starts beyond the deterministic ones.
      max_iterations: Newton steps per start.
    Returns:
      A NewtonResult. `certificate.global_minimum` is proved only for a convex loss; otherwise it
      is False and `minima` lists what was found.
    Raises:
      ValueError: shapes disagree, an argument holds NaN or infinity, or random starts are asked
        for without a key.
    """
    _check.integer("newton", max_iterations=max_iterations, num_starts=num_starts)
    columns = np.shape(A)[1] if np.ndim(A) == 2 else 0
    A, _, b, weights = objective.prepare(
        "newton", A, jnp.zeros(columns, jnp.asarray(A).dtype), b, weights
    )
    convex = bool(certify_convex(A, b, weights=weights).convex)
    starts = _starts(A, b, 1 if convex and num_starts is None else num_starts, key)
    if x0 is not None:
        own = jnp.atleast_2d(jnp.asarray(x0, A.dtype))
        _check.shape("newton", "x0", own, (own.shape[0], A.shape[1]), "one row per start")
        _check.finite("newton", x0=own)
        starts = jnp.concatenate([own, starts])
    ends = _run(A, b, weights, starts, max_iterations)
    # Starts that end at the same loss to rounding tie; the one with the fewest steps speaks.
    losses = np.asarray(ends.loss)
    tied = losses <= losses.min() + 64 * float(jnp.finfo(A.dtype).eps)
    best = int(np.argmin(np.where(tied, np.asarray(ends.step), max_iterations + 1)))
    x = ends.x[best]
    eigenvalues = np.linalg.eigvalsh(np.asarray(objective.hessian(A, x, b, weights=weights)))
    smallest = float(eigenvalues[0])
    gradient_norm = float(np.linalg.norm(np.asarray(ends.gradient[best])))
    epsilon = float(jnp.finfo(A.dtype).eps)
    stationary = gradient_norm <= 1e3 * epsilon * float(_gradient_scale(A, x, b, weights))
    scale = max(float(np.abs(eigenvalues).max()), float(np.sum(np.asarray(A) ** 2)) * epsilon)
    steps = int(ends.step[best])
    return NewtonResult(
        x=x,
        loss=ends.loss[best],
        certificate=MinimumCertificate(
            gradient_norm=gradient_norm,
            smallest_eigenvalue=smallest,
            stationary=stationary,
            local_minimum=stationary and smallest >= -100 * A.shape[1] * epsilon * scale,
            convex=convex,
            global_minimum=stationary and convex,
        ),
        num_iterations=steps,
        losses=ends.losses[best, : steps + 1],
        minima=_distinct(ends, np.sqrt(epsilon)),
    )


def _starts(A: Array, b: Array, count: int | None, key: Array | None) -> Array:
    fixed = _deterministic_starts(A, b)
    if count is None:
        count = min(len(fixed), 20)
    if count <= len(fixed):
        return fixed[:count]
    if key is None:
        raise ValueError(
            f"newton: num_starts={count} asks for {count - len(fixed)} random starts beyond the "
            f"{len(fixed)} deterministic ones; pass key=jax.random.key(...)."
        )
    n, d = A.shape
    scale = START_LOGITS * jnp.sqrt(1.0 * n) / jnp.maximum(jnp.linalg.norm(A), 1e-30)
    random = scale * jax.random.normal(key, (count - len(fixed), d), A.dtype)
    return jnp.concatenate([fixed, random])


@jax.jit
def _deterministic_starts(A: Array, b: Array) -> Array:
    n, d = A.shape
    # log of the target, where it has one: exact when b is attainable, as softmax(A x) = b then.
    target = jnp.log(jnp.maximum(b, jnp.exp(-START_LOGITS) / n))
    centred = A - jnp.mean(A, axis=0, keepdims=True)
    fitted = jnp.linalg.lstsq(centred, target - jnp.mean(target))[0]
    _, singular, right = jnp.linalg.svd(A, full_matrices=False)
    safe = jnp.where(singular > jnp.finfo(A.dtype).eps * singular[0], singular, jnp.inf)
    along = START_LOGITS * jnp.sqrt(1.0 * n) / safe[:, None] * right
    both = jnp.stack([along, -along], axis=1).reshape(-1, d)
    return jnp.concatenate([jnp.zeros((1, d), A.dtype), fitted[None], both])


@jax.jit
def _gradient_scale(A: Array, x: Array, b: Array, weights: Array | None) -> Array:
    """The gradient without cancellation: the size that its rounding is relative to."""
    size = jnp.linalg.norm(A)
    scale = size * (1 + jnp.linalg.norm(b))
    if weights is not None:
        scale = scale + size * jnp.linalg.norm(weights**2 * jnp.abs(jnp.matmul(A, x)))
    return scale


@functools.partial(jax.jit, static_argnums=4)
def _run(A: Array, b: Array, weights: Array | None, starts: Array, max_iterations: int) -> _State:
    epsilon = jnp.finfo(A.dtype).eps

    def value(x):
        return objective.loss(A, x, b, weights=weights)

    def slope(x):
        return objective.gradient(A, x, b, weights=weights)

    def first(x):
        losses = jnp.full(max_iterations + 1, value(x))
        return _State(x, losses[0], slope(x), jnp.array(0), losses, jnp.array(False))

    def running(state):
        return ~state.stop & (state.step < max_iterations)

    def body(state):
        hessian = objective.hessian(A, state.x, b, weights=weights)
        direction, fall = newton_direction(hessian, state.gradient)
        largest = jnp.max(jnp.abs(jnp.matmul(A, direction, precision=HIGHEST)))
        rounding = 4 * epsilon * jnp.abs(state.loss)

        def too_far(length):
            new = value(state.x + length * direction)
            return (new > state.loss + 1e-4 * length * fall + rounding) & (length > 1e-12)

        start = jnp.minimum(1.0, LOGIT_STEP / jnp.maximum(largest, LOGIT_STEP))
        length = jax.lax.while_loop(too_far, lambda length: 0.5 * length, start)
        x = state.x + length * direction
        loss, gradient = value(x), slope(x)
        # At the bottom the loss is flat to rounding; the gradient still says which point is better.
        better = (loss < state.loss) | (jnp.linalg.norm(gradient) < jnp.linalg.norm(state.gradient))
        small = 4 * epsilon * _gradient_scale(A, x, b, weights)
        step = state.step + better
        return _State(
            jnp.where(better, x, state.x),
            jnp.where(better, loss, state.loss),
            jnp.where(better, gradient, state.gradient),
            step,
            jnp.where(better & (jnp.arange(max_iterations + 1) >= step), loss, state.losses),
            ~better | (jnp.linalg.norm(jnp.where(better, gradient, state.gradient)) <= small),
        )

    return jax.vmap(lambda x: jax.lax.while_loop(running, body, first(x)))(starts)


def _distinct(ends: _State, tolerance: float) -> tuple[Minimum, ...]:
    found: list[Minimum] = []
    for place in np.argsort(np.asarray(ends.loss), kind="stable"):
        loss = float(ends.loss[place])
        if found and loss - found[-1].loss <= tolerance * max(abs(loss), tolerance):
            found[-1] = found[-1]._replace(starts=found[-1].starts + 1)
        else:
            found.append(Minimum(ends.x[place], loss, 1))
    return tuple(found)
