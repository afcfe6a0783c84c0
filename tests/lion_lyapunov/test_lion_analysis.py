"""The theorems, step by step, on problems whose constants are known."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from scipy import optimize

from lion_lyapunov import analysis, lion_k, lion_k_groups, low_precision
from lion_lyapunov import kappas as K

# Compiled once and run briefly: optimising the code would take longer than it saves.
jit = functools.partial(
    jax.jit,
    compiler_options={
        "xla_backend_optimization_level": 0,
        "xla_llvm_disable_expensive_passes": True,
    },
)

RNG = np.random.default_rng(0)
ROOT = RNG.normal(size=(12, 12)) / np.sqrt(12)
HESSIAN = ROOT.T @ ROOT + 0.1 * np.eye(12)
GOAL = 2.0 * RNG.normal(size=12)
SMOOTHNESS = np.linalg.eigvalsh(HESSIAN)[-1]

KAPPAS = {
    "l1": K.l1(),
    "trimmed_l1": K.trimmed_l1(0.1),
    "huber": K.huber(0.5),
    "relativistic": K.relativistic(0.3),
    "log_cosh": K.log_cosh(2.0),
    "arctan": K.arctan(1.0),
    "half_squared_l2": K.half_squared_l2(),
    "power": K.power(1.5),
    "positive_part": K.positive_part(),
    "l2": K.l2(),
    "lp": K.lp(1.5),
    "linf": K.linf(),
    "top_k": K.top_k(3),
    "group_l2": K.group_l2(4),
    "scaled": K.scaled(K.l1(), 0.7),
    "moreau": K.moreau(K.l1(), 0.3),
    "nuclear": K.nuclear(),
    "operator_norm": K.operator_norm(),
    "schatten": K.schatten(1.5),
    "ky_fan": K.ky_fan(2),
    "spectral_huber": K.spectral(K.huber(0.5)),
    "row_l2": K.row_l2(),
    "col_l2": K.col_l2(),
    "half_squared": K.half_squared(K.l2()),
}
QUICK = {"l1", "huber", "half_squared_l2", "positive_part", "top_k", "lp", "nuclear"}
CASES = [
    pytest.param(name, marks=[] if name in QUICK else pytest.mark.slow, id=name) for name in KAPPAS
]


def quadratic(x):
    gap = x.reshape(-1) - jnp.asarray(GOAL)
    return 0.5 * gap @ jnp.asarray(HESSIAN) @ gap


def shape_of(name):
    return (4, 3) if name in {
        "nuclear", "operator_norm", "schatten", "ky_fan", "spectral_huber", "row_l2", "col_l2"
    } else (12,)  # fmt: skip


@pytest.mark.parametrize("decaying", [False, True])
@pytest.mark.parametrize("name", CASES)
def test_the_theorem_holds_at_every_step(name, decaying):
    kappa, decay, b1, b2, steps = KAPPAS[name], 0.6, 0.8, 0.95, 400
    schedule = (lambda t: 0.05 / (1 + 0.02 * t)) if decaying else (lambda t: 0.05 + 0.0 * t)
    optimizer = lion_k(schedule, kappa, b1=b1, b2=b2, weight_decay=decay)

    def run(x):
        def energy(x, mu, rate):
            return analysis.discrete_lyapunov(
                kappa, x, mu, quadratic, decay, learning_rate=rate, b1=b1, b2=b2
            )

        def step(carry, t):
            x, state = carry
            grads = jax.grad(quadratic)(x)
            updates, after = optimizer.update(grads, state, x)
            new = optax.apply_updates(x, updates)
            rate = schedule(t)
            parts = analysis.discrete_decrements(
                kappa, new, state[0].mu, after[0].mu, grads, decay,
                learning_rate=rate, smoothness=SMOOTHNESS, b1=b1, b2=b2,
            )  # fmt: skip
            # The coupling's weight shrinks with the rate: H of the next rate is lower still.
            change = energy(new, after[0].mu, schedule(t + 1)) - energy(x, state[0].mu, rate)
            return (new, after), (parts.bound - change, parts.d1, parts.d2)

        return jax.lax.scan(step, (x, optimizer.init(x)), jnp.arange(float(steps)))[1]

    with jax.enable_x64(True):
        start = kappa.project(jnp.asarray(RNG.normal(size=shape_of(name)))) * 0.5 / decay
        slack, d1, d2 = jax.tree.map(np.asarray, jit(run)(start))
    assert np.isfinite(slack).all()
    assert slack.min() >= -1e-10
    assert d1.min() >= -1e-10
    assert d2.min() >= -1e-10


def test_the_implicit_step_is_the_optimizers_own():
    """x' = x + e (slope - lam x') at the new x', the form in which the theorem is stated."""
    rate, decay = 0.3, 0.6
    optimizer = lion_k(rate, K.huber(0.5), b1=0.8, b2=0.95, weight_decay=decay)
    with jax.enable_x64(True):
        x, grads, mu = (jnp.asarray(RNG.normal(size=12)) for _ in range(3))
        state = optimizer.init(x)
        state = (state[0]._replace(mu=mu), *state[1:])
        new = x + optimizer.update(grads, state, x)[0]
        slope = -K.huber(0.5).subgradient(0.8 * mu + 0.2 * grads)
        e = analysis.implicit_step(rate, decay)
        np.testing.assert_allclose(new, x + e * (slope - decay * new), rtol=0, atol=1e-14)


def test_lyapunov_may_rise_at_a_constant_rate_but_the_bound_holds():
    # The reason why tests look at the slack: H itself is not monotone near the optimum.
    optimizer = lion_k(0.05, K.l1(), weight_decay=0.6)

    def step(carry, _):
        x, state = carry
        h = analysis.discrete_lyapunov(K.l1(), x, state[0].mu, quadratic, 0.6, learning_rate=0.05)
        updates, state = optimizer.update(jax.grad(quadratic)(x), state, x)
        return (x + updates, state), h

    with jax.enable_x64(True):
        x = jnp.zeros(12)
        h = np.asarray(jit(lambda: jax.lax.scan(step, (x, optimizer.init(x)), length=500)[1])())
    assert (np.diff(h) > 1e-6).sum() > 20


@pytest.mark.parametrize(
    "name",
    ["l1", "nuclear", *[pytest.param(n, marks=pytest.mark.slow) for n in ("l2", "lp", "top_k")]],
)
def test_phase_one_contracts_and_the_tight_case_attains_it(name):
    kappa, rate, decay = KAPPAS[name], 0.02, 0.5
    shape = shape_of(name)
    optimizer = lion_k(rate, kappa, weight_decay=decay)

    def run(x, linear):
        def step(carry, _):
            x, state = carry
            grads = linear if linear is not None else jax.grad(quadratic)(x)
            updates, state = optimizer.update(grads, state, x)
            x = x + updates
            return (x, state), (
                analysis.distance(kappa, x, decay),
                analysis.phase(kappa, x, decay),
            )

        return jax.lax.scan(step, (x, optimizer.init(x)), length=300)[1]

    with jax.enable_x64(True):
        start = jnp.asarray(30.0 * RNG.normal(size=shape))
        bound = (1 - rate * decay) ** np.arange(1, 301) * float(
            analysis.distance(kappa, start, decay)
        )
        distance, phases = jit(lambda x: run(x, None))(start)
        assert np.all(np.asarray(distance) <= bound * (1 + 1e-9) + 1e-12)
        assert phases[0] == 1
        # A linear f that pushes along the outward normal: every step keeps the ratio exactly.
        inside = kappa.project(decay * start)
        outward = decay * start - inside
        tight, phases = jit(run)((inside + outward) / decay, -outward)
        np.testing.assert_allclose(tight, bound, rtol=1e-10)
        assert (phases == 1).all()


def run_to_optimum(loss, kappa, decay, size, steps=6000):
    optimizer = lion_k(
        lambda t: jnp.minimum(0.05, 10 / (t + 1.0)), kappa, b1=0.9, b2=0.99, weight_decay=decay
    )

    def step(carry, _):
        x, state = carry
        updates, state = optimizer.update(jax.grad(loss)(x), state, x)
        return (x + updates, state), None

    with jax.enable_x64(True):
        x = jnp.zeros(size)
        x = jit(lambda x: jax.lax.scan(step, (x, optimizer.init(x)), length=steps)[0][0])(x)
        return np.asarray(x), float(loss(x))


def test_box_quadratic_reaches_the_optimum_of_an_independent_solver():
    decay = 0.8
    x, value = run_to_optimum(quadratic, K.l1(), decay, 12)
    # L-BFGS-B is not accurate enough; an exact bounded least-squares solver is.
    best = optimize.lsq_linear(
        np.linalg.cholesky(HESSIAN).T, np.linalg.cholesky(HESSIAN).T @ GOAL,
        bounds=(-1 / decay, 1 / decay), method="bvls", tol=1e-15,
    )  # fmt: skip
    assert 0 < np.sum(np.abs(best.x) > 1 / decay - 1e-9) < 12
    assert np.abs(x).max() * decay <= 1 + 1e-8
    assert (value - best.cost) / best.cost <= 1e-6


def test_logistic_regression_reaches_the_constrained_optimum():
    rng = np.random.default_rng(4)
    inputs = rng.normal(size=(80, 8))
    labels = np.sign(inputs @ rng.normal(size=8) + 0.5 * rng.normal(size=80))
    features = labels[:, None] * inputs

    def loss(x):
        return jnp.mean(jnp.logaddexp(0.0, -jnp.asarray(features) @ x))

    _, value = run_to_optimum(loss, K.l1(), 1.0, 8)

    def numpy_loss(x):
        margins = features @ x
        return (
            np.logaddexp(0, -margins).mean(),
            -features.T @ (1 / (1 + np.exp(margins))) / 80,
        )

    best = optimize.minimize(
        numpy_loss, np.zeros(8), jac=True, bounds=[(-1, 1)] * 8, method="L-BFGS-B",
        options={"ftol": 1e-16, "gtol": 1e-12, "maxiter": 10_000},
    )  # fmt: skip
    assert np.abs(best.x).max() == 1.0
    assert abs(value - best.fun) / best.fun <= 1e-5


def test_fenchel_gap_is_zero_exactly_at_stationary_points():
    with jax.enable_x64(True):
        # min (x - g)^2 / 2 in the box has the solution clip(g); its gradient points outwards.
        goal = jnp.asarray([3.0, -0.2, 0.5])
        best = jnp.clip(goal, -1.0, 1.0)
        gap = analysis.fenchel_gap(K.l1(), best, best - goal, 1.0)
        assert abs(gap) <= 1e-15
        assert analysis.fenchel_gap(K.l1(), 0.9 * best, 0.9 * best - goal, 1.0) > 0.01
        assert analysis.fenchel_gap(K.l1(), 2.0 * best, goal, 1.0) == jnp.inf
        assert analysis.fenchel_gap(K.l2(), goal, jnp.asarray([3.0, 4.0, 0.0]), 0.0) == 5.0


def test_zero_decay_has_no_constraint_and_no_division_by_zero():
    x = {"a": jnp.ones(3)}
    assert analysis.objective(K.l1(), x, 2.0, 0.0) == 2.0
    assert analysis.phase(K.l1(), x, 0.0) == 2
    assert analysis.violation(K.l1(), x, 0.0) == {"a": 0.0}
    h = analysis.lyapunov(K.l1(), x, x, 2.0, 0.0, gamma=1.0, eps=0.5)
    assert h == 2.0 + 0.5 * 3.0
    traced = jit(lambda d: analysis.objective(K.l1(), x, 2.0, d))(0.0)
    assert traced == 2.0


def test_blocks_and_violation_per_leaf():
    kappa = K.blocks({"w": K.nuclear(), "b": K.l1()})
    params = {"w": 3.0 * jnp.eye(2), "b": jnp.array([0.5, -1.5])}
    far = analysis.violation(kappa, params, 1.0)
    np.testing.assert_allclose(far["w"], 2.0 * np.sqrt(2.0), rtol=1e-6)
    np.testing.assert_allclose(far["b"], 0.5, rtol=1e-6)
    np.testing.assert_allclose(
        kappa.value({"w": 3.0 * jnp.eye(2), "b": jnp.array([1.0, -2.0])}), 9.0, rtol=1e-6
    )
    optimizer = lion_k(0.1, kappa, weight_decay=1.0)
    updates, _ = optimizer.update(params, optimizer.init(params), params)
    np.testing.assert_allclose(updates["w"], -0.1 * (np.eye(2) + 3.0 * np.eye(2)), atol=1e-6)


def test_conventions_of_weight_decay():
    radius = analysis.constraint_radius
    assert radius("multiplied", 0.1, 1e-3) == 10.0
    assert radius("relative", 0.1, 1e-3, peak_learning_rate=0.01) == pytest.approx(0.1)
    assert radius("fixed", 0.1, 1e-3) == pytest.approx(0.01)
    assert radius("corrected", 0.1, 1e-3, peak_learning_rate=1e-2) == pytest.approx(100.0)
    assert radius("coupled", 0.1, 1e-3) == np.inf
    assert radius("multiplied", 0.0, 1e-3) == np.inf
    assert radius("multiplied", 0.5, 1e-3, scale=3.0) == 6.0
    with pytest.raises(ValueError, match="needs peak_learning_rate"):
        radius("relative", 0.1, 1e-3)
    with pytest.raises(ValueError, match="one of multiplied"):
        radius("l2", 0.1, 1e-3)


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({"b1": 0.99, "b2": 0.9}, "b1_above_b2"),
        ({"learning_rate": 2.0, "weight_decay": 0.6}, "decay_overshoots"),
        ({"convention": "coupled"}, "no_constraint"),
        ({"convention": "fixed", "decaying_learning_rate": True}, "moving_constraint"),
        ({"dtype": jnp.bfloat16}, "decay_lost_to_rounding"),
        ({"kappa": K.top_k(5), "params": {"b": jnp.ones(4)}}, "k_not_below_size"),
    ],
)
def test_settings_outside_the_theorem_are_named(changes, code):
    settings = {"learning_rate": 1e-3, "b1": 0.9, "b2": 0.99, "weight_decay": 1.0, **changes}
    assert [finding.code for finding in analysis.check_settings(**settings)] == [code]
    with pytest.warns(analysis.SettingsWarning, match=code):
        analysis.check_settings(**settings, warn=True)


def test_settings_inside_the_theorem_pass():
    assert not analysis.check_settings(learning_rate=1e-3, b1=0.9, b2=0.99, weight_decay=1.0)
    assert not analysis.check_settings(
        learning_rate=0.01, b1=0.9, b2=0.99, weight_decay=1.0, dtype=jnp.bfloat16
    )


class State:
    def __init__(self, step, params, opt_state):
        self.step, self.params, self.opt_state = step, params, opt_state


@pytest.mark.parametrize(("kappa", "b"), [(K.l1(), -0.4), (K.positive_part(), 0.4)])
def test_probe_reports_what_the_functions_compute(kappa, b):
    params = {"w": 0.3 * jnp.ones((2, 2)), "b": jnp.array([0.2, b])}

    def loss_fn(params, batch):
        return batch * sum(jnp.sum((p - 1.0) ** 2) for p in jax.tree.leaves(params))

    optimizer = lion_k(0.1, kappa, weight_decay=0.5)
    _, opt_state = optimizer.update(params, optimizer.init(params), params)
    probe = analysis.probe(kappa, loss_fn, learning_rate=lambda t: 0.1 / (t + 1), weight_decay=0.5)
    out = jit(lambda p, o, t: probe(State(t, p, o), 2.0))(params, opt_state, jnp.int32(1))
    loss, grads = jax.value_and_grad(loss_fn)(params, 2.0)
    np.testing.assert_allclose(out["loss"], loss, rtol=1e-6)
    expected = analysis.discrete_lyapunov(
        kappa, params, opt_state[0].mu, loss, 0.5, learning_rate=0.05
    )
    np.testing.assert_allclose(out["lyapunov"], expected, rtol=1e-6)
    gap = analysis.fenchel_gap(kappa, params, grads, 0.5)
    np.testing.assert_allclose(out["fenchel_gap"], gap, rtol=1e-6)
    assert out["violation"] == 0.0
    assert out["phase"] == 2
    rare = analysis.sampled(probe, 5)
    assert np.isfinite(rare(State(jnp.int32(5), params, opt_state), 2.0)["loss"])
    assert np.isnan(rare(State(jnp.int32(6), params, opt_state), 2.0)["loss"])


def test_momentum_is_found_in_partitions_formats_and_optax():
    params = {"w": jnp.ones((2, 2)), "b": jnp.ones(2)}
    groups = lion_k_groups(0.1, {"a": K.nuclear(), "c": K.l1()}, {"w": "a", "b": "c"}, b2=0.5)
    for optimizer in (groups, optax.lion(0.1, b2=0.5)):
        _, state = optimizer.update(params, optimizer.init(params), params)
        found = analysis.find_momentum(state, params)
        for leaf in jax.tree.leaves(found):
            np.testing.assert_allclose(leaf, 0.5)
    stored = low_precision.int8(block=4)
    optimizer = lion_k(0.1, K.l1(), b2=0.5, mu_dtype=stored)
    _, state = optimizer.update(params, optimizer.init(params), params)
    found = analysis.find_momentum(state, params, stored)
    np.testing.assert_allclose(found["w"], 0.5, rtol=1e-6)
    with pytest.raises(ValueError, match="pass its mu_dtype"):
        analysis.find_momentum(state, params)
    with pytest.raises(ValueError, match="no Lion-K momentum"):
        analysis.find_momentum(optax.sgd(0.1).init(params), params)
