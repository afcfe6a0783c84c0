"""A run on 2, 4 and 8 devices is the run on one device, to rounding in float64.

150 steps of a smooth network (a ReLU at its kink would turn a rounding error into another path),
with dropout, and in turn: gradient accumulation, batch statistics over all devices, and a table of
past outputs that is split over the devices.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import sam_free
from shared.data import Arrays, padded_rows
from shared.devices import AXIS
from shared.models import Model, mlp
from shared.train import Outputs, Result, Study, default_config, train

EXAMPLES, BATCH, STEPS = 320, 32, 150
MANY = [(kind, count) for kind in ("shard_map", "pmap") for count in (2, 4, 8)]


def data() -> Arrays:
    rng = np.random.default_rng(0)
    image = rng.standard_normal((EXAMPLES, 6))
    return Arrays({"inputs": image, "label": (image @ rng.standard_normal((6, 4))).argmax(-1)})


def normalized() -> Model:
    """A hidden layer with batch normalization over all devices."""

    def init(key, inputs):
        first, second = jax.random.split(key)
        params = {"w": jax.random.normal(first, (6, 8)), "v": jax.random.normal(second, (8, 4)) / 3}
        return params, {"mean": jnp.zeros(8), "var": jnp.ones(8)}

    def apply(params, state, inputs, *, train, key):
        h = inputs @ params["w"]
        if train:
            mean = jax.lax.pmean(h.mean(0), AXIS)
            var = jax.lax.pmean(((h - mean[None]) ** 2).mean(0), AXIS)
            new = {"mean": mean, "var": var}
            state, used = jax.tree.map(lambda old, x: 0.9 * old + 0.1 * x, state, new), new
        else:
            used = state
        h = (h - used["mean"][None]) / jnp.sqrt(used["var"] + 1e-5)[None]
        return jnp.tanh(h) @ params["v"], state

    return Model(init, apply)


class Table(NamedTuple):
    past: jax.Array  # [rows, classes], split over devices
    count: jax.Array  # scalar, the same on all


class Memory:
    """Cross-entropy and a pull to the example's last outputs, kept by the owner of its row."""

    def __init__(self, model: Model, weight: float):
        self.model, self.weight = model, weight

    def init(self, params: Any, num_examples: int, *, model_state: Any = ()) -> Any:
        return Table(jnp.zeros((padded_rows(num_examples), 4)), jnp.zeros((), jnp.int32))

    def sharded(self, state):
        return Table(True, False)

    def loss(self, params, model_state, state, batch, epoch, key):
        logits, model_state = self.model.apply(
            params, model_state, batch["inputs"], train=True, key=key
        )
        base = optax.softmax_cross_entropy_with_integer_labels(logits, batch["label"]).mean()
        mine, row = self._mine(state, jax.lax.all_gather(batch["index"], AXIS, tiled=True))
        everyones = jax.lax.psum(jnp.where(mine[:, None], state.past[row], 0.0), AXIS)
        share = len(batch["index"])
        past = jax.lax.dynamic_slice_in_dim(everyones, jax.lax.axis_index(AXIS) * share, share)
        pull = ((logits - past) ** 2).mean()
        return base + self.weight * pull, Outputs(logits, model_state, {"pull": pull})

    def update(self, state, *, logits, batch, **changes):
        index = jax.lax.all_gather(batch["index"], AXIS, tiled=True)
        logits = jax.lax.all_gather(logits, AXIS, tiled=True)
        mine, row = self._mine(state, index)
        row = jnp.where(mine, row, len(state.past))  # out of range: dropped
        return Table(state.past.at[row].set(logits, mode="drop"), state.count + len(index))

    def _mine(self, state, index):
        row = index - jax.lax.axis_index(AXIS) * len(state.past)
        return (row >= 0) & (row < len(state.past)), row


CASES = {
    "dropout": {"model": "mlp"},
    "accumulation": {"model": "mlp", "grad_accumulation": 4, "clip_norm": 0.5},
    "batch_norm": {"model": "normalized"},
    "batch_norm_accumulation": {"model": "normalized", "grad_accumulation": 2},
    "table": {"model": "mlp", "weight": 0.1},
    "saf": {"model": "mlp", "saf": True},
    "all": {"model": "normalized", "saf": True, "grad_accumulation": 2, "clip_norm": 0.5},
    "saf_by_owner": {"model": "mlp", "saf": True, "order": "owner_local"},
}


def saf(model: Model, order: str) -> Any:
    return sam_free.saf(
        model.apply,
        sam_free.cross_entropy,
        num_classes=4,
        lag_epochs=2,
        start_epoch=2,
        weight=1.0,
        buffer_dtype="float64",
        order=order,
        axis_name=AXIS,
    )


def run(case: str, folder, parallelism: str, num_devices: int) -> Result:
    options = dict(CASES[case])
    smooth = mlp(num_outputs=4, width=8, depth=1, activation="tanh", dropout=0.2)
    model = {"mlp": smooth, "normalized": normalized()}[options.pop("model")]
    if options.pop("saf", False):
        objective = saf(model, options.get("order", "global"))
    else:
        objective = Memory(model, options.pop("weight", 0.0))
    config = default_config()
    config.update({"batch_size": BATCH, "num_steps": STEPS, "eval_every_epochs": 0})
    config.update({"parallelism": parallelism, "num_devices": num_devices, **options})
    config.checkpoint_every = STEPS
    optimizer = optax.adamw(optax.warmup_cosine_decay_schedule(0.0, 0.01, 20, STEPS))
    study = Study(model, data(), objective, optimizer, eval_data={"test": data()})
    return train(study, config, folder)


def check(case: str, tmp_path, layouts) -> None:
    with jax.enable_x64(True):
        one = run(case, tmp_path / "one", "shard_map", 1)
        leaves = jax.tree.leaves((one.state, one.metrics))
        assert any(getattr(leaf, "dtype", None) == np.float64 for leaf in leaves)
        for parallelism, count in layouts:
            many = run(case, tmp_path / f"{parallelism}{count}", parallelism, count)
            for a, b in zip(leaves, jax.tree.leaves((many.state, many.metrics)), strict=True):
                if np.prod(np.shape(a)) == 0:
                    continue
                np.testing.assert_allclose(
                    a, b, rtol=1e-12, atol=1e-12, err_msg=f"{case}, {parallelism}, {count} devices"
                )


def test_several_devices_equal_one_with_saf_batch_statistics_and_accumulation(tmp_path):
    check("all", tmp_path, [("shard_map", 4), ("pmap", 4)])


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("case", CASES)
def test_any_number_of_devices_equals_one(case, tmp_path):
    check(case, tmp_path, MANY)
