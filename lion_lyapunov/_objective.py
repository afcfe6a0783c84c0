"""What Lion-K minimises, how far a point is from it, and from satisfying its constraint."""

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from lion_lyapunov._checks import Number, check_choice, check_non_negative
from lion_lyapunov._kappa import Array, Kappa
from lion_lyapunov._parts import on_tree

PyTree = Any


def times(factor: Number, tree: PyTree) -> PyTree:
    """factor * tree, leaf by leaf."""
    return jax.tree.map(lambda leaf: factor * leaf, tree)


def inner(a: PyTree, b: PyTree) -> Array:
    """<a, b>, summed over the leaves."""
    parts = [jnp.sum(x * y) for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)]
    return sum(parts[1:], parts[0]) if parts else jnp.zeros(())


def penalty(kappa: Kappa, params: PyTree, weight_decay: Number) -> Array:
    """K*(lam x) / lam, and its limit 0 where lam = 0."""
    check_non_negative("weight_decay", weight_decay=weight_decay)
    if isinstance(weight_decay, int | float) and weight_decay == 0:
        return jnp.zeros(())
    safe = jnp.where(weight_decay == 0, 1.0, weight_decay)
    value = on_tree(kappa).conjugate(times(weight_decay, params)) / safe
    return jnp.where(weight_decay == 0, 0.0, value)


def loss_value(loss: Number | Callable[[PyTree], Array], params: PyTree) -> Array:
    """f(x), from a number or a function of the parameters."""
    return jnp.asarray(loss(params) if callable(loss) else loss)


def objective(
    kappa: Kappa,
    params: PyTree,
    loss: Number | Callable[[PyTree], Array],
    weight_decay: Number,
) -> Array:
    """F(x) = f(x) + K*(weight_decay x) / weight_decay: what Lion-K minimises.

    Args:
      kappa: the convex function K.
      params: x, any pytree.
      loss: f(x), or the function f.
      weight_decay: lam >= 0; with 0, F is f.
    Returns:
      A scalar; +inf while the constraint is violated.
    """
    return loss_value(loss, params) + penalty(kappa, params, weight_decay)


def fenchel_gap(kappa: Kappa, params: PyTree, grads: PyTree, weight_decay: Number) -> Array:
    """G(x) = K(-grad f) + K*(lam x) + lam <grad f, x>: the KKT residual of the objective.

    It is >= 0, and 0 exactly at stationary points. For a support function it is lam times the
    Frank-Wolfe gap. +inf where x is infeasible. For lam = 0 it is K(-grad f).

    Args:
      kappa: the convex function K.
      params: x.
      grads: the gradient of f at x.
      weight_decay: lam >= 0.
    """
    whole = on_tree(kappa)
    value = whole.value(times(-1.0, grads))
    if isinstance(weight_decay, int | float) and weight_decay == 0:
        return value
    scaled_params = times(weight_decay, params)
    return value + whole.conjugate(scaled_params) + inner(grads, scaled_params)


def violation(kappa: Kappa, params: PyTree, weight_decay: Number) -> PyTree:
    """Euclidean distance of weight_decay x from the closure of the domain of K*, for each leaf.

    Returns:
      A pytree of scalars like `params`; 0 where the constraint holds. In phase 1 it shrinks by
      1 - learning_rate weight_decay a step.

    >>> from lion_lyapunov import kappas
    >>> print(violation(kappas.l1(), {"w": jnp.array([0.5, -3.0])}, 1.0))
    {'w': Array(2., dtype=float32)}
    """
    y = times(weight_decay, params)
    nearest = on_tree(kappa).project(y)
    return jax.tree.map(lambda a, b: jnp.sqrt(jnp.sum((a - b) ** 2)), y, nearest)


def distance(kappa: Kappa, params: PyTree, weight_decay: Number) -> Array:
    """The violations of all leaves as one Euclidean distance."""
    leaves = jax.tree.leaves(violation(kappa, params, weight_decay))
    return jnp.sqrt(sum((leaf**2 for leaf in leaves), jnp.zeros(())))


def phase(kappa: Kappa, params: PyTree, weight_decay: Number) -> Array:
    """1 while K*(weight_decay x) is infinite (x approaches the set), else 2 (F decreases)."""
    return jnp.where(jnp.isfinite(penalty(kappa, params, weight_decay)), 2, 1)


CONVENTIONS = ("multiplied", "relative", "fixed", "corrected", "coupled", "cautious")


def effective_weight_decay(
    convention: str,
    weight_decay: float,
    learning_rate: float,
    *,
    peak_learning_rate: float | None = None,
) -> float | None:
    """The lam of the theory for each way in which weight decay is written down.

    =========== ============================== ============================ ==================
    convention  x is multiplied by             found in                     lam
    =========== ============================== ============================ ==================
    multiplied  1 - lr wd                      optax, timm, PyTorch         wd
    relative    1 - lr wd / peak               lion-pytorch (decoupled)     wd / peak
    fixed       1 - wd                         pytorch_optimizer            wd / lr
    corrected   1 - lr^2 wd / peak             timm (corrected)             lr wd / peak
    coupled     (gradient gets wd x)           L2 regularisation            none: unconstrained
    cautious    1 - lr wd where u x >= 0       cautious weight decay        none: unconstrained
    =========== ============================== ============================ ==================

    Args:
      convention: one of the above.
      weight_decay: wd >= 0.
      learning_rate: lr > 0 at the step in question.
      peak_learning_rate: the first or largest lr; `relative` and `corrected` use it.
    Returns:
      lam, or None where no constraint results.
    """
    check_choice("effective_weight_decay", "convention", convention, CONVENTIONS)
    check_non_negative(
        "effective_weight_decay", weight_decay=weight_decay, learning_rate=learning_rate
    )
    if convention in ("coupled", "cautious"):
        return None
    if convention == "multiplied":
        return weight_decay
    if convention == "fixed":
        return weight_decay / learning_rate
    if peak_learning_rate is None:
        raise ValueError(f"effective_weight_decay: {convention!r} needs peak_learning_rate.")
    if convention == "relative":
        return weight_decay / peak_learning_rate
    return weight_decay * learning_rate / peak_learning_rate


def constraint_radius(
    convention: str,
    weight_decay: float,
    learning_rate: float,
    *,
    peak_learning_rate: float | None = None,
    scale: float = 1.0,
) -> float:
    """Radius of the dual ball, scale / lam; infinite without a constraint.

    Args:
      convention, weight_decay, learning_rate, peak_learning_rate: of `effective_weight_decay`.
      scale: s of a kappa `scaled(kappa, s)`, for example Muon's shape factor.
    """
    lam = effective_weight_decay(
        convention, weight_decay, learning_rate, peak_learning_rate=peak_learning_rate
    )
    return scale / lam if lam else math.inf
