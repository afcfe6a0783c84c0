"""SAF's table over simulated devices: the same numbers, small collectives, no copy of the table."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

import sam_free

AXIS = "data"
CLASSES, FEATURES, EXAMPLES, BATCH, EPOCHS, OWNERS = 4, 5, 512, 64, 10, 8
RNG = np.random.default_rng(3)
IMAGES = RNG.normal(size=(EXAMPLES, FEATURES))
LABELS = RNG.integers(0, CLASSES, EXAMPLES)


def start(dtype):
    rng = np.random.default_rng(4)
    return {
        "a": jnp.asarray(rng.normal(size=(FEATURES, 8)), dtype),
        "b": jnp.asarray(rng.normal(size=(8, CLASSES)), dtype),
    }


def apply_fn(params, model_state, inputs, *, train, key):
    return jnp.tanh(inputs @ params["a"]) @ params["b"], model_state


def make_step(num_devices, *, order="global", dtype="float64", num_examples=EXAMPLES, **options):
    """(compiled step, state placed on the devices, sharding of a batch); 0 devices: no mapping."""
    axis = AXIS if num_devices else None
    objective = sam_free.saf(
        apply_fn,
        sam_free.cross_entropy,
        num_classes=CLASSES,
        buffer_dtype=dtype,
        order=order,
        axis_name=axis,
        **options,
    )
    rule = {"rho": 0.1, "group_size": 8, "axis_name": axis}
    if dtype != "float64" or "published_ranks" in options:  # ranks count places in a whole batch
        rule = None

    def step(params, table, batch, epoch):
        def loss_fn(params, batch):
            return objective.loss(params, (), table, batch, epoch, None)

        own = params
        gradient = jax.value_and_grad(loss_fn, has_aux=True)
        if rule:
            gradient = sam_free.sam_gradient(loss_fn, **rule)
        if axis:
            own = jax.tree.map(lambda w: jax.lax.pcast(w, axis, to="varying"), params)
        (loss, outputs), grads = gradient(own, batch)
        if axis:
            grads, loss = jax.lax.pmean((grads, loss), axis)
        params = jax.tree.map(lambda w, g: w - 0.2 * g, params, grads)
        table = objective.update(
            table, params=params, model_state=(), logits=outputs.logits, batch=batch, epoch=epoch
        )
        return params, table, loss

    params = start(np.float64 if dtype == "float64" else np.float32)
    table = objective.init(params, num_examples)
    whole, split = None, None
    if axis:
        mesh = jax.make_mesh((num_devices,), (axis,), axis_types=(AxisType.Auto,))
        specs = jax.tree.map(
            lambda is_split: PartitionSpec(axis) if is_split else PartitionSpec(),
            objective.sharded(table),
        )
        whole, split = (NamedSharding(mesh, s) for s in (PartitionSpec(), PartitionSpec(axis)))
        step = jax.shard_map(
            step,
            mesh=mesh,
            in_specs=(PartitionSpec(), specs, PartitionSpec(axis), PartitionSpec()),
            out_specs=(PartitionSpec(), specs, PartitionSpec()),
        )
        params = jax.device_put(params, whole)
        table = jax.device_put(table, jax.tree.map(lambda s: NamedSharding(mesh, s), specs))
    return jax.jit(step, donate_argnums=(0, 1)), params, table, split


def epoch_order(epoch, order):
    rng = np.random.default_rng(epoch)
    if order == "global":
        return rng.permutation(EXAMPLES).reshape(-1, BATCH)
    # every owner's part of a batch comes from its own block of rows
    blocks = np.arange(EXAMPLES).reshape(OWNERS, -1)
    shuffled = np.stack([rng.permutation(block) for block in blocks])
    parts = shuffled.reshape(OWNERS, -1, BATCH // OWNERS)
    return parts.swapaxes(0, 1).reshape(-1, BATCH)


def batch_of(index, dtype=np.float64, place=None):
    batch = {
        "image": IMAGES[index % EXAMPLES].astype(dtype),
        "label": LABELS[index % EXAMPLES].astype(np.int32),
        "index": index.astype(np.int32),
    }
    return jax.device_put(batch, place)


def train(num_devices, order, data_order=None, **options):
    step, params, table, place = make_step(num_devices, order=order, **options)
    for epoch in range(EPOCHS):
        for index in epoch_order(epoch, data_order or order):
            params, table, _ = step(params, table, batch_of(index, place=place), jnp.int32(epoch))
    return jax.tree.map(np.asarray, (params, table))


SAF = {"lag_epochs": 2, "start_epoch": 1, "weight": 1.0, "ring": "lag"}
COUNTS = [8, *(pytest.param(count, marks=pytest.mark.slow) for count in (1, 2, 4))]


@pytest.fixture(scope="module")
def alone():
    """Runs on one device without any mapping, by order of the data."""
    with jax.enable_x64(True):
        return {order: train(0, "global", order, **SAF) for order in ("global", "owner_local")}


@pytest.mark.parametrize("order", ["global", "owner_local"])
@pytest.mark.parametrize("num_devices", COUNTS)
def test_ten_epochs_do_not_depend_on_the_devices(alone, num_devices, order):
    with jax.enable_x64(True):
        params, table = train(num_devices, order, **SAF)
    for name, expected in alone[order][0].items():
        assert np.abs(expected - start(np.float32)[name]).max() > 0.1
        np.testing.assert_allclose(params[name], expected, rtol=0, atol=1e-10)
    np.testing.assert_array_equal(table.written, alone[order][1].written)
    np.testing.assert_allclose(table.values, alone[order][1].values, rtol=0, atol=1e-10)


@pytest.mark.slow
def test_the_published_ranks_follow_the_place_in_the_global_batch():
    options = SAF | {"stale": "official", "published_ranks": 4}
    with jax.enable_x64(True):
        expected, _ = train(0, "global", **options)
        found, _ = train(8, "global", **options)
        honest, _ = train(0, "global", **SAF)
    np.testing.assert_allclose(found["a"], expected["a"], rtol=0, atol=1e-10)
    assert np.abs(honest["a"] - expected["a"]).max() > 1e-3


@functools.cache
def compile_step(num_devices, order, num_examples, ring="lag"):
    step, params, table, place = make_step(
        num_devices, order=order, num_examples=num_examples, dtype="float16", ring=ring
    )
    batch = batch_of(np.arange(BATCH), np.float32, place)
    return step.lower(params, table, batch, jnp.int32(0)).compile()


def collectives(compiled):
    """(name, elements of the largest array) of every collective of a compiled program."""
    found = []
    for line in compiled.as_text().splitlines():
        match = re.search(r"= (.*?) (all-|reduce-scatter|collective-)[\w-]*\(", line)
        if match:
            shapes = re.findall(r"\w+\[([\d,]*)\]", line.split(", channel_id")[0])
            sizes = [int(np.prod([int(n) for n in s.split(",") if n] or [1])) for s in shapes]
            found.append((match[2], max(sizes)))
    return found


@pytest.mark.parametrize("order", ["global", pytest.param("owner_local", marks=pytest.mark.slow)])
def test_no_collective_grows_with_the_data(order):
    small, large = (collectives(compile_step(8, order, n)) for n in (10_000, 1_000_000))
    assert small == large
    assert small  # the gradients, at least
    assert max(size for _, size in small) <= 8 * BATCH * CLASSES
    if order == "owner_local":
        kinds = {kind for kind, size in small if size > 1}
        weights = sum(w.size for w in start(np.float32).values())
        assert kinds == {"all-"}  # all-reduce of the gradients
        assert max(size for _, size in small) <= weights


@pytest.mark.parametrize(
    ("num_devices", "ring"),
    [(0, "lag"), pytest.param(0, "lag_plus_one", marks=pytest.mark.slow), (8, "lag")],
)
def test_the_table_is_never_copied(num_devices, ring):
    sizes = []
    for num_examples in (10_000, 1_000_000):
        compiled = compile_step(num_devices, "global", num_examples, ring=ring)
        memory = compiled.memory_analysis()
        sizes.append(memory.temp_size_in_bytes)
        slots = 3 + (ring == "lag_plus_one")
        held = num_examples * slots * (2 * CLASSES + 4) // (num_devices or 1)
        assert memory.alias_size_in_bytes >= held  # updated where it lies
    assert sizes[1] - sizes[0] < 4096
    assert sizes[1] < 200_000


@functools.cache
def eight_devices():
    """One compiled step for several tests, and a function that gives it a new state."""
    step, *_ = make_step(8, dtype="float16")
    return step, lambda: make_step(8, dtype="float16")[1:3]


@pytest.mark.parametrize(
    ("index", "message"),
    [
        ([0, 1, 512, 3], "holds 512, outside 0..511"),
        ([0, -1, 2, 3], "holds -1, outside 0..511"),
        ([0, 7, 2, 7], "holds 7 twice"),
    ],
)
def test_a_bad_index_is_never_silent(index, message):
    rest = np.arange(100, 100 + BATCH - 4)
    bad = np.concatenate([index, rest])
    step, place = eight_devices()
    params, table = place()
    _, table, loss = step(params, table, batch_of(bad, np.float32), jnp.int32(0))
    assert np.isnan(loss)
    assert not np.asarray(table.written).any()
    with pytest.raises(ValueError, match=message):
        sam_free.check_index(bad, EXAMPLES)
    objective = sam_free.saf(apply_fn, sam_free.cross_entropy, num_classes=CLASSES)
    params = start(np.float32)
    table = objective.init(params, EXAMPLES)
    with pytest.raises(ValueError, match=message):
        objective.loss(params, (), table, batch_of(bad, np.float32), 0, None)


def test_a_bad_index_can_stop_the_compiled_step():
    objective = sam_free.saf(
        apply_fn, sam_free.cross_entropy, num_classes=CLASSES, raise_on_bad_index=True
    )
    params = start(np.float32)
    table = objective.init(params, EXAMPLES)

    def run(index):
        batch = batch_of(index, np.float32)
        loss = jax.jit(objective.loss)(params, (), table, batch, 0, None)[0]
        jax.effects_barrier()
        return loss

    assert np.isfinite(run(np.arange(4)))
    with pytest.raises(jax.errors.JaxRuntimeError, match="holds 600"):
        run(np.array([600, 1, 2, 3]))
