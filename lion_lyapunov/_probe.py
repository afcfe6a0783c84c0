"""The diagnostics as one probe for a training loop."""

from collections.abc import Callable, Mapping
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import optax

from lion_lyapunov._checks import Number, check_count
from lion_lyapunov._kappa import Array, Kappa
from lion_lyapunov._low_precision import Blocks, MomentumFormat
from lion_lyapunov._lyapunov import coupling_weight
from lion_lyapunov._objective import inner, times, violation
from lion_lyapunov._parts import on_tree
from lion_lyapunov._transform import ScaleByLionKState

PyTree = Any


class State(Protocol):
    """What a probe reads of a training state."""

    @property
    def step(self) -> Array:
        """Updates done so far."""
        ...

    @property
    def params(self) -> PyTree:
        """The parameters."""
        ...

    @property
    def opt_state(self) -> PyTree:
        """The optimizer's state."""
        ...


Probe = Callable[[Any, Any], Mapping[str, Array]]


def find_momentum(
    opt_state: PyTree, params: PyTree, mu_dtype: MomentumFormat | None = None
) -> PyTree:
    """The average mu inside the state of a chain, of a partition, or of `optax.lion`.

    Args:
      opt_state: state of an optimizer with one Lion-K link for each parameter.
      params: the parameters; gives the structure.
      mu_dtype: the format, where the momentum is stored in one.
    Raises:
      ValueError: there is no Lion-K state, or a leaf has none or several.
    """
    kinds = (ScaleByLionKState, optax.ScaleByLionState)
    states = [
        leaf
        for leaf in jax.tree.leaves(opt_state, is_leaf=lambda x: isinstance(x, kinds))
        if isinstance(leaf, kinds)
    ]
    if not states:
        raise ValueError("find_momentum: the optimizer's state holds no Lion-K momentum.")
    masked = optax.MaskedNode

    def pick(param, *candidates):
        own = [leaf for leaf in candidates if not isinstance(leaf, masked)]
        if len(own) != 1:
            raise ValueError(
                f"find_momentum: {len(own)} momenta for a parameter of shape {param.shape}."
            )
        if isinstance(own[0], Blocks) and mu_dtype is None:
            raise ValueError("find_momentum: the momentum is quantised; pass its mu_dtype.")
        return mu_dtype.decode(own[0], param) if mu_dtype is not None else own[0]

    return jax.tree.map(
        pick,
        params,
        *[state.mu for state in states],
        is_leaf=lambda x: isinstance(x, masked | Blocks),
    )


def probe(
    kappa: Kappa,
    loss_fn: Callable[[PyTree, Any], Array],
    *,
    learning_rate: optax.ScalarOrSchedule,
    weight_decay: Number,
    b1: Number = 0.9,
    b2: Number = 0.99,
    mu_dtype: MomentumFormat | None = None,
) -> Probe:
    """All diagnostics of a run with `lion_k`, as a function `(state, batch) -> dict of scalars`.

    Args:
      kappa, learning_rate, weight_decay, b1, b2: of the optimizer.
      loss_fn: `loss_fn(params, batch)`, a scalar.
      mu_dtype: the optimizer's, where it is a format.
    Returns:
      A function for a loop whose state has `step`, `params` and `opt_state`. It gives `loss`,
      `objective`, `lyapunov`, `fenchel_gap` (+inf in phase 1), `violation` (the largest of the
      leaves) and `phase`.
    """
    whole = on_tree(kappa)

    def run(state, batch):
        params = state.params
        loss, grads = jax.value_and_grad(loss_fn)(params, batch)
        rate = learning_rate(state.step) if callable(learning_rate) else learning_rate
        mu = find_momentum(state.opt_state, params, mu_dtype)
        # K*(lam x) is shared by all four numbers, so it is computed once.
        y = times(weight_decay, params)
        decays = jnp.asarray(weight_decay) > 0
        conjugate = jnp.where(decays, whole.conjugate(y), 0.0)
        penalty = jnp.where(decays, conjugate / jnp.where(decays, weight_decay, 1.0), 0.0)
        coupling = conjugate + whole.value(times(-1.0, mu)) + weight_decay * inner(params, mu)
        weight = coupling_weight(rate, b1, b2, weight_decay)
        gap = whole.value(times(-1.0, grads)) + conjugate + weight_decay * inner(grads, params)
        worst = jnp.max(jnp.stack(jax.tree.leaves(violation(kappa, params, weight_decay))))
        return {
            "loss": loss,
            "objective": loss + penalty,
            "lyapunov": loss + penalty + jnp.where(weight == 0, 0.0, weight * coupling),
            "fenchel_gap": gap,
            "violation": worst,
            "phase": jnp.where(jnp.isfinite(conjugate), 2, 1),
        }

    return run


def sampled(probe: Probe, every: int) -> Probe:
    """`probe` at steps divisible by `every`, NaN (or 0 for integers) at no cost at the others."""
    check_count("sampled", every=every)

    def run(state, batch):
        def skip():
            shapes = jax.eval_shape(lambda: probe(state, batch))
            return jax.tree.map(
                lambda s: jnp.full(s.shape, jnp.nan if _is_float(s) else 0, s.dtype), shapes
            )

        return jax.lax.cond(state.step % every == 0, lambda: probe(state, batch), skip)

    return run


def _is_float(value: Any) -> bool:
    return jnp.issubdtype(value.dtype, jnp.floating)
