"""MESA: the trajectory loss against the outputs of averaged weights."""

import dataclasses

import jax
import jax.numpy as jnp

from sam_free._average import Average, check_decay, start_average, update_average
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


def mesa(
    apply_fn: ApplyFn,
    base_loss: BaseLoss,
    *,
    decay: float,
    start_epoch: int = 5,
    weight: float = 0.8,
    temperature: float = 5.0,
    tau_squared: bool = True,
    end_epoch: int | None = None,
    warmup_decay: bool = False,
    num_steps: int | None = None,
) -> "MESA":
    """Memory-Efficient SAF (Du et al. 2022, arXiv:2205.14083, Eq. 9 and 12).

    The loss is `mean(base_loss) + weight * mean(trajectory_loss(logits, teacher))`, where the
    teacher is the averaged network in evaluation mode, with averaged batch statistics of its own.

    The average is updated after the optimizer's step, as in the published code; the paper updates
    it before the loss. Both give v_t = decay v_(t-1) + (1 - decay) w_t, v_1 = w_1, with w_t the
    weights at which step t takes its gradient: the orders are the same sequence. What differs
    between paper and code is the factor tau^2 (`tau_squared`).

    The published default decay, 0.9998, averages over 5,000 steps: in a shorter run the teacher is
    still the initial network. Hence decay has no default here; give `num_steps` to be warned.

    Args:
      apply_fn: `(params, model_state, inputs, *, train, key) -> (logits, model_state)`.
      base_loss: `(logits, batch) -> [batch]`.
      decay: beta in [0, 1).
      start_epoch: counts from 0, strict: the term is on in epochs > start_epoch.
      weight: lambda >= 0. At 0 there is no teacher and no cost.
      temperature: tau > 0.
      tau_squared: the published scale; False is the literal paper form.
      end_epoch: strict end, in epochs from 0; None: never.
      warmup_decay: let the decay of update t be at most t / (t + 9).
      num_steps: length of the run, where known; warns when the decay is too slow for it.
    Returns:
      An objective whose state is an `Average`, () where the weight is 0.
    Raises:
      ValueError: an argument is out of its range.
    """
    check_decay("mesa", decay, warmup_decay, num_steps)
    check_whole("mesa", least=-1, start_epoch=start_epoch)
    check_not_negative("mesa", weight=weight)
    check_positive("mesa", temperature=temperature)
    if end_epoch is not None:
        check_whole("mesa", least=start_epoch + 1, end_epoch=end_epoch)
    return MESA(
        apply_fn=apply_fn,
        base_loss=base_loss,
        decay=decay,
        start_epoch=start_epoch,
        weight=weight,
        temperature=temperature,
        tau_squared=tau_squared,
        end_epoch=end_epoch,
        warmup_decay=warmup_decay,
    )


@dataclasses.dataclass(frozen=True)
class MESA:
    """The objective that `mesa` makes."""

    apply_fn: ApplyFn
    base_loss: BaseLoss
    decay: float
    start_epoch: int
    weight: float
    temperature: float
    tau_squared: bool
    end_epoch: int | None
    warmup_decay: bool

    def init(self, params: PyTree, num_examples: int, *, model_state: PyTree = ()) -> PyTree:
        """The initial network as the teacher."""
        del num_examples
        return start_average(params, model_state) if self.weight else ()

    def loss(
        self,
        params: PyTree,
        model_state: PyTree,
        state: PyTree,
        batch: Batch,
        epoch: Array,
        key: Array,
    ) -> tuple[Array, Outputs]:
        """The base loss plus the weighted distance from the teacher."""
        inputs = model_inputs(batch)
        logits, model_state = self.apply_fn(params, model_state, inputs, train=True, key=key)
        check_logits("mesa", logits)
        base = mean_loss(self.base_loss, logits, batch)
        if self.weight == 0:
            return base, Outputs(logits, model_state, {})
        epoch = jnp.asarray(epoch, jnp.int32)
        on = epoch > self.start_epoch
        if self.end_epoch is not None:
            on &= epoch < self.end_epoch

        def teach() -> Array:
            teacher = self.apply_fn(state.params, state.model_state, inputs, train=False, key=None)
            return teacher[0]

        # Outside its epochs the term is masked and the teacher costs nothing. The choice does not
        # wait for the student, so that both passes may run side by side.
        shape = jax.eval_shape(teach)
        target = jax.lax.cond(on, teach, lambda: jnp.zeros(shape.shape, shape.dtype))
        term = jnp.mean(
            trajectory_loss(
                logits, target, temperature=self.temperature, tau_squared=self.tau_squared
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
        """The teacher with the new parameters mixed in."""
        del logits, batch, epoch
        if not isinstance(state, Average):
            return state
        return update_average(
            state, params, model_state, decay=self.decay, warmup=self.warmup_decay
        )
