"""The Lyapunov functions of Lion-K, in continuous and in discrete time.

Letters, as in Chen et al. (2023, arXiv:2310.05898), for pytrees of one structure:

  x      parameters
  m      momentum of the ODE; the optimizer's average is mu = -m
  lam    weight decay
  mt     m + eps m', the argument of the kappa in the flow (z in discrete time)

The flow is m' = -alpha grad f(x) - gamma m, x' = subgradient(mt) - lam x. A step of the optimizer
is x+ = x + e (subgradient(z) - lam x+) with e = learning_rate / (1 - learning_rate lam).
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from lion_lyapunov._checks import Number
from lion_lyapunov._kappa import Array, Kappa
from lion_lyapunov._objective import inner, loss_value, penalty, times
from lion_lyapunov._parts import on_tree

PyTree = Any
Loss = Number | Callable[[PyTree], Array]


class Decrements(NamedTuple):
    """The two non-negative parts of the decrease of H along the flow."""

    delta1: Array  # <mt - subgradient of K* at lam x, subgradient(mt) - lam x>
    delta2: Array  # <m', subgradient(mt) - subgradient(m)>
    rate: Array  # -dH/dt


class DiscreteDecrements(NamedTuple):
    """What the theorem says about one step."""

    d1: Array  # >= 0
    d2: Array  # >= 0
    bound: Array  # right-hand side: H(x+, m+) - H(x, m) <= bound


def _subtract(a: PyTree, b: PyTree) -> PyTree:
    return jax.tree.map(jnp.subtract, a, b)


def _coupling(kappa: Kappa, params: PyTree, momentum: PyTree, weight_decay: Number) -> Array:
    """K*(lam x) + K(m) - lam <x, m> >= 0, Fenchel and Young's inequality."""
    conjugate = penalty(kappa, params, weight_decay) * weight_decay
    return on_tree(kappa).value(momentum) + conjugate - weight_decay * inner(params, momentum)


def _weighted(weight: Number, value: Array) -> Array:
    """weight * value, and 0 for weight 0 even where the value is infinite."""
    return jnp.where(weight == 0, 0.0, weight * value)


def lyapunov(
    kappa: Kappa,
    params: PyTree,
    momentum: PyTree,
    loss: Loss,
    weight_decay: Number,
    *,
    alpha: Number = 1.0,
    gamma: Number = 1.0,
    eps: Number = 0.1,
) -> Array:
    """H(x, m), which never increases along the flow once x is feasible.

    H = alpha f + gamma K*(lam x) / lam
        + (1 - eps gamma) / (1 + eps lam) [K*(lam x) + K(m) - lam <x, m>]

    Args:
      kappa: the convex function K.
      params: x.
      momentum: m of the flow (minus the optimizer's average).
      loss: f(x), or the function f.
      weight_decay: lam >= 0.
      alpha, gamma: > 0, strength of the gradient and damping of the flow.
      eps: gradient enhancement, >= 0; the theorem needs eps gamma <= 1.
    """
    weight = (1.0 - eps * gamma) / (1.0 + eps * weight_decay)
    coupling = _coupling(kappa, params, momentum, weight_decay)
    return (
        alpha * loss_value(loss, params)
        + gamma * penalty(kappa, params, weight_decay)
        + _weighted(weight, coupling)
    )


def decrements(
    kappa: Kappa,
    params: PyTree,
    momentum: PyTree,
    grads: PyTree,
    weight_decay: Number,
    *,
    alpha: Number = 1.0,
    gamma: Number = 1.0,
    eps: Number = 0.1,
) -> Decrements:
    """How fast H falls along the flow, and why.

    dH/dt = -(lam + gamma) / (1 + eps lam) delta1 - (1 - eps gamma) / (1 + eps lam) delta2.

    Args:
      kappa, params, momentum, weight_decay, alpha, gamma, eps: of `lyapunov`.
      grads: the gradient of f at x.
    """
    whole = on_tree(kappa)
    speed = jax.tree.map(lambda g, m: -alpha * g - gamma * m, grads, momentum)
    ahead = jax.tree.map(lambda m, v: m + eps * v, momentum, speed)
    slope_ahead = whole.subgradient(ahead)
    y = times(weight_decay, params)
    delta1 = inner(_subtract(ahead, whole.conjugate_subgradient(y)), _subtract(slope_ahead, y))
    delta2 = inner(speed, _subtract(slope_ahead, whole.subgradient(momentum)))
    shared = 1.0 + eps * weight_decay
    rate = (weight_decay + gamma) / shared * delta1 + (1.0 - eps * gamma) / shared * delta2
    return Decrements(delta1, delta2, rate)


def implicit_step(learning_rate: Number, weight_decay: Number) -> Number:
    """e = learning_rate / (1 - learning_rate weight_decay), the step of the implicit scheme."""
    return learning_rate / (1.0 - learning_rate * weight_decay)


def coupling_weight(learning_rate: Number, b1: Number, b2: Number, weight_decay: Number) -> Number:
    """c = e b1 / (e lam (1 - b1) + 1 - b2), the weight of the coupling in discrete time."""
    e = implicit_step(learning_rate, weight_decay)
    return e * b1 / (e * weight_decay * (1.0 - b1) + (1.0 - b2))


def discrete_lyapunov(
    kappa: Kappa,
    params: PyTree,
    mu: PyTree,
    loss: Loss,
    weight_decay: Number,
    *,
    learning_rate: Number,
    b1: Number = 0.9,
    b2: Number = 0.99,
) -> Array:
    """H(x, m) of the optimizer, f + K*(lam x) / lam + c [K*(lam x) + K(m) - lam <x, m>].

    Near the optimum H may rise by O(learning_rate^2) a step; what never fails is the bound of
    `discrete_decrements`.

    Args:
      kappa: the convex function K.
      params: x.
      mu: the average in the optimizer's state, in optax's sign; m = -mu.
      loss: f(x), or the function f.
      weight_decay: lam >= 0.
      learning_rate, b1, b2: of the optimizer at this step; learning_rate lam < 1.
    """
    weight = coupling_weight(learning_rate, b1, b2, weight_decay)
    coupling = _coupling(kappa, params, times(-1.0, mu), weight_decay)
    return (
        loss_value(loss, params)
        + penalty(kappa, params, weight_decay)
        + _weighted(weight, coupling)
    )


def discrete_decrements(
    kappa: Kappa,
    next_params: PyTree,
    mu: PyTree,
    next_mu: PyTree,
    grads: PyTree,
    weight_decay: Number,
    *,
    learning_rate: Number,
    smoothness: Number,
    b1: Number = 0.9,
    b2: Number = 0.99,
) -> DiscreteDecrements:
    """D1, D2 and the theorem's bound on H(x+, m+) - H(x, m) for one step of the optimizer.

    bound = -e (1 + c lam) D1 - c (1 - b2) / (b2 - b1) D2 + smoothness e^2 |V|^2 / 2 with
    V = subgradient(z) - lam x+. It holds for b1 <= b2 (at b1 = b2 the D2 term is 0), a feasible x
    and any convex K, and for learning rates that do not grow from step to step.

    Args:
      kappa, weight_decay, learning_rate, b1, b2: of `discrete_lyapunov`.
      next_params: x+ after the step.
      mu, next_mu: the averages before and after.
      grads: the gradient that made the step, taken at x.
      smoothness: a Lipschitz constant of the gradient of f.
    """
    whole = on_tree(kappa)
    z = jax.tree.map(lambda g, a: -((1.0 - b1) * g + b1 * a), grads, mu)
    after = times(-1.0, next_mu)
    y = times(weight_decay, next_params)
    slope = whole.subgradient(z)
    v = _subtract(slope, y)
    d1 = inner(v, _subtract(z, whole.conjugate_subgradient(y)))
    d2 = inner(_subtract(whole.subgradient(after), slope), _subtract(after, z))
    e = implicit_step(learning_rate, weight_decay)
    c = coupling_weight(learning_rate, b1, b2, weight_decay)
    same = b1 == b2
    d2_weight = jnp.where(same, 0.0, c * (1.0 - b2) / jnp.where(same, 1.0, b2 - b1))
    bound = (
        -e * (1.0 + c * weight_decay) * d1 - d2_weight * d2 + 0.5 * smoothness * e**2 * inner(v, v)
    )
    return DiscreteDecrements(d1, d2, bound)
