"""Averaged weights: MESA's teacher, and a control of its own."""

import dataclasses
import warnings
from typing import NamedTuple

import jax
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
from sam_free._checks import check_whole


class Average(NamedTuple):
    """An exponential moving average of parameters and batch statistics."""

    params: PyTree
    model_state: PyTree
    count: Array  # int32 scalar: updates done


def check_decay(caller: str, decay: float, warmup: bool, num_steps: int | None) -> None:
    """The decay is in [0, 1), and the run is long enough for it, or the caller is warned."""
    if not 0 <= decay < 1:
        raise ValueError(f"{caller}: decay must be in [0, 1), got {decay!r}.")
    if num_steps is None:
        return
    check_whole(caller, least=1, num_steps=num_steps)
    horizon = 1 / (1 - decay)
    if horizon > num_steps and not warmup:
        warnings.warn(
            f"{caller}: decay={decay} averages over {horizon:.0f} steps, but the run has "
            f"{num_steps}: the average is still close to the initial network. Choose a smaller "
            "decay or warmup_decay=True.",
            stacklevel=3,
        )


def start_average(params: PyTree, model_state: PyTree) -> Average:
    """The average before the first step: the initial network itself."""

    def copy(tree: PyTree) -> PyTree:  # the loop may donate the original
        return jax.tree.map(lambda x: jnp.array(x, copy=True), tree)

    return Average(copy(params), copy(model_state), jnp.zeros((), jnp.int32))


def update_average(
    average: Average, params: PyTree, model_state: PyTree, *, decay: float, warmup: bool
) -> Average:
    """v <- decay v + (1 - decay) w; whole numbers, which count passes, are taken over as they are.

    With `warmup`, the decay of update t = 1, 2, ... is at most t / (t + 9), so that the average
    never reaches further back than the run is long.
    """
    count = average.count + 1
    rate = jnp.asarray(decay)
    if warmup:
        steps = count.astype(rate.dtype)
        rate = jnp.minimum(rate, steps / (steps + 9))

    def mix(old: Array, new: Array) -> Array:
        if not jnp.issubdtype(jnp.result_type(old), jnp.inexact):
            return new
        return old + (1 - rate).astype(old.dtype) * (new - old)

    return Average(
        jax.tree.map(mix, average.params, params),
        jax.tree.map(mix, average.model_state, model_state),
        count,
    )


def averaged_weights(
    apply_fn: ApplyFn,
    base_loss: BaseLoss,
    *,
    decay: float,
    warmup_decay: bool = False,
    num_steps: int | None = None,
) -> "AveragedWeights":
    """The base loss, with an average of the weights kept beside it: a control for MESA.

    Training is untouched; evaluate the state's `params` and `model_state` instead of the last.

    Args:
      apply_fn: `(params, model_state, inputs, *, train, key) -> (logits, model_state)`.
      base_loss: `(logits, batch) -> [batch]`.
      decay: in [0, 1); the average reaches over about 1 / (1 - decay) steps.
      warmup_decay: let the decay grow from 0.1 with the number of updates.
      num_steps: length of the run, where known; warns when the decay is too slow for it.
    Returns:
      An objective whose state is an `Average`.
    Raises:
      ValueError: the decay is outside [0, 1).
    """
    check_decay("averaged_weights", decay, warmup_decay, num_steps)
    return AveragedWeights(apply_fn, base_loss, decay, warmup_decay)


@dataclasses.dataclass(frozen=True)
class AveragedWeights:
    """The objective that `averaged_weights` makes."""

    apply_fn: ApplyFn
    base_loss: BaseLoss
    decay: float
    warmup_decay: bool

    def init(self, params: PyTree, num_examples: int, *, model_state: PyTree = ()) -> Average:
        """The initial network as the average."""
        del num_examples
        return start_average(params, model_state)

    def loss(
        self,
        params: PyTree,
        model_state: PyTree,
        state: Average,
        batch: Batch,
        epoch: Array,
        key: Array,
    ) -> tuple[Array, Outputs]:
        """The base loss alone."""
        del state, epoch
        inputs = model_inputs(batch)
        logits, model_state = self.apply_fn(params, model_state, inputs, train=True, key=key)
        base = mean_loss(self.base_loss, logits, batch)
        return base, Outputs(logits, model_state, {})

    def update(
        self,
        state: Average,
        *,
        params: PyTree,
        model_state: PyTree,
        logits: Array,
        batch: Batch,
        epoch: Array,
    ) -> Average:
        """The average with the new parameters mixed in."""
        del logits, batch, epoch
        return update_average(
            state, params, model_state, decay=self.decay, warmup=self.warmup_decay
        )
