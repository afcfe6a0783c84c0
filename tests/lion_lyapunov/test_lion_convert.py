"""Each hyper-parameter map is an equality of trajectories with the other optimizer."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from lion_lyapunov import convert, flow, scion
from lion_lyapunov import kappas as K

# Compiled once and run briefly: optimising the code would take longer than it saves.
jit = functools.partial(
    jax.jit,
    compiler_options={
        "xla_backend_optimization_level": 0,
        "xla_llvm_disable_expensive_passes": True,
    },
)


STEPS = 25
RNG = np.random.default_rng(0)
ROOT = RNG.normal(size=(12, 12)) / 3
HESSIAN = ROOT.T @ ROOT + 0.1 * np.eye(12)
GOAL = RNG.normal(size=12)
MATRIX = (4, 3)
EXACT_MUON = {"ns_coeffs": (15 / 8, -10 / 8, 3 / 8), "ns_steps": 40, "preconditioning": "spectral"}


def gradient(x, xp=np):
    return (HESSIAN @ (x.reshape(-1) - GOAL)).reshape(x.shape)


def path(optimizer, shape=(12,)):
    with jax.enable_x64(True):
        x = jnp.asarray(np.random.default_rng(1).normal(size=shape))

        def step(carry, _):
            x, state = carry
            updates, state = optimizer.update(gradient(x), state, x)
            x = x + updates
            return (x, state), x

        run = jit(lambda x: jax.lax.scan(step, (x, optimizer.init(x)), length=STEPS)[1])
        return np.asarray(run(x))


def numpy_path(update, shape=(12,)):
    x, state, out = np.random.default_rng(1).normal(size=shape), np.zeros(shape), []
    for _ in range(STEPS):
        x, state = update(x, gradient(x), state)
        out.append(x)
    return np.array(out)


def polar(z):
    u, _, v = np.linalg.svd(z, full_matrices=False)
    return u @ v


def decayed(rate, decay=0.1):
    return {"learning_rate": rate, "weight_decay": decay}


ROWS = {
    "lion": (convert.from_optax_lion(0.02, 0.9, 0.98, 0.1), optax.lion(0.02, 0.9, 0.98, None, 0.1)),
    "sgd": (convert.from_optax_sgd(0.1), optax.sgd(0.1)),
    "polyak": (convert.from_optax_sgd(0.1, 0.8), optax.sgd(0.1, 0.8)),
    "nesterov": (
        convert.from_optax_sgd(0.1, 0.8, nesterov=True),
        optax.sgd(0.1, 0.8, nesterov=True),
    ),
    "sign_sgd": (convert.from_optax_sign_sgd(0.01), optax.sign_sgd(0.01)),
    "adamw_without_memory": (
        convert.from_optax_adamw(0.01, 0.1),
        optax.adamw(0.01, b1=0.0, b2=0.0, eps=0.0, weight_decay=0.1),
    ),
    "refined": (
        convert.from_optax_scale_by_lion(0.02, 0.9, 0.98, mode="refined"),
        optax.chain(optax.scale_by_lion(0.9, 0.98, mode="refined"), optax.scale(-0.02)),
    ),
    "smooth": (
        convert.from_optax_scale_by_lion(0.02, 0.9, 0.98, mode="smooth", smooth_beta=3.0),
        optax.chain(
            optax.scale_by_lion(0.9, 0.98, mode="smooth", smooth_beta=3.0), optax.scale(-0.02)
        ),
    ),
    "signum": (
        convert.from_signum(0.01, 0.9),
        optax.chain(optax.ema(0.9, debias=False), optax.scale_by_sign(), optax.scale(-0.01)),
    ),
    "normalized": (
        convert.from_normalized_gradient(0.05),
        optax.chain(optax.normalize_by_update_norm(eps=0.0), optax.scale(-0.05)),
    ),
}


@pytest.mark.parametrize("name", ROWS)
def test_map_to_optax(name):
    settings, theirs = ROWS[name]
    np.testing.assert_allclose(path(settings.optimizer()), path(theirs), rtol=0, atol=1e-12)


@pytest.mark.parametrize(
    ("nesterov", "shape"),
    [
        (True, (4, 3)),
        (False, (3, 4)),
        pytest.param(True, (3, 4), marks=pytest.mark.slow),
        pytest.param(False, (4, 3), marks=pytest.mark.slow),
    ],
)
def test_map_to_optax_muon_with_its_iteration_converged(nesterov, shape):
    settings = convert.from_optax_muon(0.02, beta=0.9, nesterov=nesterov, weight_decay=0.1)
    theirs = optax.contrib.muon(
        0.02, beta=0.9, nesterov=nesterov, weight_decay=0.1, eps=0.0, **EXACT_MUON
    )
    ours = path(settings.optimizer(), shape)
    np.testing.assert_allclose(ours, path(theirs, shape), rtol=0, atol=1e-10)


def keller(x, g, m, rate=0.02, momentum=0.9, nesterov=True, decay=0.1):
    m = momentum * m + (1 - momentum) * g
    update = (1 - momentum) * g + momentum * m if nesterov else m
    update = polar(update) * max(1, x.shape[0] / x.shape[1]) ** 0.5
    return (1 - rate * decay) * x - rate * update, m


@pytest.mark.parametrize("shape", [(4, 3), (3, 4)])
def test_map_to_keller_jordans_muon(shape):
    settings = convert.from_keller_muon(0.02, momentum=0.9, weight_decay=0.1)
    np.testing.assert_allclose(
        path(settings.optimizer(), shape), numpy_path(keller, shape), rtol=0, atol=1e-10
    )


@pytest.mark.parametrize("constrained", [True, False])
def test_map_to_scion(constrained):
    rate, momentum, radius = 0.05, 0.2, 3.0

    def update(x, g, m):
        m = (1 - momentum) * m + momentum * g
        return (1 - rate * constrained) * x - rate * radius * np.sign(m), m

    settings = convert.from_scion(
        rate, K.l1(), momentum=momentum, radius=radius, unconstrained=not constrained
    )
    expected = numpy_path(update)
    np.testing.assert_allclose(path(settings.optimizer()), expected, rtol=0, atol=1e-12)
    named = scion(rate, K.l1(), momentum=momentum, radius=radius, constrained=constrained)
    np.testing.assert_allclose(path(named), expected, rtol=0, atol=1e-12)


def test_map_to_frank_wolfe():
    def update(x, g, m):
        vertex = np.zeros(12)
        vertex[np.argmax(np.abs(g))] = -2.0 * np.sign(g[np.argmax(np.abs(g))])
        return 0.9 * x + 0.1 * vertex, m

    settings = convert.from_frank_wolfe(0.1, K.linf(), radius=2.0)
    np.testing.assert_allclose(path(settings.optimizer()), numpy_path(update), rtol=0, atol=1e-12)


def test_map_to_stochastic_frank_wolfe_with_momentum():
    def update(x, g, d):
        d = 0.7 * d + 0.3 * g
        return 0.9 * x - 0.1 * 2.0 * d / np.linalg.norm(d), d

    settings = convert.from_frank_wolfe(0.1, K.l2(), radius=2.0, momentum=0.3)
    np.testing.assert_allclose(path(settings.optimizer()), numpy_path(update), rtol=0, atol=1e-12)


def test_map_to_dual_space_preconditioning():
    def update(x, g, _):
        return x - 0.05 * g / np.sqrt(g * g + 0.25), _

    settings = convert.from_dual_preconditioning(0.05, K.relativistic(0.5))
    np.testing.assert_allclose(path(settings.optimizer()), numpy_path(update), rtol=0, atol=1e-12)


def test_map_to_mirror_descent_exchanges_objective_and_mirror_map():
    # Exponentiated gradient on the simplex: phi(w) = sum sqrt(w^2 + 1/4) - 1/2, w = softmax(y).
    settings = convert.from_mirror_descent(0.3, K.relativistic(0.5))
    optimizer = settings.optimizer()
    y = ours = np.random.default_rng(1).normal(size=12)
    with jax.enable_x64(True):
        ours = jnp.asarray(ours)
        state = optimizer.init(ours)
        for _ in range(STEPS):
            updates, state = optimizer.update(jax.nn.softmax(ours), state, ours)
            ours = ours + updates
            w = np.exp(y) / np.exp(y).sum()
            y = y - 0.3 * w / np.sqrt(w * w + 0.25)
            np.testing.assert_allclose(ours, y, rtol=0, atol=1e-12)
    with pytest.raises(ValueError, match="objective must be even"):
        convert.from_mirror_descent(0.3, K.log_sum_exp(1.0))


def fields(kappa, ode, x, m):
    """x' and m' of the package at one point."""
    with jax.enable_x64(True):
        field = flow.vector_field(
            kappa, lambda x: 0.5 * (x - GOAL) @ (HESSIAN @ (x - GOAL)), ode.weight_decay,
            alpha=ode.alpha, gamma=ode.gamma, eps=ode.eps,
        )  # fmt: skip
        return [np.asarray(speed) for speed in field(jnp.asarray(x), jnp.asarray(m))]


def test_map_to_hamiltonian_descent():
    rng = np.random.default_rng(2)
    ode = convert.hamiltonian_descent(gamma=0.7, weight_decay=0.2)
    for _ in range(5):
        x, p = rng.normal(size=(2, 12))
        speeds = fields(K.relativistic(0.5), ode, x, p)
        np.testing.assert_allclose(speeds[0], p / np.sqrt(p * p + 0.25) - 0.2 * x, 0, 1e-12)
        np.testing.assert_allclose(speeds[1], -gradient(x) - 0.7 * p, 0, 1e-12)

    # Without friction's scale the optimizer is its Euler scheme, and b1 = 1.
    settings = convert.from_ode(
        K.relativistic(0.5), convert.hamiltonian_descent(gamma=1.0, step_size=0.05)
    )
    assert settings.b1 == 1.0

    def update(x, g, mu):
        return x - 0.05 * mu / np.sqrt(mu * mu + 0.25), mu + 0.05 * (g - mu)

    np.testing.assert_allclose(path(settings.optimizer()), numpy_path(update), rtol=0, atol=1e-12)


def test_map_to_accelerated_mirror_descent():
    rng = np.random.default_rng(3)
    for time in (0.5, 2.0, 30.0):
        kappa, ode = convert.accelerated_mirror_descent(K.log_sum_exp(1.0), time, r=3.0)
        x, z = rng.normal(size=(2, 12))
        speeds = fields(kappa, ode, x, z)
        weights = np.exp(z - z.max()) / np.exp(z - z.max()).sum()
        np.testing.assert_allclose(speeds[0], 3.0 / time * (weights - x), 0, 1e-12)
        np.testing.assert_allclose(speeds[1], -time / 3.0 * gradient(x), 0, 1e-12)


def test_map_to_the_two_step_convention():
    def update(x, g, m):
        m = 0.95 * m + 0.05 * g
        return x - 0.02 * (np.tanh(0.8 * m + 0.2 * g) + 0.1 * x), m

    settings = convert.from_two_step(0.02, K.log_cosh(1.0), b_n=0.8, b_p=0.95, weight_decay=0.1)
    expected = numpy_path(update)
    np.testing.assert_allclose(path(settings.optimizer()), expected, rtol=0, atol=1e-12)
    back = convert.to_two_step(settings)
    assert back == {"b_n": pytest.approx(0.8), "b_p": 0.95}


def test_map_to_the_ode_is_its_euler_scheme():
    ode = convert.Ode(alpha=1.5, gamma=1.5, eps=0.2, weight_decay=0.3, step_size=0.01)

    def update(x, g, minus_m):
        m = -minus_m
        speed = -1.5 * g - 1.5 * m
        return x + 0.01 * (np.tanh(m + 0.2 * speed) - 0.3 * x), -(m + 0.01 * speed)

    settings = convert.from_ode(K.log_cosh(1.0), ode)
    expected = numpy_path(update)
    np.testing.assert_allclose(path(settings.optimizer()), expected, rtol=0, atol=1e-12)
    np.testing.assert_allclose(convert.to_ode(settings), ode, rtol=1e-12)
    with pytest.raises(ValueError, match="alpha must equal gamma"):
        convert.from_ode(K.log_cosh(1.0), ode._replace(alpha=1.0))


@pytest.mark.parametrize(
    ("there", "back", "arguments"),
    [
        (convert.from_optax_lion, convert.to_optax_lion, decayed(0.1) | {"b1": 0.8, "b2": 0.9}),
        (
            convert.from_optax_sgd,
            convert.to_optax_sgd,
            {"learning_rate": 0.1, "momentum": 0.9, "nesterov": True},
        ),
        (
            convert.from_optax_sgd,
            convert.to_optax_sgd,
            {"learning_rate": 0.1, "momentum": 0.9, "nesterov": False},
        ),
        (convert.from_optax_sign_sgd, convert.to_optax_sign_sgd, {"learning_rate": 0.1}),
        (
            convert.from_optax_muon,
            convert.to_optax_muon,
            decayed(0.1) | {"beta": 0.9, "nesterov": False},
        ),
    ],
)
def test_there_and_back(there, back, arguments):
    result = back(there(**arguments))
    assert {name: pytest.approx(value) for name, value in arguments.items()} == result


def test_keller_and_scion_there_and_back():
    muon = convert.to_keller_muon(convert.from_keller_muon(0.02, momentum=0.9, weight_decay=0.1))
    assert muon == {"lr": 0.02, "momentum": 0.9, "nesterov": True, "weight_decay": 0.1}
    out = convert.to_scion(convert.from_scion(0.05, K.l1(), momentum=0.2, radius=4.0))
    assert out == {"lr": pytest.approx(0.05), "momentum": pytest.approx(0.2), "scale": 4.0}


def test_what_has_no_counterpart_is_refused():
    with pytest.raises(ValueError, match="needs K = l1"):
        convert.to_optax_lion(convert.from_optax_sgd(0.1))
    with pytest.raises(ValueError, match="b1 = b2 or b1 = b2"):
        convert.to_optax_sgd(convert.Settings(K.half_squared_l2(), 0.1, 0.3, 0.9))
    with pytest.raises(ValueError, match="weight_decay > 0"):
        convert.to_scion(convert.from_signum(0.1))
