"""Votes over eight simulated devices beside a majority counted in NumPy."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from lion_lyapunov import distributed

# Compiled once and run briefly: optimising the code would take longer than it saves.
jit = functools.partial(
    jax.jit,
    compiler_options={
        "xla_backend_optimization_level": 0,
        "xla_llvm_disable_expensive_passes": True,
    },
)


DEVICES = 8


def over_devices(function, count=DEVICES):
    mesh = jax.make_mesh(
        (count,), ("data",), axis_types=(jax.sharding.AxisType.Auto,),
        devices=jax.devices()[:count],
    )  # fmt: skip
    return jit(jax.shard_map(function, mesh=mesh, in_specs=P("data"), out_specs=P("data")))


def directions(count, seed=0):
    rng = np.random.default_rng(seed)
    tree = {"w": rng.normal(size=(count, 13, 5)), "b": rng.normal(size=(count, 3))}
    return jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float32), tree)


@pytest.mark.parametrize("wire", ["bits", "int8"])
@pytest.mark.parametrize("count", [8, 5])
def test_vote_is_the_majority_counted_on_one_host(wire, count):
    sent = directions(count)

    def vote(tree):
        return distributed.majority_vote(tree, "data", wire=wire)

    got = over_devices(vote, count)(sent)
    for name, leaf in sent.items():
        total = np.sign(np.asarray(leaf)).sum(axis=0)
        if count == 8:
            assert (total == 0).any()  # ties occur, and move nothing
        for device in range(count):
            np.testing.assert_array_equal(got[name][device], np.sign(total))


def test_zeros_abstain_in_bytes_and_count_as_plus_in_bits():
    sent = jnp.zeros((8, 2)).at[0].set(-1.0)
    by_bytes = over_devices(lambda x: distributed.majority_vote(x, "data", wire="int8"))(sent)
    by_bits = over_devices(lambda x: distributed.majority_vote(x, "data", wire="bits"))(sent)
    np.testing.assert_array_equal(by_bytes, -1.0)
    np.testing.assert_array_equal(by_bits, 1.0)


def test_average_of_signs():
    sent = directions(8)
    got = over_devices(lambda tree: distributed.average_signs(tree, "data"))(sent)
    expected = np.sign(np.asarray(sent["w"])).mean(axis=0)
    np.testing.assert_allclose(got["w"][3], expected, atol=1e-12)


SIZES = {"s8": 1, "u8": 1, "f32": 4, "s32": 4, "pred": 1, "bf16": 2}


def bytes_of_collectives(function, count, size):
    text = over_devices(function).lower(jnp.ones((count, size))).compile().as_text()
    total = 0
    for line in text.splitlines():
        found = re.search(r"= (\w+)\[([\d,]*)\].* (all-reduce|all-to-all|all-gather)\(", line)
        if found is None:
            # A tuple-shaped all-to-all hands over one operand per device.
            found = re.search(r"= \((.*)\) (all-to-all)\(", line)
            if found is not None:
                for kind, shape in re.findall(r"(\w+)\[([\d,]+)\]", found[1]):
                    total += SIZES[kind] * int(np.prod([int(n) for n in shape.split(",")]))
            continue
        entries = int(np.prod([int(n) for n in found[2].split(",") if n]))
        received = SIZES[found[1]] * entries
        total += received // count if found[3] == "all-gather" else received
    return total


@pytest.mark.parametrize("wire", ["bits", "int8"])
def test_bytes_on_the_wire_are_those_of_the_compiled_program(wire):
    size = 4096
    sent = bytes_of_collectives(
        lambda x: distributed.majority_vote(x, "data", wire=wire), DEVICES, size
    )
    assert sent == distributed.wire_bytes(size, DEVICES, wire=wire)
    if wire == "bits":
        assert sent == size // 8 + 2 * size // 64
    dense = bytes_of_collectives(lambda x: jax.lax.pmean(x, "data"), DEVICES, size)
    assert dense == 4 * size


@pytest.mark.parametrize("method", ["majority", "average"])
def test_distributed_lion_is_the_loop_over_workers(method):
    rng = np.random.default_rng(2)
    grads = rng.normal(size=(6, DEVICES, 10)).astype(np.float32)
    optimizer = distributed.distributed_lion(
        0.1, "data", method=method, b1=0.75, b2=0.5, weight_decay=0.25
    )

    def train(grads):
        grads = grads[:, 0]
        x = jax.lax.pcast(jnp.full(10, 2.0), "data", to="varying")
        state = optimizer.init(x)
        for step in range(6):
            updates, state = optimizer.update(grads[step], state, x)
            x = x + updates
        return x[None]

    mesh = jax.make_mesh((DEVICES,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    got = jit(jax.shard_map(train, mesh=mesh, in_specs=P(None, "data"), out_specs=P("data")))(grads)
    x, momenta = np.full(10, 2.0), np.zeros((DEVICES, 10))
    for step in range(6):
        signs = np.sign(0.25 * grads[step] + 0.75 * momenta)
        momenta = 0.5 * momenta + 0.5 * grads[step]
        agreed = np.sign(signs.sum(0)) if method == "majority" else signs.mean(0)
        x = x - 0.1 * (agreed + 0.25 * x)
    for device in range(DEVICES):
        np.testing.assert_allclose(got[device], x, rtol=1e-5)


def test_choices_are_checked():
    with pytest.raises(ValueError, match="wire must be one of bits, int8"):
        distributed.vote("data", wire="float")
    with pytest.raises(ValueError, match="method must be one of"):
        distributed.vote("data", method="median")
