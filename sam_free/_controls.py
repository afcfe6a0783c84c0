"""Objectives without memory, to compare SAF with: the base loss, and a pull to the uniform."""

import dataclasses

import jax.numpy as jnp

from sam_free._batch import (
    ApplyFn,
    Array,
    BaseLoss,
    Batch,
    Outputs,
    PyTree,
    mean_loss,
    model_inputs,
)
from sam_free._checks import check_logits, check_not_negative, check_positive, check_whole
from sam_free._trajectory import trajectory_loss


def plain(apply_fn: ApplyFn, base_loss: BaseLoss) -> "UniformTarget":
    """The base loss alone, as an objective: what the others are compared with."""
    return uniform_target(apply_fn, base_loss, weight=0.0)


def uniform_target(
    apply_fn: ApplyFn,
    base_loss: BaseLoss,
    *,
    start_epoch: int = 5,
    weight: float = 0.3,
    temperature: float = 5.0,
    tau_squared: bool = True,
) -> "UniformTarget":
    """SAF with the uniform distribution in place of every past output: no memory at all.

    On small problems this control gains as much accuracy as SAF does; it separates from SAF in the
    negative log likelihood and in SAM's sharpness. Rows of a table that were never written do the
    same (`saf(stale="official")`).

    Args:
      apply_fn: `(params, model_state, inputs, *, train, key) -> (logits, model_state)`.
      base_loss: `(logits, batch) -> [batch]`.
      start_epoch: counts from 0, strict: the term is on in epochs > start_epoch.
      weight: lambda >= 0.
      temperature: tau > 0.
      tau_squared: multiply by tau^2, as the published code of SAF does.
    Returns:
      An objective with the empty state ().
    Raises:
      ValueError: an argument is out of its range.
    """
    check_whole("uniform_target", least=-1, start_epoch=start_epoch)
    check_not_negative("uniform_target", weight=weight)
    check_positive("uniform_target", temperature=temperature)
    return UniformTarget(apply_fn, base_loss, start_epoch, weight, temperature, tau_squared)


@dataclasses.dataclass(frozen=True)
class UniformTarget:
    """The objective that `uniform_target` makes."""

    apply_fn: ApplyFn
    base_loss: BaseLoss
    start_epoch: int
    weight: float
    temperature: float
    tau_squared: bool

    def init(self, params: PyTree, num_examples: int, *, model_state: PyTree = ()) -> PyTree:
        """No state."""
        del params, num_examples, model_state
        return ()

    def loss(
        self,
        params: PyTree,
        model_state: PyTree,
        state: PyTree,
        batch: Batch,
        epoch: Array,
        key: Array,
    ) -> tuple[Array, Outputs]:
        """The base loss plus the weighted pull to the uniform distribution."""
        del state
        inputs = model_inputs(batch)
        logits, model_state = self.apply_fn(params, model_state, inputs, train=True, key=key)
        base = mean_loss(self.base_loss, logits, batch)
        if self.weight == 0:
            return base, Outputs(logits, model_state, {})
        check_logits("uniform_target", logits)
        on = jnp.asarray(epoch, jnp.int32) > self.start_epoch
        term = jnp.mean(
            trajectory_loss(
                logits,
                jnp.zeros_like(logits),
                temperature=self.temperature,
                tau_squared=self.tau_squared,
            )
        )
        total = base + jnp.where(on, self.weight * term, 0.0).astype(base.dtype)
        metrics = {"base_loss": base, "trajectory_loss": jnp.where(on, term, 0.0)}
        return total, Outputs(logits, model_state, metrics)

    def update(
        self,
        state: PyTree,
        *,
        params: PyTree,
        model_state: PyTree,
        logits: Array,
        batch: Batch,
        epoch: Array,
    ) -> PyTree:
        """Nothing to remember."""
        del params, model_state, logits, batch, epoch
        return state
