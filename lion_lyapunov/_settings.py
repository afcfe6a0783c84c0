"""Settings outside the theorem, found before a run is paid for."""

import warnings
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from lion_lyapunov._checks import check_choice, check_non_negative, check_unit_interval
from lion_lyapunov._kappa import Kappa
from lion_lyapunov._objective import CONVENTIONS

PyTree = Any


class Finding(NamedTuple):
    """One reason why the theory does not cover a run."""

    code: str  # stable, for code that reacts to it
    message: str  # for people: what happens and what to change


class SettingsWarning(UserWarning):
    """A setting for which Lion-K has no guarantee."""


def check_settings(
    *,
    learning_rate: float,
    b1: float,
    b2: float,
    weight_decay: float,
    convention: str = "multiplied",
    decaying_learning_rate: bool = False,
    kappa: Kappa | None = None,
    params: PyTree = None,
    dtype: jax.typing.DTypeLike | None = None,
    warn: bool = False,
) -> list[Finding]:
    """What the theorems do not cover in a run with these settings.

    Args:
      learning_rate: the largest of the schedule.
      b1, b2, weight_decay: of the optimizer.
      convention: how decay is applied, see `effective_weight_decay`.
      decaying_learning_rate: whether the schedule ends below `learning_rate`.
      kappa, params: when both are given, checks k of a top-k kappa against the leaves' sizes, and
        `params` tell `dtype`.
      dtype: of the parameters, where `params` are not given.
      warn: also issue a `SettingsWarning` for each finding.
    Returns:
      A list of findings; empty when the theorems apply.
    """
    check_non_negative("check_settings", learning_rate=learning_rate, weight_decay=weight_decay)
    check_unit_interval("check_settings", closed=True, b1=b1, b2=b2)
    check_choice("check_settings", "convention", convention, CONVENTIONS)
    found = []
    if b1 > b2:
        found.append(
            Finding(
                "b1_above_b2",
                f"b1 = {b1} > b2 = {b2}: one term of the bound changes its sign and nothing is "
                "guaranteed; use b1 <= b2.",
            )
        )
    if learning_rate * weight_decay > 1:
        found.append(
            Finding(
                "decay_overshoots",
                f"learning_rate * weight_decay = {learning_rate * weight_decay:.3g} > 1: decay "
                "flips the sign of the weights; lower one of them.",
            )
        )
    if convention in ("coupled", "cautious"):
        found.append(
            Finding(
                "no_constraint",
                f"{convention} weight decay imposes no constraint and does not minimise "
                "f + K*(lam x) / lam; use decoupled decay (lion_k, optax.add_decayed_weights).",
            )
        )
    if convention in ("fixed", "corrected") and decaying_learning_rate:
        change = "shrinks to a point" if convention == "fixed" else "grows without bound"
        found.append(
            Finding(
                "moving_constraint",
                f"{convention} weight decay under a decaying learning rate: the constraint "
                f"{change}; use the multiplied convention for a constant radius.",
            )
        )
    found += _rounding(learning_rate * weight_decay, _dtypes(params, dtype))
    if kappa is not None and params is not None:
        found += _top_k(kappa, params)
    if warn:
        for finding in found:
            warnings.warn(f"{finding.code}: {finding.message}", SettingsWarning, stacklevel=2)
    return found


def _dtypes(params: PyTree, dtype: Any) -> set[Any]:
    found = {leaf.dtype for leaf in jax.tree.leaves(params)}
    return found | ({jnp.dtype(dtype)} if dtype is not None else set())


def _rounding(relative_step: float, dtypes: set[Any]) -> list[Finding]:
    found = []
    for dtype in sorted(dtypes, key=str):
        if not jnp.issubdtype(dtype, jnp.floating) or relative_step == 0:
            continue
        unit = float(jnp.finfo(dtype).eps)  # spacing of the floats in [1, 2)
        if relative_step < unit / 4:
            sure = "is always rounded away"
        elif relative_step < unit / 2:
            sure = "is rounded away for some weights"
        else:
            continue
        found.append(
            Finding(
                "decay_lost_to_rounding",
                f"learning_rate * weight_decay = {relative_step:.3g} {sure} in {dtype}: weights "
                "that only decay do not move; use with_stochastic_rounding or float32 parameters.",
            )
        )
    return found


def _top_k(kappa: Kappa, params: PyTree) -> list[Finding]:
    if not kappa.name.startswith(("top_k(", "ky_fan(")):
        return []
    k = int(kappa.name.split("(")[1].rstrip(")"))
    small = [
        leaf.shape
        for leaf in jax.tree.leaves(params)
        if k >= (min(leaf.shape) if kappa.name.startswith("ky_fan") and leaf.ndim else leaf.size)
    ]
    if not small:
        return []
    return [
        Finding(
            "k_not_below_size",
            f"{kappa.name} on a leaf of shape {small[0]} moves every entry: it is l1 (or nuclear) "
            "there; lower k.",
        )
    ]
