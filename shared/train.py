"""The one data-parallel training loop: what a study hands to it, and how a step runs."""

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

    Two more methods are optional:

    - `sharded(state)` returns a pytree of bool like `state`: True where the leading axis of a leaf
      counts examples and is split over devices. Without it every device holds the whole state.
    - `start_epoch(state, epoch)` runs on the host before the first step of every epoch and may
      only permute the leaves (SAF turns its ring of slots so), never compute.

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
        """The scalar to differentiate, a mean over this device's share of the batch."""
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
# `sam_gradient` with its options bound by functools.partial is another.
LossFn = Callable[[PyTree, Batch], tuple[Array, Outputs]]
GradientRule = Callable[[LossFn], Callable[[PyTree, Batch], tuple[tuple[Array, Outputs], PyTree]]]
Probe = Callable[["TrainState", Batch], Mapping[str, Array]]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class TrainState:
    """The whole state of a run: all of it, and nothing else, is in a checkpoint."""

    step: Array  # int32 scalar: updates done so far
    params: PyTree
    model_state: PyTree
    opt_state: PyTree
    objective: PyTree


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
