"""Which examples make a step: each once an epoch, and the same for any number of processes."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shared.data import batch_index, padded_rows, shuffled, steps_per_epoch


@settings(deadline=None, derandomize=True, max_examples=60)
@given(
    num_examples=st.integers(1, 700),
    batch_size=st.integers(1, 90),
    seed=st.integers(0, 2**64 - 1),
    epoch=st.integers(0, 5),
)
def test_an_epoch_holds_every_example_at_most_once(num_examples, batch_size, seed, epoch):
    if batch_size > num_examples:
        return
    sizes = {"num_examples": num_examples, "batch_size": batch_size}
    steps = steps_per_epoch(**sizes)
    first = epoch * steps
    seen = np.concatenate([batch_index(seed, first + s, **sizes) for s in range(steps)])
    assert seen.dtype == np.int32
    assert len(np.unique(seen)) == len(seen) == num_examples // batch_size * batch_size
    assert seen.min() >= 0
    assert seen.max() < num_examples


def test_an_epoch_without_remainder_holds_every_example_exactly_once():
    seen = [batch_index(3, s, num_examples=96, batch_size=8) for s in range(12)]
    assert sorted(np.concatenate(seen)) == list(range(96))


@pytest.mark.parametrize("order", ["global", "owner_local"])
@pytest.mark.parametrize("num_processes", [1, 2, 4])
def test_the_parts_of_the_processes_join_to_the_same_stream(order, num_processes):
    sizes = {"num_examples": 1437, "batch_size": 128, "order": order, "num_shards": 8}
    share = 128 // num_processes
    for step in (0, 5, 17, 200):
        whole = batch_index(7, step, **sizes)
        parts = [
            batch_index(7, step, **sizes)[p * share : (p + 1) * share] for p in range(num_processes)
        ]
        np.testing.assert_array_equal(np.concatenate(parts), whole)


@pytest.mark.parametrize("num_shards", [1, 2, 4, 8])
def test_owner_local_order_gives_each_device_rows_of_its_own_block(num_shards):
    n, batch_size = 1437, 64
    sizes = {
        "num_examples": n,
        "batch_size": batch_size,
        "order": "owner_local",
        "num_shards": num_shards,
    }
    rows = padded_rows(n) // num_shards  # the owner of row i is i // rows
    steps = steps_per_epoch(**sizes)
    seen = []
    for step in range(steps, 2 * steps):
        index = batch_index(1, step, **sizes).reshape(num_shards, -1)
        np.testing.assert_array_equal(
            index // rows, np.broadcast_to(np.arange(num_shards)[:, None], index.shape)
        )
        seen.append(index.ravel())
    seen = np.concatenate(seen)
    assert len(np.unique(seen)) == len(seen)


def test_eight_blocks_are_also_two_blocks():
    # A run whose blocks were laid out for 8 devices stays local on 2 and on 4.
    rows = padded_rows(1437)
    index = batch_index(1, 3, num_examples=1437, batch_size=64, order="owner_local", num_shards=8)
    for devices in (2, 4):
        owners = index.reshape(devices, -1) // (rows // devices)
        np.testing.assert_array_equal(owners, owners[:, :1].repeat(64 // devices, axis=1))


def test_epochs_seeds_and_steps_differ():
    sizes = {"num_examples": 1000, "batch_size": 1000}
    orders = [batch_index(seed, epoch, **sizes) for seed in (0, 1) for epoch in (0, 1)]
    for first, second in itertools.combinations(orders, 2):
        assert (first == second).mean() < 0.01  # two random orders agree in one place on average


def test_the_first_place_is_uniform():
    # Chi-square with 9 degrees of freedom: above 27.9 with probability 1e-3.
    first = [batch_index(0, 10 * e, num_examples=10, batch_size=1)[0] for e in range(2000)]
    counts = np.bincount(first, minlength=10)
    assert ((counts - 200) ** 2 / 200).sum() < 27.9


def test_pairs_of_neighbours_are_uniform():
    # All 24 orders of four examples: 23 degrees of freedom, 49.7 at probability 1e-3.
    orders = [tuple(batch_index(5, e, num_examples=4, batch_size=4)) for e in range(4800)]
    counts = np.array([orders.count(order) for order in itertools.permutations(range(4))])
    assert ((counts - 200) ** 2 / 200).sum() < 49.7


FROZEN_GLOBAL = [47848, 34552, 24994, 32827]
FROZEN_LOCAL = [212, 245, 538, 499, 930, 924, 1408, 1153]


def test_the_stream_is_frozen():
    # Recorded runs depend on these numbers; they must not change with NumPy or with this code.
    assert batch_index(0, 0, num_examples=60000, batch_size=4).tolist() == FROZEN_GLOBAL
    local = batch_index(
        2**63, 77, num_examples=1437, batch_size=8, order="owner_local", num_shards=4
    )
    assert local.tolist() == FROZEN_LOCAL


def test_order_is_that_of_the_raw_words():
    # The definition, written out slowly: sort by the upper bits of Philox's words.
    words = np.random.Philox(key=np.array([9, 2], np.uint64)).random_raw(50)
    expected = sorted(range(50), key=lambda i: (int(words[i]) >> 31, i))
    assert batch_index(9, 2, num_examples=50, batch_size=50).tolist() == expected


def test_the_caller_may_write_into_what_it_gets():
    batch_index(0, 0, num_examples=10, batch_size=5)[:] = -1
    assert batch_index(0, 0, num_examples=10, batch_size=5).min() >= 0


def test_streams_of_shuffled_are_unlike_each_other_and_unlike_the_epochs():
    orders = [shuffled(0, 500, stream=stream) for stream in range(3)]
    orders.append(batch_index(0, 0, num_examples=500, batch_size=500))
    for first, second in itertools.combinations(orders, 2):
        assert (first == second).mean() < 0.02
    assert sorted(orders[0]) == list(range(500))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"num_examples": 0}, "no examples"),
        ({"num_examples": 2**31}, "below 2\\*\\*31"),
        ({"batch_size": 0}, "batch_size must be positive"),
        ({"batch_size": 101}, "larger than the data set of 100"),
        ({"step": -1}, "step must be >= 0"),
        ({"seed": -1}, "seed must be in"),
        ({"order": "sorted"}, 'must be "global" or "owner_local"'),
        ({"order": "owner_local", "num_shards": 3}, "must divide 64"),
        ({"order": "owner_local", "num_shards": 8, "batch_size": 12}, "multiple of 8"),
        ({"order": "owner_local", "num_shards": 64, "batch_size": 64}, "lower batch_size"),
    ],
)
def test_bad_arguments_are_named(change, message):
    arguments = {"seed": 0, "step": 0, "num_examples": 100, "batch_size": 10} | change
    with pytest.raises(ValueError, match=message):
        batch_index(arguments.pop("seed"), arguments.pop("step"), **arguments)
