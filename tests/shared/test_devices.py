import jax
import jax.numpy as jnp
import numpy as np
import pytest

from shared.devices import AXIS, make_devices

LAYOUTS = [("shard_map", 1), ("shard_map", 4), ("pmap", 1), ("pmap", 4)]


@pytest.mark.parametrize(("parallelism", "count"), LAYOUTS)
def test_gradient_of_the_mean_is_not_multiplied_by_the_number_of_devices(parallelism, count):
    devices = make_devices(parallelism, count)
    rng = np.random.default_rng(0)
    x, y = rng.standard_normal((8, 3)).astype(np.float32), rng.standard_normal(8).astype(np.float32)
    w = jnp.array([0.5, -1.0, 2.0])

    def step(w, batch):
        def loss(w):
            return jnp.mean((batch["x"] @ w - batch["y"]) ** 2)

        return jax.lax.pmean(jax.grad(loss)(w), AXIS)

    mapped = devices.map(step, (False, True), False)
    got = mapped(w, devices.batch({"x": x, "y": y}))
    want = 2 / 8 * x.T @ (x @ np.asarray(w) - y)  # by hand, over the whole batch
    np.testing.assert_allclose(got, want, rtol=1e-5)


@pytest.mark.parametrize(("parallelism", "count"), LAYOUTS)
def test_device_j_holds_the_jth_block_of_what_is_split(parallelism, count):
    devices = make_devices(parallelism, count)
    table = jnp.arange(16.0).reshape(8, 2)

    def step(table):
        return table + 100 * jax.lax.axis_index(AXIS)

    split = devices.from_global(table, True)
    moved = devices.to_global(devices.map(step, (True,), True)(split), True)
    owner = np.arange(8) // (8 // count)
    np.testing.assert_array_equal(moved, np.asarray(table) + 100 * owner[:, None])


def test_one_process_reads_every_row():
    assert make_devices("shard_map", 4).local_rows(32) == slice(0, 32)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("xmap", 1), 'must be "shard_map" or "pmap", got \'xmap\''),
        (("shard_map", 9), "num_devices must be 0 to 8, got 9"),
        (("shard_map", -1), "num_devices must be 0 to 8, got -1"),
    ],
)
def test_refuses_devices_that_are_not_there(arguments, message):
    with pytest.raises(ValueError, match=message):
        make_devices(*arguments)
