"""Cautious variants. They are not Lion-K: no Lyapunov function or constraint is claimed."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from lion_lyapunov._checks import Number, check_choice
from lion_lyapunov._kappa import Kappa
from lion_lyapunov._low_precision import MomentumFormat
from lion_lyapunov._transform import check_rates, scale_by_lion_k

FORMULAS = ("c_optim", "timm", "lion_pytorch")


def cautious_mask(
    formula: str = "c_optim", *, factor: float = 0.0
) -> Callable[[jax.Array, jax.Array], jax.Array]:
    """The number that each entry of an update is multiplied by.

    Three formulas share the name, for an update u, a gradient g and the mask u g > 0 of n entries:

    - "c_optim" (the authors, arXiv:2411.16085): mask n / (sum mask + 1)
    - "timm": mask / max(mean mask, 1e-3)
    - "lion_pytorch": s / max(mean s, 1e-5), s = 1 on the mask and `factor` elsewhere
    """
    check_choice("cautious_mask", "formula", formula, FORMULAS)
    if formula != "lion_pytorch" and factor:
        raise ValueError(f"cautious_mask: factor belongs to lion_pytorch, not to {formula!r}.")

    def weights(update, grad):
        agree = (update * grad > 0).astype(update.dtype)
        if formula == "c_optim":
            return agree * (agree.size / (jnp.sum(agree) + 1.0))
        if formula == "timm":
            return agree / jnp.maximum(jnp.mean(agree), 1e-3)
        soft = jnp.where(agree > 0, 1.0, factor).astype(update.dtype)
        return soft / jnp.maximum(jnp.mean(soft), 1e-5)

    return weights


def scale_by_cautious_lion_k(
    kappa: Kappa,
    *,
    b1: Number,
    b2: Number,
    mu_dtype: jax.typing.DTypeLike | MomentumFormat | None = None,
    formula: str = "c_optim",
    factor: float = 0.0,
) -> optax.GradientTransformation:
    """`scale_by_lion_k` with entries dropped where they oppose the current gradient.

    Args:
      kappa, b1, b2, mu_dtype: of `scale_by_lion_k`.
      formula, factor: of `cautious_mask`.
    """
    inner = scale_by_lion_k(kappa, b1=b1, b2=b2, mu_dtype=mu_dtype)
    weights = cautious_mask(formula, factor=factor)

    def update(updates, state, params=None):
        directions, state = inner.update(updates, state, params)
        return jax.tree.map(lambda u, g: u * weights(u, g), directions, updates), state

    return optax.GradientTransformation(inner.init, update)


def add_cautious_decayed_weights(
    weight_decay: Number, mask: Any = None
) -> optax.GradientTransformation:
    """Adds weight_decay x only where u x >= 0, u the update to be subtracted (arXiv:2510.12402).

    Such decay never pulls against the update; it imposes no constraint.
    """
    check_rates("add_cautious_decayed_weights", weight_decay=weight_decay)

    def update(updates, state, params=None):
        if params is None:
            raise ValueError("add_cautious_decayed_weights: update needs params; pass them last.")
        decayed = jax.tree.map(
            lambda u, x: u + weight_decay * x * (u * x >= 0).astype(x.dtype), updates, params
        )
        return decayed, state

    link = optax.GradientTransformation(optax.init_empty_state, update)
    return link if mask is None else optax.masked(link, mask)


def cautious_lion_k(
    learning_rate: optax.ScalarOrSchedule,
    kappa: Kappa,
    *,
    b1: Number = 0.9,
    b2: Number = 0.99,
    weight_decay: Number = 0.0,
    mask: Any = None,
    mu_dtype: jax.typing.DTypeLike | MomentumFormat | None = None,
    cautious_update: bool = True,
    cautious_decay: bool = False,
    formula: str = "c_optim",
    factor: float = 0.0,
) -> optax.GradientTransformationExtraArgs:
    """Lion-K with a cautious update, a cautious weight decay, or both.

    Args:
      learning_rate, kappa, b1, b2, weight_decay, mask, mu_dtype: of `lion_k`.
      cautious_update: drop entries that oppose the gradient, by `formula` and `factor`.
      cautious_decay: decay only where the decay agrees with the update.
      formula, factor: of `cautious_mask`.
    """
    check_rates("cautious_lion_k", learning_rate=learning_rate, weight_decay=weight_decay)
    if cautious_update:
        link = scale_by_cautious_lion_k(
            kappa, b1=b1, b2=b2, mu_dtype=mu_dtype, formula=formula, factor=factor
        )
    else:
        link = scale_by_lion_k(kappa, b1=b1, b2=b2, mu_dtype=mu_dtype)
    decay = (
        add_cautious_decayed_weights(weight_decay, mask)
        if cautious_decay
        else optax.add_decayed_weights(weight_decay, mask)
    )
    return optax.chain(link, decay, optax.scale_by_learning_rate(learning_rate))
