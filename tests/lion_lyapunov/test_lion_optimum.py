"""The optimizer ends at the optimum of f + K*(lam x) / lam that independent programs find.

The NumPy side finds a reference point by proximal gradient steps (SciPy where a substitution makes
the problem smooth) and proves it: F(x) - min F <= G(x) / lam with G the Fenchel-Young gap, written
here from NumPy's K and K*. SciPy's own constrained solvers confirm the reference where they can.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from scipy import optimize, special

from lion_lyapunov import kappas as K
from lion_lyapunov import lion_k

# Compiled once and run briefly: optimising the code would take longer than it saves.
jit = functools.partial(
    jax.jit,
    compiler_options={
        "xla_backend_optimization_level": 0,
        "xla_llvm_disable_expensive_passes": True,
    },
)
norm = np.linalg.norm
SIZE = 12

RNG = np.random.default_rng(0)
ROOT = RNG.normal(size=(SIZE, SIZE)) / np.sqrt(SIZE)
HESSIAN = ROOT.T @ ROOT + 0.1 * np.eye(SIZE)
GOAL = 2.0 * RNG.normal(size=SIZE)
INPUTS = RNG.normal(size=(160, SIZE))
LABELS = np.sign(INPUTS @ RNG.normal(size=SIZE) + RNG.normal(size=160))
FEATURES = LABELS[:, None] * INPUTS


def quadratic(x, xp):
    gap = x.reshape(-1) - GOAL
    return 0.5 * gap @ (HESSIAN @ gap), (HESSIAN @ gap).reshape(x.shape)


def logistic(x, xp):
    margins = FEATURES @ x.reshape(-1)
    value = xp.mean(xp.logaddexp(0.0, -margins))
    return value, (-(FEATURES.T @ (1 / (1 + xp.exp(margins)))) / 160).reshape(x.shape)


SMOOTHNESS = {
    quadratic: norm(HESSIAN, 2),
    logistic: norm(FEATURES.T @ FEATURES, 2) / 640,
}


def soft(x, by):
    return np.sign(x) * np.maximum(np.abs(x) - by, 0)


def to_ball(y):
    return y / max(1.0, norm(y))


def to_l1_ball(y):
    if np.abs(y).sum() <= 1:
        return y
    ordered = np.sort(np.abs(y))[::-1]
    thresholds = (np.cumsum(ordered) - 1) / np.arange(1, y.size + 1)
    return soft(y, thresholds[ordered > thresholds][-1])


def to_box_and_l1(y, k=3):
    low, high = 0.0, np.abs(y).max()
    if np.minimum(np.abs(y), 1).sum() <= k:
        return np.clip(y, -1, 1)
    for _ in range(80):
        middle = (low + high) / 2
        if np.clip(np.abs(y) - middle, 0, 1).sum() > k:
            low = middle
        else:
            high = middle
    return np.sign(y) * np.clip(np.abs(y) - high, 0, 1)


def lift(function):
    def lifted(z):
        u, s, v = np.linalg.svd(z, full_matrices=False)
        return (u * function(s)) @ v

    return lifted


def on_singular(function):
    return lambda z: function(np.linalg.svd(z, compute_uv=False))


def huber(z, e):
    return np.sum(special.huber(e, z)) / e


class Case(NamedTuple):
    """A kappa, and in NumPy: K, the gauge of dom K*, and K* with its proximal step.

    `step(y, r)` minimises |x - y|^2 / (2 r) + K*(x): the projection for an indicator.
    """

    kappa: K.Kappa
    value: Callable[[Any], Any]
    gauge: Callable[[Any], Any]
    step: Callable[[Any, float], Any]
    conjugate: Callable[[Any], Any] = lambda y: 0.0
    shape: tuple[int, ...] = (SIZE,)


def constraint(kappa, value, gauge, project, shape=(SIZE,)):
    return Case(kappa, value, gauge, lambda y, r: project(y), shape=shape)


def largest(z):
    return np.abs(z).max()


def smallest_gauge(y):
    return max(largest(y), np.abs(y).sum() / 3)


def each_group(function):
    return lambda z: np.concatenate([np.atleast_1d(function(g)) for g in z.reshape(3, 4)])


MATRIX = (4, 3)
CASES = {
    "l1": constraint(K.l1(), lambda z: np.abs(z).sum(), largest, lambda y: np.clip(y, -1, 1)),
    "l2": constraint(K.l2(), norm, norm, to_ball),
    "linf": constraint(K.linf(), largest, lambda y: np.abs(y).sum(), to_l1_ball),
    "top_k": constraint(
        K.top_k(3), lambda z: np.sort(np.abs(z))[-3:].sum(), smallest_gauge, to_box_and_l1
    ),
    "group_l2": constraint(
        K.group_l2(4),
        lambda z: each_group(norm)(z).sum(),
        lambda y: each_group(norm)(y).max(),
        each_group(to_ball),
    ),
    "positive_part": constraint(
        K.positive_part(), lambda z: z.clip(0).sum(), largest, lambda y: np.clip(y, 0, 1)
    ),
    "huber": Case(
        K.huber(0.5),
        lambda z: huber(z, 0.5),
        largest,
        lambda y, r: np.clip(y / (1 + 0.5 * r), -1, 1),
        lambda y: 0.25 * np.sum(y * y),
    ),
    "trimmed_l1": Case(
        K.trimmed_l1(0.1),
        lambda z: np.maximum(np.abs(z) - 0.1, 0).sum(),
        largest,
        lambda y, r: np.clip(soft(y, 0.1 * r), -1, 1),
        lambda y: 0.1 * np.abs(y).sum(),
    ),
    "half_squared_l2": Case(
        K.half_squared_l2(),
        lambda z: np.sum(z * z) / 2,
        norm,
        lambda y, r: y / (1 + r),
        lambda y: np.sum(y * y) / 2,
    ),
    "nuclear": constraint(
        K.nuclear(), on_singular(np.sum), on_singular(np.max), lift(lambda s: s.clip(0, 1)), MATRIX
    ),
    "operator_norm": constraint(
        K.operator_norm(), on_singular(np.max), on_singular(np.sum), lift(to_l1_ball), MATRIX
    ),
    "frobenius": constraint(K.frobenius(), norm, norm, to_ball, MATRIX),
    "ky_fan": constraint(
        K.ky_fan(2),
        on_singular(lambda s: s[:2].sum()),
        on_singular(lambda s: max(s[0], s.sum() / 2)),
        lift(functools.partial(to_box_and_l1, k=2)),
        MATRIX,
    ),
    "spectral_huber": Case(
        K.spectral(K.huber(0.5)),
        on_singular(lambda s: huber(s, 0.5)),
        on_singular(np.max),
        lambda y, r: lift(lambda s: s.clip(0, 1))(y / (1 + 0.5 * r)),
        lambda y: 0.25 * np.sum(y * y),
        MATRIX,
    ),
    "row_l2": constraint(
        K.row_l2(),
        lambda z: norm(z, axis=1).sum(),
        lambda y: norm(y, axis=1).max(),
        lambda y: y / np.maximum(norm(y, axis=1, keepdims=True), 1),
        MATRIX,
    ),
}
QUICK = {"l1", "l2", "linf", "huber", "nuclear", "operator_norm", "group_l2"}


class Problem(NamedTuple):
    decay: float
    reference: np.ndarray
    bound: float  # min F is at least this


@functools.cache
def solved(name, loss):
    """A weight decay that makes the constraint bind, and a proved reference point."""
    case = CASES[name]
    free = optimize.minimize(
        lambda x: loss(x, np), np.zeros(SIZE), jac=True, options={"gtol": 1e-9}
    ).x.reshape(case.shape)
    decay = 1.6 / case.gauge(free)
    rate = 1 / SMOOTHNESS[loss]
    x = np.zeros(case.shape)
    for _ in range(4000):
        # The step for K*(lam x) / lam, in units of y = lam x.
        x = case.step(decay * (x - rate * loss(x, np)[1]), rate * decay) / decay
    value, grads = loss(x, np)
    conjugate = case.conjugate(decay * x)
    gap = case.value(-grads) + conjugate + decay * np.sum(grads * x)
    best = value + conjugate / decay
    assert -1e-12 <= gap / decay <= 1e-8 * best
    return Problem(decay, x, best - gap / decay)


@pytest.mark.parametrize("loss", [quadratic, logistic])
@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=[] if n in QUICK else pytest.mark.slow) for n in CASES]
)
def test_the_constrained_optimum_is_reached(name, loss):
    case, problem = CASES[name], solved(name, loss)
    # In shares of the radius, from 0.05 to 2e-6: steps of a norm hover at about the last one.
    rate = optax.exponential_decay(0.05 / problem.decay, 20_000, 1 / 25_000)
    optimizer = lion_k(rate, case.kappa, weight_decay=problem.decay)

    def step(carry, _):
        x, state = carry
        updates, state = optimizer.update(loss(x, jnp)[1], state, x)
        return (x + updates, state), None

    with jax.enable_x64(True):
        start = jnp.zeros(case.shape)
        run = jit(lambda x: jax.lax.scan(step, (x, optimizer.init(x)), length=20_000)[0][0])
        x = np.asarray(run(start))
    y = problem.decay * x
    if case.kappa.is_support and name != "positive_part":  # which binds at 0
        assert case.gauge(problem.decay * problem.reference) >= 1 - 1e-9  # the constraint binds
    assert case.gauge(y) <= 1 + 1e-8
    value = loss(x, np)[0] + case.conjugate(y) / problem.decay
    gap = (value - problem.bound) / problem.bound
    # Below 0 only by what the point is outside and by what is unknown of the minimum.
    assert -1e-7 <= gap <= (1e-6 if loss is quadratic else 1e-5)


def solve_with_scipy(name, decay):
    """min F of the quadratic by a solver for constrained problems."""
    half = np.linalg.cholesky(HESSIAN).T
    if name in ("l1", "huber"):
        # Huber's K* adds (decay / 4) |x|^2: more rows of a bounded least-squares problem.
        extra = 0.5 * decay if name == "huber" else 0.0
        rows = np.concatenate([half, np.sqrt(extra) * np.eye(SIZE)])
        best = optimize.lsq_linear(
            rows, np.concatenate([half @ GOAL, np.zeros(SIZE)]),
            bounds=(-1 / decay, 1 / decay), method="bvls", tol=1e-15,
        )  # fmt: skip
        return best.cost
    options = {"ftol": 1e-15, "maxiter": 1000}
    if name == "linf":  # x = u - v with u, v >= 0 and sum (u + v) <= 1 / decay

        def split(w):
            value, grads = quadratic(w[:SIZE] - w[SIZE:], np)
            return value, np.concatenate([grads, -grads])

        inside = {"type": "ineq", "fun": lambda w: 1 / decay - w.sum()}
        start, bounds = np.full(2 * SIZE, 1e-3), [(0, None)] * (2 * SIZE)
        best = optimize.minimize(
            split, start, jac=True, bounds=bounds, constraints=inside, method="SLSQP",
            options=options,
        )  # fmt: skip
        return best.fun
    size = SIZE if name == "l2" else 4
    inside = [
        {"type": "ineq", "fun": lambda x, i=i: 1 - decay**2 * np.sum(x[i : i + size] ** 2)}
        for i in range(0, SIZE, size)
    ]
    best = optimize.minimize(
        lambda x: quadratic(x, np), np.zeros(SIZE), jac=True, constraints=inside, method="SLSQP",
        options=options,
    )  # fmt: skip
    return best.fun


@pytest.mark.parametrize("name", ["l1", "huber", "l2", "linf", "group_l2"])
def test_scipy_confirms_the_reference(name):
    problem = solved(name, quadratic)
    assert solve_with_scipy(name, problem.decay) == pytest.approx(problem.bound, rel=1e-8)
