"""Evaluation over a whole set: every example exactly once, on any number of devices."""

import math
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from shared.data import on_device
from shared.devices import AXIS, Devices
from shared.protocol import Batch, ExampleMetrics, model_inputs
from shared.step import example_keys

Array = jax.Array
PyTree = Any

KEY = 3  # stream of random numbers of generated evaluation sets; 0 to 2 are the step's


def example_metrics(logits: PyTree, batch: Batch) -> Mapping[str, Array]:
    """Loss of every example, and accuracy where there are classes, by the kind of batch.

    Args:
      logits: [batch, classes] beside "label" [batch]; [batch, length, vocabulary] beside "tokens"
        [batch, length + 1]; or predictions shaped as "targets", half the squared error of which
        (a sum over components) is the loss.
      batch: one of the three kinds.
    Returns:
      "loss" and "accuracy", each [batch]; a mean over tokens for language.
    Raises:
      ValueError: the batch is of none of these kinds, or targets and predictions differ in shape.
    """
    if "label" in batch or "tokens" in batch:
        labels = batch["label"] if "label" in batch else batch["tokens"][:, 1:]
        loss = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
        right = (logits.argmax(-1) == labels).astype(loss.dtype)
        return {"loss": _over_rest(loss, jnp.mean), "accuracy": _over_rest(right, jnp.mean)}
    if "targets" in batch:
        if logits.shape != batch["targets"].shape:
            raise ValueError(
                f"predictions {logits.shape} and targets {batch['targets'].shape} differ in shape."
            )
        return {"loss": _over_rest((logits - batch["targets"]) ** 2 / 2, jnp.sum)}
    raise ValueError(
        f"no metrics are known for a batch of {sorted(batch)}; give the study eval_metrics."
    )


class Evaluator:
    """Means over a set, with one compiled function for all its batches.

    Args:
      model: its `apply` runs with train=False.
      source: the set.
      devices: that share the work.
      batch_size: examples per step; the last one is filled up and masked.
      metrics: values of each example; `example_metrics` by default.
    Raises:
      ValueError: the batch does not divide over the devices, or the set is empty.
    """

    def __init__(
        self,
        model: Any,
        source: Any,
        devices: Devices,
        batch_size: int,
        metrics: ExampleMetrics | None = None,
    ):
        if batch_size <= 0 or batch_size % devices.size:
            raise ValueError(
                f"eval_batch_size = {batch_size} must be a positive multiple of the "
                f"{devices.size} devices."
            )
        if source.num_examples <= 0:
            raise ValueError("an evaluation set holds zero examples.")
        self._source = source
        self._devices = devices
        self._batch_size = batch_size
        self._names: list[str] = []
        device_step = _device_step(
            model, on_device(source), metrics or example_metrics, self._names
        )
        self._step = devices.map(device_step, (False, False, True, False), False)

    def __call__(self, params: PyTree, model_state: PyTree, key: np.ndarray) -> dict[str, float]:
        """Means over all examples.

        Args:
          params, model_state: as they lie on the devices.
          key: data of the run's key, for sets that are generated.
        Returns:
          Name to mean; sums of batches are added in float64.
        """
        sums: list[Array] = []
        for start in range(0, self._source.num_examples, self._batch_size):
            batch = self._devices.batch(self._rows(start))
            if len(sums) >= 2:  # more than a few steps in flight can deadlock simulated devices
                sums[-2].block_until_ready()
            sums.append(self._step(params, model_state, batch, key))
        columns = np.asarray(jax.device_get(sums), np.float64).T
        count, *totals = (math.fsum(column) for column in columns)
        return {name: total / count for name, total in zip(self._names, totals)}

    def _rows(self, start: int) -> dict[str, np.ndarray]:
        own = self._devices.local_rows(self._batch_size)
        position = start + np.arange(self._batch_size)[own]
        last = self._source.num_examples - 1
        batch = self._source.batch(np.minimum(position, last).astype(np.int32))
        return batch | {"mask": position <= last}


def evaluate(
    model: Any,
    params: PyTree,
    model_state: PyTree,
    source: Any,
    *,
    devices: Devices,
    batch_size: int,
    metrics: ExampleMetrics | None = None,
    seed: int = 0,
) -> dict[str, float]:
    """Means over a set, once; make an `Evaluator` to evaluate again without compiling again.

    Args:
      model, source, devices, batch_size, metrics: as `Evaluator`'s.
      params, model_state: of the model.
      seed: of the key for sets that are generated.
    """
    key = np.asarray(jax.random.key_data(jax.random.key(seed)))
    return Evaluator(model, source, devices, batch_size, metrics)(params, model_state, key)


def _device_step(
    model: Any, expand: Callable[[Array, Batch], Batch], metrics: ExampleMetrics, names: list[str]
) -> Callable[..., Array]:
    def step(params: PyTree, model_state: PyTree, batch: Batch, key_data: Array) -> Array:
        key = jax.random.fold_in(jax.random.wrap_key_data(key_data), KEY)
        mask = batch["mask"]
        batch = expand(example_keys(key, batch["index"]), batch)
        logits, _ = model.apply(params, model_state, model_inputs(batch), train=False, key=None)
        values = dict(metrics(logits, batch))
        for name, value in values.items():
            if value.shape != mask.shape:
                raise ValueError(
                    f"evaluation metric {name!r} must have one value per example, shape "
                    f"{mask.shape}, got {value.shape}."
                )
        names[:] = values
        # where, not a product: what stands in filled-up rows may be NaN and must not count.
        sums = [jnp.where(mask, value, 0).sum() for value in values.values()]
        count = mask.sum()
        packed = jnp.stack([count.astype(sums[0].dtype), *sums])
        return jax.lax.psum(packed, AXIS)

    return step


def _over_rest(x: Array, reduce: Callable[..., Array]) -> Array:
    return reduce(x.reshape(len(x), -1), axis=1)
