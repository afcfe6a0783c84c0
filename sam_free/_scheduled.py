"""A gradient rule whose radius follows the step count."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax.numpy as jnp

from sam_free._batch import Array, Batch, PyTree
from sam_free._sam import LossFn


def scheduled(
    rule: Callable[..., Any], schedule: Callable[[Array], Array], **options: Any
) -> Callable[[LossFn], "Scheduled"]:
    """A gradient rule with `rho = schedule(step)`; the step advances once per update.

    Args:
      rule: `sam_gradient` or `gsam_gradient`.
      schedule: step count, from 0, to radius; any optax schedule.
      options: the rule's other arguments.
    Returns:
      `loss_fn -> rule`, a rule with a state: `init(params)` gives the step count, and
      `(params, batch, state)` gives `((loss, aux), grads, state)`.
    """
    return lambda loss_fn: Scheduled(loss_fn, rule, schedule, options)


@dataclasses.dataclass(frozen=True, eq=False)
class Scheduled:
    """The rule that `scheduled` makes. Its state is the number of steps done."""

    loss_fn: LossFn
    rule: Callable[..., Any]
    schedule: Callable[[Array], Array]
    options: dict[str, Any]

    def init(self, params: PyTree) -> Array:
        """Step 0."""
        del params
        return jnp.zeros((), jnp.int32)

    def __call__(self, params: PyTree, batch: Batch, state: Array):
        """The value and the gradient at this step's radius, and the next step."""
        radius = self.schedule(state)
        value, grads = self.rule(self.loss_fn, rho=radius, **self.options)(params, batch)
        return value, grads, state + 1
