"""LookSAM: SAM's second pass once in k steps, its effect reused in between."""

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from sam_free._batch import Array, Batch, PyTree
from sam_free._checks import check_not_negative, check_whole
from sam_free._sam import LossFn, perturb
from sam_free._tree import add_scaled, dot, norm, reciprocal


class LookSAMState(NamedTuple):
    """What LookSAM remembers between steps."""

    count: Array  # int32 scalar: steps done
    across: PyTree  # the part of SAM's gradient across the plain one, of the last full step


def looksam_gradient(
    loss_fn: LossFn,
    *,
    rho: float,
    period: int = 5,
    alpha: float = 0.7,
    adaptive: bool = False,
    eta: float = 0.01,
    axis_name: str | None = None,
) -> "LookSAM":
    """LookSAM (Liu et al. 2022, arXiv:2203.02714, Alg. 1).

    Every `period` steps the gradient is SAM's, s, and its part v across the plain gradient g is
    kept. In between the gradient is g + alpha (||g|| / ||v||) v, at the cost of one pass.

    The rule has a state. `init(params)` makes it, and `(params, batch, state)` returns
    `((loss, aux), grads, state)`. Called without a state, `(params, batch)`, it is at its first
    step, SAM's, and returns `((loss, aux), grads)`.

    Args:
      loss_fn: `(params, batch) -> (loss, aux)`.
      rho: radius >= 0; at 0 the rule is `jax.value_and_grad`.
      period: k >= 1, steps from one full SAM step to the next.
      alpha: weight of the remembered part, >= 0.
      adaptive, eta, axis_name: as in `sam_gradient`; the perturbation is the global batch's.
    Returns:
      The rule. Its gradients are already means over devices.
    Raises:
      ValueError: an argument is out of its range.
    """
    check_not_negative("looksam_gradient", rho=rho, alpha=alpha, eta=eta)
    check_whole("looksam_gradient", least=1, period=period)
    return LookSAM(loss_fn, rho, period, alpha, adaptive, eta, axis_name)


@dataclasses.dataclass(frozen=True, eq=False)
class LookSAM:
    """The rule that `looksam_gradient` makes."""

    loss_fn: LossFn
    rho: float
    period: int
    alpha: float
    adaptive: bool
    eta: float
    axis_name: str | None

    def init(self, params: PyTree) -> LookSAMState | tuple[()]:
        """The state before the first step, which will be a full one."""
        if self.rho == 0:
            return ()
        return LookSAMState(jnp.zeros((), jnp.int32), jax.tree.map(jnp.zeros_like, params))

    def __call__(self, params: PyTree, batch: Batch, state: Any = None):
        """The value, the gradient and, where a state was given, the next state."""
        value, grads = jax.value_and_grad(self.loss_fn, has_aux=True)(params, batch)
        if self.rho == 0:
            return (value, grads) if state is None else (value, grads, state)
        grads = self._mean(grads)
        if state is None:
            return value, self._full(params, batch, grads)[0]
        result, across = jax.lax.cond(
            state.count % self.period == 0,
            lambda: self._full(params, batch, grads),
            lambda: (self._reuse(grads, state.across), state.across),
        )
        return value, result, LookSAMState(state.count + 1, across)

    def _full(self, params: PyTree, batch: Batch, grads: PyTree) -> tuple[PyTree, PyTree]:
        there = perturb(params, grads, self.rho, adaptive=self.adaptive, eta=self.eta)
        ascent = self._mean(jax.grad(self.loss_fn, has_aux=True)(there, batch)[0])
        along = dot(ascent, grads) * reciprocal(dot(grads, grads))
        return ascent, add_scaled(ascent, -along, grads)

    def _reuse(self, grads: PyTree, across: PyTree) -> PyTree:
        return add_scaled(grads, self.alpha * norm(grads) * reciprocal(norm(across)), across)

    def _mean(self, grads: PyTree) -> PyTree:
        return grads if self.axis_name is None else jax.lax.pmean(grads, self.axis_name)
