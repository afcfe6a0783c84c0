"""What a study hands to the training loop: objective, gradient rule, probe, and the run's state."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, Protocol

import jax
import optax

Array = jax.Array
PyTree = Any
Batch = dict[str, Array]  # leading axis: the examples of the batch; always holds "index"


class Outputs(NamedTuple):
    """What an objective computes beside the scalar that is differentiated."""

    logits: PyTree  # [batch, ...] model outputs, before any loss
    model_state: PyTree  # batch statistics and the like, after this forward pass
    metrics: dict[str, Array]  # scalars, means over the device's share of the batch


class Objective(Protocol):
    """What is minimised. SAF, MESA and plain cross-entropy are objectives.

    Four more methods are optional (an attribute of that name that cannot be called is none):

    - `sharded(state)` returns a pytree of bool like `state`: True where the leading axis of a leaf
      counts examples and is split over devices in contiguous blocks. Its length must be a multiple
      of the device count (a multiple of 64 serves all). Without it every device holds the whole.
    - `start_epoch(state, epoch)` runs on the host right before the first step of every epoch and
      may only permute the leaves (SAF turns its ring of slots so), never compute.
    - `prepare(state, batch)` returns a pytree with the leading axis of the batch. It is compiled
      on its own and runs before the step, which finds the result in `batch["prepared"]`: a gather
      from an array that the step writes to would copy the array if both were compiled together.
    - `check_batch(batch, num_examples)` runs on the host, with the rows of this process, where the
      loss of a batch was not finite; raises a ValueError that names what is wrong in the batch.

    An objective, a gradient rule or a model that talks to other devices takes `axis_name` when it
    is made (`shared.devices.AXIS` in the loop, None alone).
    """

    def init(self, params: PyTree, num_examples: int, *, model_state: PyTree = ()) -> PyTree:
        """The state before the first step."""
        ...

    def loss(
        self,
        params: PyTree,
        model_state: PyTree,
        state: PyTree,
        batch: Batch,
        epoch: Array,
        key: Array,
    ) -> tuple[Array, Outputs]:
        """The scalar to differentiate, a mean over this device's share of the batch.

        `key` holds one key per example, [batch]: fold_in(fold_in(run's key, step), index), so that
        no random number depends on how many devices share the work.
        """
        ...

    def update(
        self,
        state: PyTree,
        *,
        params: PyTree,
        model_state: PyTree,
        logits: PyTree,
        batch: Batch,
        epoch: Array,
    ) -> PyTree:
        """The next state, after the optimizer's step; `params` are the new ones."""
        ...


# A gradient rule turns `loss_fn(params, batch) -> (loss, Outputs)` into
# `(params, batch) -> ((loss, Outputs), grads)`. The default is `jax.value_and_grad(has_aux=True)`;
# `sam_gradient` with its options bound by functools.partial is another. A rule with a state of its
# own (LookSAM) returns an object with `init(params) -> state` that is called with
# `(params, batch, state)` and returns `((loss, Outputs), grads, state)`. Gradients may differ
# between devices; the loop averages them.
LossFn = Callable[[PyTree, Batch], tuple[Array, Outputs]]
GradientRule = Callable[[LossFn], Any]
Probe = Callable[["TrainState", Batch], Mapping[str, Array]]
# (logits, batch) -> name to value of each example, [batch]
ExampleMetrics = Callable[[PyTree, Batch], Mapping[str, Array]]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class TrainState:
    """The whole state of a run: all of it, and nothing else, is in a checkpoint."""

    step: Array  # int32 scalar: updates done so far
    params: PyTree
    model_state: PyTree
    opt_state: PyTree
    objective: PyTree
    gradient: PyTree = ()  # of a stateful gradient rule


@dataclasses.dataclass(frozen=True)
class Study:
    """What `experiments/studies/<name>.py: build(config)` returns: all that a run needs.

    `model.init(key, inputs) -> (params, model_state)` and
    `model.apply(params, model_state, inputs, *, train, key) -> (logits, model_state)`.
    """

    model: Any  # shared.models.Model
    train_data: Any  # shared.data.Source
    objective: Objective
    optimizer: optax.GradientTransformation
    eval_data: Mapping[str, Any] = dataclasses.field(default_factory=dict)  # name -> Source
    gradient: GradientRule | None = None
    probes: Mapping[str, Probe] = dataclasses.field(default_factory=dict)
    eval_metrics: ExampleMetrics | None = None  # None: by the kind of batch, shared.evaluate


def model_inputs(batch: Batch) -> PyTree:
    """What the model sees of a batch: "image", "inputs", or all but the last of "tokens".

    Raises:
      ValueError: the batch holds none of them.
    """
    for name in ("image", "inputs"):
        if name in batch:
            return batch[name]
    if "tokens" in batch:
        return batch["tokens"][:, :-1]
    raise ValueError(
        f"model_inputs: a batch must hold 'image', 'inputs' or 'tokens', got {sorted(batch)}."
    )
