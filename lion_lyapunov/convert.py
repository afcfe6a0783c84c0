"""Exact hyper-parameter maps between Lion-K and other optimizers, in both directions.

`from_*` gives `Settings`, whose `optimizer()` follows the other one to rounding error; `to_*` gives
the other's arguments, or says why there are none. What exists only in continuous time becomes an
`Ode`, the constants of `flow.vector_field`.
"""

import math
from typing import Any

import jax.numpy as jnp

from lion_lyapunov._checks import check_choice, check_positive, check_unit_interval
from lion_lyapunov._combine import scaled
from lion_lyapunov._convert_flow import accelerated_mirror_descent as accelerated_mirror_descent
from lion_lyapunov._convert_flow import from_dual_preconditioning as from_dual_preconditioning
from lion_lyapunov._convert_flow import from_mirror_descent as from_mirror_descent
from lion_lyapunov._convert_flow import from_ode as from_ode
from lion_lyapunov._convert_flow import hamiltonian_descent as hamiltonian_descent
from lion_lyapunov._convert_flow import to_ode as to_ode
from lion_lyapunov._kappa import Kappa
from lion_lyapunov._member import Ode as Ode
from lion_lyapunov._member import Settings as Settings
from lion_lyapunov._member import require
from lion_lyapunov._norms import l2
from lion_lyapunov._parts import by_shape, whole_tree
from lion_lyapunov._separable import half_squared_l2, huber, l1, log_cosh
from lion_lyapunov._spectral import nuclear

# optax.lion


def from_optax_lion(
    learning_rate: Any = 1e-4, b1: float = 0.9, b2: float = 0.99, weight_decay: Any = 1e-3
) -> Settings:
    """`optax.lion`: the same numbers, K = l1."""
    return Settings(l1(), learning_rate, b1, b2, weight_decay)


def to_optax_lion(settings: Settings) -> dict[str, Any]:
    """Arguments of `optax.lion`."""
    require(settings, settings.kappa.name == "l1", "to_optax_lion", "K = l1")
    return {
        "learning_rate": settings.learning_rate,
        "b1": settings.b1,
        "b2": settings.b2,
        "weight_decay": settings.weight_decay,
    }


def from_optax_scale_by_lion(
    learning_rate: Any,
    b1: float = 0.9,
    b2: float = 0.99,
    *,
    mode: str = "hard",
    smooth_beta: float = 1.0,
    weight_decay: Any = 0.0,
) -> Settings:
    """The modes of `optax.scale_by_lion`: l1 (hard), huber(1) (refined), log_cosh (smooth)."""
    check_choice("from_optax_scale_by_lion", "mode", mode, ("hard", "refined", "smooth"))
    kappa = {"hard": l1(), "refined": huber(1.0), "smooth": log_cosh(smooth_beta)}[mode]
    return Settings(kappa, learning_rate, b1, b2, weight_decay)


def from_optax_adamw(learning_rate: Any, weight_decay: Any = 1e-4) -> Settings:
    """`optax.adamw(b1=0, b2=0, eps=0)`, the one Adam in the family: K = l1 without memory.

    Where a gradient is exactly 0 Adam divides 0 by 0; here the entry rests.
    """
    return Settings(l1(), learning_rate, 0.0, 0.0, weight_decay)


# optax.sgd, optax.sign_sgd, normalised gradient descent


def from_optax_sgd(
    learning_rate: float, momentum: float = 0.0, *, nesterov: bool = False
) -> Settings:
    """`optax.sgd`: K = l2^2 / 2, b2 = momentum, b1 = momentum or its square with Nesterov.

    The average here is (1 - momentum) times the sum there, so the learning rate is divided.
    """
    check_unit_interval("from_optax_sgd", closed=False, momentum=momentum)
    b1 = momentum * momentum if nesterov else momentum
    return Settings(half_squared_l2(), learning_rate / (1.0 - momentum), b1, momentum)


def to_optax_sgd(settings: Settings) -> dict[str, Any]:
    """Arguments of `optax.sgd`."""
    kappa, rate, b1, b2, decay = settings
    plain, nesterov = _close(b1, b2), _close(b1, b2 * b2)
    require(
        settings,
        kappa.name == "half_squared_l2" and decay == 0 and (plain or nesterov),
        "to_optax_sgd",
        "K = half_squared_l2, b1 = b2 or b1 = b2^2, and weight_decay = 0",
    )
    return {
        "learning_rate": rate * (1.0 - b2),
        "momentum": b2,
        "nesterov": nesterov and not plain,
    }


def from_optax_sign_sgd(learning_rate: Any) -> Settings:
    """`optax.sign_sgd`: K = l1 without memory."""
    return Settings(l1(), learning_rate, 0.0, 0.0)


def to_optax_sign_sgd(settings: Settings) -> dict[str, Any]:
    """Arguments of `optax.sign_sgd`."""
    require(
        settings,
        settings.kappa.name == "l1" and settings.b1 == 0 and settings.weight_decay == 0,
        "to_optax_sign_sgd",
        "K = l1, b1 = 0 and weight_decay = 0",
    )
    return {"learning_rate": settings.learning_rate}


def from_signum(learning_rate: Any, beta: float = 0.9, weight_decay: Any = 0.0) -> Settings:
    """Signum, `chain(ema(beta, debias=False), scale_by_sign())`: K = l1, b1 = b2 = beta."""
    return Settings(l1(), learning_rate, beta, beta, weight_decay)


def from_normalized_gradient(learning_rate: Any) -> Settings:
    """`optax.normalize_by_update_norm`: K = l2 of the whole tree, without memory."""
    return Settings(whole_tree(l2()), learning_rate, 0.0, 0.0)


# Muon


def _muon_kappa(method: str, fan_out_first: bool) -> Kappa:
    exact = nuclear(method)

    def choose(shape):
        rows, columns = shape if fan_out_first else shape[::-1]
        return scaled(exact, math.sqrt(max(1.0, rows / columns)))

    return by_shape(choose, name="muon")


def from_optax_muon(
    learning_rate: Any,
    *,
    beta: float = 0.95,
    nesterov: bool = True,
    weight_decay: Any = 0.0,
    method: str = "polar",
) -> Settings:
    """`optax.contrib.muon` on matrices [fan_in, fan_out], with its orthogonalisation converged.

    Bias correction cancels in a kappa that ignores scale, except inside Nesterov's mix of two
    differently corrected terms, which is a b1 that grows to beta^2.
    """
    check_unit_interval("from_optax_muon", closed=False, beta=beta)

    def b1(count):
        t = count + 1.0
        old = beta * beta / (1.0 - beta ** (t + 1.0))
        new = beta * (1.0 - beta) / (1.0 - beta ** (t + 1.0)) + (1.0 - beta) / (1.0 - beta**t)
        return jnp.asarray(old / (old + new))

    return Settings(
        _muon_kappa(method, False), learning_rate, b1 if nesterov else beta, beta, weight_decay
    )


def to_optax_muon(settings: Settings) -> dict[str, Any]:
    """Arguments of `optax.contrib.muon` for settings without Nesterov (b1 = b2)."""
    require(
        settings,
        settings.kappa.name == "muon" and not callable(settings.b1) and settings.b1 == settings.b2,
        "to_optax_muon",
        "the kappa of from_optax_muon and b1 = b2",
    )
    return {
        "learning_rate": settings.learning_rate,
        "beta": settings.b2,
        "nesterov": False,
        "weight_decay": settings.weight_decay,
    }


def from_keller_muon(
    learning_rate: Any,
    *,
    momentum: float = 0.95,
    nesterov: bool = True,
    weight_decay: Any = 0.0,
    method: str = "polar",
) -> Settings:
    """Keller Jordan's Muon on matrices [out, in] (PyTorch's layout): b2 = momentum, b1 its square.

    Its factor sqrt(max(1, rows / columns)) is part of the kappa.
    """
    check_unit_interval("from_keller_muon", closed=False, momentum=momentum)
    b1 = momentum * momentum if nesterov else momentum
    return Settings(_muon_kappa(method, True), learning_rate, b1, momentum, weight_decay)


def to_keller_muon(settings: Settings) -> dict[str, Any]:
    """Arguments of Keller Jordan's Muon."""
    nesterov = _close(settings.b1, settings.b2**2)
    require(
        settings,
        settings.kappa.name == "muon" and (nesterov or _close(settings.b1, settings.b2)),
        "to_keller_muon",
        "the kappa of from_keller_muon and b1 = b2^2 or b1 = b2",
    )
    return {
        "lr": settings.learning_rate,
        "momentum": settings.b2,
        "nesterov": nesterov,
        "weight_decay": settings.weight_decay,
    }


# Scion and Frank-Wolfe


def from_scion(
    learning_rate: float,
    kappa: Kappa,
    *,
    momentum: float,
    radius: float,
    unconstrained: bool = False,
) -> Settings:
    """Scion: b1 = b2 = 1 - momentum, learning rate times radius, weight decay 1 / radius."""
    check_positive("from_scion", radius=radius)
    rate = learning_rate * radius
    decay = 0.0 if unconstrained else 1.0 / radius
    return Settings(kappa, rate, 1.0 - momentum, 1.0 - momentum, decay)


def to_scion(settings: Settings) -> dict[str, Any]:
    """Arguments of Scion (constrained)."""
    require(
        settings,
        settings.b1 == settings.b2 and settings.weight_decay > 0,
        "to_scion",
        "b1 = b2 and weight_decay > 0",
    )
    return {
        "lr": settings.learning_rate * settings.weight_decay,
        "momentum": 1.0 - settings.b2,
        "scale": 1.0 / settings.weight_decay,
    }


def from_frank_wolfe(
    step_size: float, kappa: Kappa, *, radius: float, momentum: float = 1.0
) -> Settings:
    """Frank-Wolfe with step s on {|x|_dual <= radius}: b1 = 0, learning rate s radius.

    Stochastic Frank-Wolfe averages gradients, d <- (1 - momentum) d + momentum g: b1 = b2.
    """
    return from_scion(step_size, kappa, momentum=momentum, radius=radius)


# Two-step convention


def from_two_step(
    learning_rate: Any, kappa: Kappa, *, b_n: float, b_p: float, weight_decay: Any = 0.0
) -> Settings:
    """The convention m+ = b_p m + (1 - b_p) g, direction b_n m+ + (1 - b_n) g: b1 = b_n b_p."""
    return Settings(kappa, learning_rate, b_n * b_p, b_p, weight_decay)


def to_two_step(settings: Settings) -> dict[str, Any]:
    """b_n and b_p of the two-step convention; needs b2 > 0."""
    require(settings, settings.b2 > 0, "to_two_step", "b2 > 0")
    return {"b_n": settings.b1 / settings.b2, "b_p": settings.b2}


def _close(a: Any, b: Any) -> bool:
    return not callable(a) and math.isclose(a, b, rel_tol=1e-12)
