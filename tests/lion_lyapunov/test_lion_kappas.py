"""Every kappa beside NumPy: values, slopes, conjugates, projections and whole trajectories.

The NumPy side is written from the definitions (sorting, explicit SVD, SciPy maximisation) and
shares no formula with the package where there is another one.
"""

import functools
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import optimize, special

from lion_lyapunov import kappas as K
from lion_lyapunov import lion_k

norm = np.linalg.norm

# Each function here runs once: compiling it well would take longer than running it does.
jit = functools.partial(
    jax.jit,
    compiler_options={
        "xla_backend_optimization_level": 0,
        "xla_llvm_disable_expensive_passes": True,
    },
)


def svd_lift(function):
    def lifted(z):
        u, s, v = np.linalg.svd(z, full_matrices=False)
        return u @ np.diag(function(s)) @ v

    return lifted


def on_singular(function):
    return lambda z: function(np.linalg.svd(z, compute_uv=False))


def np_lp(p):
    return lambda z: np.sum(np.abs(z) ** p) ** (1 / p)


def np_lp_slope(p):
    return lambda z: np.sign(z) * (np.abs(z) / np_lp(p)(z)) ** (p - 1)


def np_top(k):
    return lambda z: np.sort(np.abs(z).ravel())[-k:].sum()


def np_top_slope(k):
    def slope(z):
        chosen = np.argsort(np.abs(z).ravel())[-k:]
        out = np.zeros(z.size)
        out[chosen] = np.sign(z.ravel()[chosen])
        return out.reshape(z.shape)

    return slope


def np_huber(e):
    return lambda z: np.sum(special.huber(e, z)) / e


def groups(z, size):
    return [z.ravel()[i : i + size] for i in range(0, z.size, size)]


class Row(NamedTuple):
    kappa: K.Kappa
    value: object  # NumPy K(z)
    slope: object  # NumPy subgradient
    support: object = None  # NumPy support function of dom K*; K itself when None
    scalar: object = None  # phi, for a separable kappa


def l1_norm(z):
    return np.abs(z).sum()


def box(phi, slope, kappa):
    return Row(kappa, lambda z: np.sum(phi(z)), slope, l1_norm, phi)


def everywhere(phi, slope, kappa):
    return Row(kappa, lambda z: np.sum(phi(z)), slope, lambda z: np.inf, phi)


ARCTAN = 1.5
VECTORS = {
    "l1": Row(K.l1(), l1_norm, np.sign),
    "trimmed_l1": box(
        lambda z: np.maximum(np.abs(z) - 0.3, 0),
        lambda z: np.sign(z) * (np.abs(z) > 0.3),
        K.trimmed_l1(0.3),
    ),
    "huber": box(
        lambda z: special.huber(0.5, z) / 0.5, lambda z: np.clip(z / 0.5, -1, 1), K.huber(0.5)
    ),
    "relativistic": box(
        lambda z: np.sqrt(z * z + 0.16) - 0.4,
        lambda z: z / np.sqrt(z * z + 0.16),
        K.relativistic(0.4),
    ),
    "log_cosh": box(
        lambda z: np.log(np.cosh(2 * z)) / 2, lambda z: np.tanh(2 * z), K.log_cosh(2.0)
    ),
    "arctan": box(
        lambda z: (2 / np.pi) * (z * np.arctan(1.5 * z) - np.log(1 + 2.25 * z * z) / 3),
        lambda z: (2 / np.pi) * np.arctan(1.5 * z),
        K.arctan(ARCTAN),
    ),
    "half_squared_l2": everywhere(lambda z: z * z / 2, lambda z: z, K.half_squared_l2()),
    "power": everywhere(
        lambda z: np.abs(z) ** 1.5 / 1.5, lambda z: np.sign(z) * np.abs(z) ** 0.5, K.power(1.5)
    ),
    "positive_part": Row(
        K.positive_part(), lambda z: z.clip(0).sum(), lambda z: (z > 0).astype(float)
    ),
    "l2": Row(K.l2(), norm, lambda z: z / norm(z)),
    "lp_1.2": Row(K.lp(1.2), np_lp(1.2), np_lp_slope(1.2)),
    "lp_3": Row(K.lp(3.0), np_lp(3), np_lp_slope(3)),
    "linf": Row(K.linf(), lambda z: np.abs(z).max(), np_top_slope(1)),
    "top_k": Row(K.top_k(3), np_top(3), np_top_slope(3)),
    "group_l2": Row(
        K.group_l2(5),
        lambda z: sum(norm(g) for g in groups(z, 5)),
        lambda z: np.concatenate([g / norm(g) for g in groups(z, 5)]),
    ),
    "log_sum_exp": Row(
        K.log_sum_exp(0.7),
        lambda z: 0.7 * special.logsumexp(z / 0.7),
        lambda z: special.softmax(z / 0.7),
        lambda z: z.max(),
    ),
    "from_lmo": Row(
        K.from_lmo(
            lambda z: -2 * z / jnp.linalg.norm(z),
            project=lambda y: y / jnp.maximum(jnp.linalg.norm(y) / 2, 1.0),
            is_even=True,
        ),
        lambda z: 2 * norm(z),
        lambda z: 2 * z / norm(z),
    ),
    "scaled": Row(
        K.scaled(K.linf(), 2.5), lambda z: 2.5 * np.abs(z).max(), lambda z: 2.5 * np_top_slope(1)(z)
    ),
    "moreau_l1": Row(
        K.moreau(K.l1(), 0.4), np_huber(0.4), lambda z: np.clip(z / 0.4, -1, 1), l1_norm
    ),
    "moreau_log_cosh_free": Row(
        K.moreau(K.half_squared_l2(), 0.5),
        lambda z: np.sum(z * z) / 3,
        lambda z: z / 1.5,
        lambda z: np.inf,
    ),
    "half_squared": Row(
        K.half_squared(K.lp(1.5)),
        lambda z: np_lp(1.5)(z) ** 2 / 2,
        lambda z: np_lp(1.5)(z) * np_lp_slope(1.5)(z),
        lambda z: np.inf,
    ),
    "whole_tree": Row(K.whole_tree(K.l2()), norm, lambda z: z / norm(z)),
}
MATRICES = {
    "nuclear": Row(K.nuclear(), on_singular(np.sum), svd_lift(np.ones_like)),
    "nuclear_svd": Row(K.nuclear("svd"), on_singular(np.sum), svd_lift(np.ones_like)),
    "operator_norm": Row(
        K.operator_norm(), on_singular(np.max), svd_lift(lambda s: np.eye(s.size)[0])
    ),
    "frobenius": Row(K.frobenius(), norm, lambda z: z / norm(z)),
    "schatten": Row(K.schatten(1.5), on_singular(np_lp(1.5)), svd_lift(np_lp_slope(1.5))),
    "ky_fan": Row(K.ky_fan(2), on_singular(np_top(2)), svd_lift(np_top_slope(2))),
    "spectral_trimmed": Row(
        K.spectral(K.trimmed_l1(0.5)),
        on_singular(lambda s: np.maximum(s - 0.5, 0).sum()),
        svd_lift(lambda s: (s > 0.5) * 1.0),
        on_singular(np.sum),
    ),
    "spectral_huber": Row(
        K.spectral(K.huber(0.5)),
        on_singular(np_huber(0.5)),
        svd_lift(lambda s: np.minimum(s / 0.5, 1)),
        on_singular(np.sum),
    ),
    "spectral_relativistic": Row(
        K.spectral(K.relativistic(0.4)),
        on_singular(lambda s: np.sum(np.sqrt(s * s + 0.16) - 0.4)),
        lambda z: (
            np.linalg.solve(np.real(svd_lift(np.ones_like)(np.eye(z.shape[0]))), z)
            @ svd_lift(lambda w: w**-0.5)(z.T @ z + 0.16 * np.eye(z.shape[1]))
        ),
        on_singular(np.sum),
    ),
    "half_squared_nuclear": Row(
        K.half_squared(K.nuclear()),
        lambda z: on_singular(np.sum)(z) ** 2 / 2,
        lambda z: on_singular(np.sum)(z) * svd_lift(np.ones_like)(z),
        lambda z: np.inf,
    ),
    "row_l2": Row(
        K.row_l2(), lambda z: norm(z, axis=1).sum(), lambda z: z / norm(z, axis=1)[:, None]
    ),
    "col_l2": Row(K.col_l2(), lambda z: norm(z, axis=0).sum(), lambda z: z / norm(z, axis=0)[None]),
    "moreau_nuclear": Row(
        K.moreau(K.nuclear(), 0.5),
        on_singular(np_huber(0.5)),
        svd_lift(lambda s: np.minimum(s / 0.5, 1)),
        on_singular(np.sum),
    ),
    "batched": Row(
        K.batched(K.l2()), lambda z: norm(z, axis=1).sum(), lambda z: z / norm(z, axis=1)[:, None]
    ),
    "as_matrix": Row(K.as_matrix(K.nuclear()), on_singular(np.sum), svd_lift(np.ones_like)),
}
ALL = {**VECTORS, **MATRICES}
SHAPE = {name: (6,) if name in VECTORS else (5, 3) for name in ALL}
QUICK = {"l1", "huber", "log_cosh", "l2", "top_k", "log_sum_exp", "row_l2"}
# The costliest to compile, each a variation of one that stays in the fast tier.
SLOW = {
    "lp_1.2",
    "half_squared",
    "scaled",
    "operator_norm",
    "ky_fan",
    "half_squared_nuclear",
    "moreau_nuclear",
    "as_matrix",
}
NAMES = [pytest.param(name, marks=pytest.mark.slow if name in SLOW else []) for name in ALL]
SVD_BASED = set(MATRICES) - {"frobenius", "row_l2", "col_l2", "batched"}


# Nearest points, from sorted breakpoints, scalar root finding and explicit SVD.


def to_box(y):
    return np.clip(y, -1, 1)


def to_ball(y):
    return y / max(1.0, norm(y))


def to_simplex(y, total=1.0):
    """{x >= 0, sum x = total}: the threshold is found among the breakpoints of a sorted array."""
    ordered = np.sort(y.ravel())[::-1]
    thresholds = (np.cumsum(ordered) - total) / np.arange(1, y.size + 1)
    return np.maximum(y - thresholds[ordered > thresholds][-1], 0)


def to_l1_ball(y):
    return y if l1_norm(y) <= 1 else np.sign(y) * to_simplex(np.abs(y))


def to_box_and_l1(k):
    """{|x|_inf <= 1, |x|_1 <= k}: the sum of the clipped entries is linear between breakpoints."""

    def project(y):
        size = np.abs(y)
        if np.minimum(size, 1).sum() <= k:
            return to_box(y)
        points = np.sort(np.concatenate([[0.0], size.ravel(), size.ravel() - 1]))
        sums = np.array([np.clip(size - t, 0, 1).sum() for t in points])
        after = np.argmax(sums <= k)
        a, b = points[after - 1 : after + 1]
        share = (sums[after - 1] - k) / (sums[after - 1] - sums[after])
        return np.sign(y) * np.clip(size - (a + share * (b - a)), 0, 1)

    return project


def to_lq_ball(q):
    """x + mu q x^(q-1) = |y|: one root for each entry inside one for the multiplier."""

    def project(y):
        size = np.abs(y).ravel()
        if np.sum(size**q) <= 1:
            return y

        def entries(mu):
            return np.array([
                optimize.brentq(
                    lambda x, a=a: x + mu * q * x ** (q - 1) - a, 0, a, xtol=1e-16, rtol=1e-15
                )
                for a in size
            ])  # fmt: skip

        mu = optimize.brentq(
            lambda mu: np.sum(entries(mu) ** q) - 1, 0, 1e3, xtol=1e-16, rtol=1e-15
        )
        return np.sign(y) * entries(mu).reshape(y.shape)

    return project


def each_row(project):
    return lambda y: np.stack([project(row) for row in y])


PROJECTIONS = {
    **dict.fromkeys(
        ["l1", "trimmed_l1", "huber", "relativistic", "log_cosh", "arctan", "moreau_l1"], to_box
    ),
    **dict.fromkeys(
        [
            "half_squared_l2",
            "power",
            "moreau_log_cosh_free",
            "half_squared",
            "half_squared_nuclear",
        ],
        lambda y: y,
    ),
    **dict.fromkeys(["l2", "whole_tree", "frobenius"], to_ball),
    "positive_part": lambda y: np.clip(y, 0, 1),
    "lp_1.2": to_lq_ball(6.0),
    "lp_3": to_lq_ball(1.5),
    "linf": to_l1_ball,
    "top_k": to_box_and_l1(3),
    "group_l2": lambda y: np.concatenate([to_ball(g) for g in groups(y, 5)]),
    "log_sum_exp": to_simplex,
    "from_lmo": lambda y: 2 * to_ball(y / 2),
    "scaled": lambda y: 2.5 * to_l1_ball(y / 2.5),
    **dict.fromkeys(
        ["nuclear", "nuclear_svd", "spectral_trimmed", "spectral_huber", "spectral_relativistic",
         "moreau_nuclear", "as_matrix"],
        svd_lift(to_box),
    ),
    "operator_norm": svd_lift(to_l1_ball),
    "schatten": svd_lift(to_lq_ball(3.0)),
    "ky_fan": svd_lift(to_box_and_l1(2)),
    "row_l2": each_row(to_ball),
    "col_l2": lambda y: each_row(to_ball)(y.T).T,
    "batched": each_row(to_ball),
}  # fmt: skip


# Conjugates inside their domains, in closed form; those of support functions are 0.


def entropy(y):
    return np.sum(special.xlogy(1 + y, 1 + y) + special.xlogy(1 - y, 1 - y)) / 2


CONJUGATES = {
    "trimmed_l1": lambda y: 0.3 * l1_norm(y),
    "huber": lambda y: 0.25 * np.sum(y * y),
    "relativistic": lambda y: 0.4 * np.sum(1 - np.sqrt(1 - y * y)),
    "log_cosh": lambda y: entropy(y) / 2,
    "arctan": lambda y: -2 / (np.pi * ARCTAN) * np.sum(np.log(np.cos(np.pi * y / 2))),
    "half_squared_l2": lambda y: np.sum(y * y) / 2,
    "power": lambda y: np.sum(np.abs(y) ** 3) / 3,
    "log_sum_exp": lambda y: 0.7 * np.sum(special.xlogy(y, y)),
    "moreau_l1": lambda y: 0.2 * np.sum(y * y),
    "moreau_log_cosh_free": lambda y: 0.75 * np.sum(y * y),
    "half_squared": lambda y: np_lp(3)(y) ** 2 / 2,
    "spectral_trimmed": lambda y: 0.5 * on_singular(np.sum)(y),
    "spectral_huber": lambda y: 0.25 * np.sum(y * y),
    "spectral_relativistic": on_singular(lambda s: 0.4 * np.sum(1 - np.sqrt(1 - s * s))),
    "half_squared_nuclear": lambda y: on_singular(np.max)(y) ** 2 / 2,
    "moreau_nuclear": lambda y: 0.25 * np.sum(y * y),
}


@functools.cache
def run_all(name):
    """Everything that tests need of one kappa, on 20 random pairs, in one compilation."""
    kappa, rng = ALL[name].kappa, np.random.default_rng(7)
    zs = rng.normal(size=(20, *SHAPE[name]))
    ys = 2.0 * rng.normal(size=(20, *SHAPE[name]))

    def one(z, y):
        slope, inside = kappa.subgradient(z), kappa.project(y)
        small = 0.9 * inside if kappa.is_even else inside
        dual = kappa.conjugate_subgradient(small)
        return {
            "value": kappa.value(z),
            "slope": slope,
            "grad": jax.grad(kappa.value)(z),
            "project": inside,
            "equality": kappa.value(z) + kappa.conjugate(slope) - jnp.vdot(z, slope),
            "dual_equality": kappa.value(dual) + kappa.conjugate(small) - jnp.vdot(dual, small),
            "young": kappa.value(z) + kappa.conjugate(small) - jnp.vdot(z, small),
            "conjugate": kappa.conjugate(small),
            "small": small,
            "outside": kappa.conjugate(3.0 * inside + (y - inside)),
            "edge": jnp.zeros(()) if kappa.dual_norm is None else kappa.dual_norm(inside),
        }

    with jax.enable_x64(True):
        out = jit(jax.vmap(one))(jnp.asarray(zs), jnp.asarray(ys))
        return zs, ys, {name: np.asarray(value) for name, value in out.items()}


@pytest.mark.parametrize("name", NAMES)
def test_kappa_against_numpy(name):
    row = ALL[name]
    zs, ys, out = run_all(name)
    tolerance = 1e-10
    support = row.support or row.value
    for i in range(20):
        np.testing.assert_allclose(out["value"][i], row.value(zs[i]), rtol=1e-12)
        np.testing.assert_allclose(out["slope"][i], row.slope(zs[i]), rtol=0, atol=tolerance)
        np.testing.assert_allclose(out["grad"][i], out["slope"][i], rtol=0, atol=1e-14)
        assert abs(out["equality"][i]) <= tolerance
        # p is the nearest point exactly if p is inside and no point of the set lies further along
        # y - p: sigma(y - p) = <y - p, p>, with sigma the support function of the set.
        gap = ys[i] - out["project"][i]
        reach = support(gap) if norm(gap) > 1e-12 else 0.0
        assert abs(reach - np.sum(gap * out["project"][i])) <= tolerance
        if name == "log_sum_exp":
            continue  # a projection has zeros, where the entropy has infinite slope
        assert abs(out["dual_equality"][i]) <= tolerance


@pytest.mark.parametrize("name", NAMES)
def test_projections_and_conjugates_against_numpy(name):
    _, ys, out = run_all(name)
    conjugate = CONJUGATES.get(name, lambda y: 0.0)
    for i in range(20):
        nearest = PROJECTIONS[name](ys[i])
        np.testing.assert_allclose(out["project"][i], nearest, rtol=0, atol=1e-10)
        assert abs(out["conjugate"][i] - conjugate(out["small"][i])) <= 1e-10


@pytest.mark.parametrize("name", ["l1", "l2", "linf", "lp_3", "lp_1.2", "top_k", "row_l2"])
def test_a_point_just_outside_is_projected_too(name):
    kappa = ALL[name].kappa
    with jax.enable_x64(True):
        y = jnp.asarray(np.random.default_rng(13).normal(size=SHAPE[name]))
        for size in (0.998, 1.002):
            point = y * (size / kappa.dual_norm(y))
            np.testing.assert_allclose(kappa.project(point), PROJECTIONS[name](point), atol=1e-10)


@pytest.mark.parametrize("name", [name for name, row in ALL.items() if row.scalar is not None])
def test_separable_conjugates_by_maximisation(name):
    row = ALL[name]
    with jax.enable_x64(True):
        for y in (-0.97, -0.4, 0.0, 0.3, 0.9):
            best = optimize.minimize_scalar(
                lambda z, y=y: row.scalar(z) - z * y, bounds=(-60, 60), options={"xatol": 1e-12}
            )
            # The search stops short of a kink by more than the tolerance: try the kinks too.
            least = min(best.fun, *(row.scalar(z) - z * y for z in (-0.3, 0.0, 0.3)))
            ours = float(row.kappa.conjugate(jnp.full(1, y, jnp.float64)))
            assert abs(ours + least) <= 1e-10


@pytest.mark.parametrize("name", NAMES)
def test_conjugate_is_infinite_outside_and_finite_inside(name):
    row = ALL[name]
    _, _, out = run_all(name)
    bounded = (row.support or row.value)(np.ones(SHAPE[name])) < np.inf
    assert np.isinf(out["outside"]).all() == bounded
    assert np.isfinite(out["conjugate"]).all()
    if row.kappa.dual_norm is not None and bounded:
        assert out["edge"].max() <= 1 + 1e-10


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[] if name in QUICK else pytest.mark.slow) for name in ALL]
)
def test_fenchel_young_on_ten_thousand_pairs(name):
    kappa, rng = ALL[name].kappa, np.random.default_rng(11)
    zs, ys = rng.normal(size=(2, 10_000, *SHAPE[name]))
    wide = 10.0 ** rng.uniform(-4, 2, size=(10_000, *([1] * len(SHAPE[name]))))

    def gap(z, y):
        inside, value = kappa.project(y), kappa.value(z)
        at_inside = value + kappa.conjugate(inside) - jnp.vdot(z, inside)
        return jnp.minimum(at_inside, value + kappa.conjugate(y) - jnp.vdot(z, y)), value

    with jax.enable_x64(True):
        run = jit(jax.vmap(gap))
        least, _ = run(jnp.asarray(zs), jnp.asarray(ys))
        assert np.min(least) >= -1e-12  # NumPy: XLA's minimum passes over NaN
        # Over six orders of magnitude rounding grows with K.
        least, value = run(jnp.asarray(wide * zs), jnp.asarray(rng.permutation(wide) * ys))
        assert np.min(least / (1.0 + jnp.abs(value))) >= -1e-12


def problems(shape):
    rng = np.random.default_rng(0)
    size = math.prod(shape)
    root = rng.normal(size=(size, size)) / np.sqrt(size)
    hessian, goal = root.T @ root + 0.1 * np.eye(size), rng.normal(size=size)
    inputs = rng.normal(size=(40, size))
    labels = np.sign(inputs @ rng.normal(size=size))

    def quadratic(x, xp):
        return (hessian @ (x.reshape(-1) - goal)).reshape(shape)

    def logistic(x, xp):
        margins = labels * (inputs @ x.reshape(-1))
        return (-(inputs.T @ (labels / (1 + xp.exp(margins)))) / 40).reshape(shape)

    return quadratic, logistic


@pytest.mark.parametrize("name", NAMES)
def test_trajectories_equal_a_numpy_loop(name):
    row, shape = ALL[name], SHAPE[name]
    b1, b2, rate, decay, steps = 0.8, 0.95, 0.03, 0.4, 40
    start = np.random.default_rng(1).normal(size=shape)
    optimizer = lion_k(rate, row.kappa, b1=b1, b2=b2, weight_decay=decay)

    def ours(x):
        def run(gradient):
            def step(carry, _):
                x, state = carry
                updates, state = optimizer.update(gradient(x, jnp), state, x)
                return (x + updates, state), x + updates

            return jax.lax.scan(step, (x, optimizer.init(x)), length=steps)[1]

        return [run(gradient) for gradient in problems(shape)]

    with jax.enable_x64(True):
        paths = [np.asarray(path) for path in jit(ours)(jnp.asarray(start))]
    for gradient, path in zip(problems(shape), paths, strict=True):
        x, m = start.copy(), np.zeros(shape)
        for step in range(steps):
            g = gradient(x, np)
            z = b1 * m - (1 - b1) * g  # the paper's sign: also right for kappas that are not even
            m = b2 * m - (1 - b2) * g
            x = x + rate * (row.slope(z) - decay * x)
            bound = 1e-10 if name in SVD_BASED else 1e-12
            np.testing.assert_allclose(path[step], x, rtol=0, atol=bound)


def test_non_even_kappas_move_the_right_way():
    # f falls along +1; the simplex and the box [0, 1] must be approached at their far end.
    grads = -jnp.ones(3)
    for kappa in (K.positive_part(), K.log_sum_exp(1.0)):
        optimizer = lion_k(0.1, kappa, weight_decay=1.0)
        updates, _ = optimizer.update(grads, optimizer.init(grads), jnp.zeros(3))
        assert np.all(np.asarray(updates) > 0)
    optimizer = lion_k(0.1, K.positive_part(), weight_decay=1.0)
    updates, _ = optimizer.update(-grads, optimizer.init(grads), jnp.zeros(3))
    np.testing.assert_array_equal(updates, 0.0)


@pytest.mark.parametrize("name", ["l1", "huber", "top_k", "linf", "positive_part", "nuclear"])
def test_numpy_arrays_are_taken_as_they_are(name):
    z = np.random.default_rng(0).normal(size=SHAPE[name])  # float64, which JAX reads as float32
    kappa = ALL[name].kappa
    np.testing.assert_allclose(kappa.subgradient(z), ALL[name].slope(z), atol=1e-5)
    assert np.isfinite(kappa.value(z))
    assert kappa.conjugate(kappa.project(z)) < np.inf
