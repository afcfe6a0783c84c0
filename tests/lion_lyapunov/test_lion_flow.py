"""The flow: the Lyapunov function falls, at the rate of the theorem, along independent paths."""

import functools
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.integrate import solve_ivp

from lion_lyapunov import analysis, flow
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
ROOT = RNG.normal(size=(4, 4)) / 2
HESSIAN = ROOT.T @ ROOT + 0.1 * np.eye(4)
GOAL = 2.0 * RNG.normal(size=4)
SETTINGS = {"alpha": 1.0, "gamma": 1.3, "eps": 0.2}
DECAY = 0.7


def loss(x):
    gap = x - jnp.asarray(GOAL)
    return 0.5 * gap @ jnp.asarray(HESSIAN) @ gap


SMOOTH = {
    "log_cosh": (K.log_cosh(2.0), lambda z: np.tanh(2 * z)),
    "relativistic": (K.relativistic(0.3), lambda z: z / np.sqrt(z * z + 0.09)),
    "half_squared_l2": (K.half_squared_l2(), lambda z: z),
    "arctan": (K.arctan(1.0), lambda z: 2 / np.pi * np.arctan(z)),
}


@pytest.mark.parametrize(
    "name",
    ["log_cosh", *[pytest.param(n, marks=pytest.mark.slow) for n in SMOOTH if n != "log_cosh"]],
)
def test_lyapunov_never_rises_and_the_path_is_scipy_s(name):
    kappa, slope = SMOOTH[name]
    start = np.array([0.5, -0.3, 0.2, 0.9])
    with jax.enable_x64(True):
        path = flow.solve(
            kappa, loss, jnp.asarray(start), duration=10.0, weight_decay=DECAY, num_saves=120,
            **SETTINGS,
        )  # fmt: skip
        h, params = np.asarray(path.lyapunov), np.asarray(path.params)
        middle = np.asarray(path.evaluate(5.0)[0])
    assert path.method == "adaptive"
    assert "smooth" in path.message
    assert np.diff(h).max() <= 1e-8
    assert h[0] - h[-1] > 0.1

    def field(t, y):
        x, m = y[:4], y[4:]
        speed = -HESSIAN @ (x - GOAL) - 1.3 * m
        return np.concatenate([slope(m + 0.2 * speed) - DECAY * x, speed])

    times = np.append(np.asarray(path.times), 5.0)
    order = np.argsort(times)
    reference = solve_ivp(
        field, (0, 10), np.concatenate([start, np.zeros(4)]), "DOP853", times[order],
        rtol=1e-11, atol=1e-12,
    ).y[:4].T[np.argsort(order)]  # fmt: skip
    np.testing.assert_allclose(params, reference[:-1], atol=1e-6)
    np.testing.assert_allclose(middle, reference[-1], atol=1e-6)


@pytest.mark.parametrize(
    ("kappa", "shape"),
    [
        (K.log_cosh(2.0), (6,)),
        (K.huber(0.5), (6,)),
        (K.half_squared_l2(), (6,)),
        (K.l2(), (6,)),
        (K.lp(1.5), (6,)),
        (K.l1(), (6,)),
        (K.spectral(K.relativistic(0.3)), (3, 2)),
        (K.nuclear("svd"), (3, 2)),
    ],
    ids=lambda value: getattr(value, "name", ""),
)
def test_rate_of_the_theorem_is_the_derivative(kappa, shape):
    rng = np.random.default_rng(5)
    with jax.enable_x64(True):
        goal = jnp.asarray(rng.normal(size=shape))

        def loss_fn(x):
            return jnp.sum((x - goal) ** 2) + 0.1 * jnp.sum(x**4)

        field = flow.vector_field(kappa, loss_fn, DECAY, **SETTINGS)

        def both(x, m):
            dh = jax.jvp(
                lambda x, m: analysis.lyapunov(kappa, x, m, loss_fn, DECAY, **SETTINGS),
                (x, m),
                field(x, m),
            )[1]
            return dh, analysis.decrements(kappa, x, m, jax.grad(loss_fn)(x), DECAY, **SETTINGS)

        xs = jax.vmap(kappa.project)(jnp.asarray(rng.normal(size=(20, *shape)))) * 0.9 / DECAY
        run = jit(jax.vmap(both))
        dh, parts = jax.tree.map(np.asarray, run(xs, jnp.asarray(rng.normal(size=(20, *shape)))))
    error = np.abs(dh + parts.rate) / (1 + np.abs(dh))
    assert error.max() <= 1e-10
    assert np.min(parts.delta1) >= -1e-12
    assert np.min(parts.delta2) >= -1e-12
    assert np.min(parts.rate) > 0


@pytest.mark.slow
def test_zero_decay_flow_loses_energy_as_stated():
    with jax.enable_x64(True):
        path = flow.solve(
            K.log_cosh(1.0), loss, jnp.ones(4), duration=5.0, weight_decay=0.0, num_saves=50,
            **SETTINGS,
        )  # fmt: skip
        assert np.diff(path.lyapunov).max() <= 1e-8


def test_kinks_take_the_implicit_scheme_and_arrive():
    with jax.enable_x64(True):
        start = time.process_time()
        path = flow.solve(
            K.l1(), loss, jnp.full(4, 0.1), duration=30.0, weight_decay=DECAY, **SETTINGS
        )
        seconds = time.process_time() - start
        params = np.asarray(path.params)
    assert path.method == "implicit"
    assert "kinks" in path.message
    assert seconds < 5.0
    assert np.abs(params).max() * DECAY <= 1.0 + 1e-12
    # The Lyapunov function falls up to the square of the step.
    assert np.diff(path.lyapunov).max() <= 1e-4
    box = np.clip(params[-1], -1 / DECAY, 1 / DECAY)
    grads = HESSIAN @ (box - GOAL)
    inside = np.abs(box) < 1 / DECAY - 1e-2
    assert np.abs(grads[inside]).max(initial=0.0) <= 2e-2


def test_implicit_scheme_is_the_optimizer():
    from lion_lyapunov import convert

    ode = convert.Ode(alpha=1.3, gamma=1.3, eps=0.2, weight_decay=DECAY, step_size=0.01)
    with jax.enable_x64(True):
        path = flow.solve(
            K.l1(), loss, jnp.ones(4), duration=1.0, weight_decay=DECAY, alpha=1.3, gamma=1.3,
            eps=0.2, method="implicit", step_size=0.01, num_saves=101,
        )  # fmt: skip
        settings = convert.from_ode(K.l1(), ode)
        # The explicit step of length lr is the implicit one of length lr / (1 - lr lam).
        optimizer = settings._replace(
            learning_rate=0.01 / (1 + 0.01 * DECAY), kappa=K.l1()
        ).optimizer()
        x, state = jnp.ones(4), optimizer.init(jnp.ones(4))
        for step in range(100):
            updates, state = optimizer.update(jax.grad(loss)(x), state, x)
            x = x + updates
            np.testing.assert_allclose(path.params[step + 1], x, atol=1e-13)


def test_events_stop_both_methods_at_the_same_place():
    def event(t, x, m):
        return x[0] + 1.0

    with jax.enable_x64(True):
        found = [
            flow.solve(
                K.log_cosh(2.0),
                loss,
                jnp.zeros(4),
                duration=20.0,
                weight_decay=0.1,
                event=event,
                method=method,
                num_saves=400,
                eps=0.1,
            )
            for method in ("adaptive", "implicit")
        ]
        assert abs(found[0].params[-1, 0] + 1.0) <= 1e-7
    assert found[0].event_time is not None
    assert found[1].event_time == pytest.approx(found[0].event_time, abs=2e-2)
    with jax.enable_x64(True):
        for path in found:
            assert np.asarray(path.times)[-1] == pytest.approx(path.event_time, rel=1e-6)
            assert path.times[-1] < 20.0
            # The path ends where the event is, to the accuracy of a line between two saved times.
            assert float(path.params[-1, 0]) == pytest.approx(-1.0, abs=1e-3)
            inside = path.evaluate(0.5 * path.event_time)[0]
            after = int(np.searchsorted(path.times, 0.5 * path.event_time))
            low, high = np.sort(np.asarray(path.params)[after - 1 : after + 1], axis=0)
            assert np.all((low - 1e-9 <= inside) & (inside <= high + 1e-9))


def test_bad_flows_are_refused():
    x = jnp.zeros(4)
    with pytest.raises(ValueError, match=r"eps \* gamma must be <= 1"):
        flow.solve(K.l1(), loss, x, duration=1.0, weight_decay=0.1, eps=2.0)
    with pytest.raises(ValueError, match="duration must be"):
        flow.solve(K.l1(), loss, x, duration=-1.0, weight_decay=0.1)
    with (
        jax.enable_x64(True),
        pytest.raises(RuntimeError, match=r"gave up after .* Use method"),
    ):
        flow.solve(
            K.l1(), loss, jnp.zeros(4), duration=30.0, weight_decay=0.7, method="adaptive",
            max_steps=2000,
        )  # fmt: skip
