"""Which examples make step s: a pure function of the seed and the step."""

import functools
from typing import Literal

import numpy as np

Order = Literal["global", "owner_local"]

# Tables with a row per example are padded to a multiple of this, so that the same table can be cut
# into 1, 2, 4, ... 64 equal blocks and a checkpoint can move between device counts.
ROW_MULTIPLE = 64


def padded_rows(num_examples: int) -> int:
    """Rows of a table with a row per example: `num_examples` up to the next multiple of 64.

    >>> padded_rows(1437)
    1472
    """
    return -(-num_examples // ROW_MULTIPLE) * ROW_MULTIPLE


def steps_per_epoch(
    num_examples: int, batch_size: int, *, order: Order = "global", num_shards: int = 1
) -> int:
    """Full batches in one pass over the data; the rest is dropped and drawn anew in the next pass.

    Args:
      num_examples: size of the data set.
      batch_size: examples per step, summed over all devices and processes.
      order: "global", or "owner_local" as in `batch_index`.
      num_shards: number of blocks of "owner_local": the number of devices.
    Returns:
      A positive number of steps.
    Raises:
      ValueError: no batch can be filled, or the sizes do not divide; the message says which.

    >>> steps_per_epoch(1437, 128)
    11
    """
    _check(num_examples, batch_size, order, num_shards)
    if order == "global":
        return num_examples // batch_size
    return min(stop - start for start, stop in _blocks(num_examples, num_shards)) // (
        batch_size // num_shards
    )


def batch_index(
    seed: int,
    step: int,
    *,
    num_examples: int,
    batch_size: int,
    order: Order = "global",
    num_shards: int = 1,
) -> np.ndarray:
    """The examples of step `step`, in the order in which devices share them.

    Every epoch is a new permutation, cut into batches, its remainder dropped: no example comes
    twice in an epoch. Nothing depends on how many processes ask; process p of P uses the rows
    [p * batch_size / P, (p + 1) * batch_size / P).

    Args:
      seed: of the run, in [0, 2**64).
      step: counted from 0 over the whole run.
      num_examples: size of the data set.
      batch_size: examples per step, summed over all devices and processes.
      order: "global" shuffles the whole set. "owner_local" takes the j-th of `num_shards` equal
        parts of every batch from the j-th contiguous block of rows of a table that is padded to a
        multiple of 64 rows, so that device j finds in its own block all that it needs.
      num_shards: number of blocks of "owner_local": the number of devices.
    Returns:
      int32 [batch_size].

    >>> batch_index(0, 3, num_examples=10, batch_size=4).tolist()
    [2, 4, 1, 0]
    """
    steps = steps_per_epoch(num_examples, batch_size, order=order, num_shards=num_shards)
    if step < 0:
        raise ValueError(f"batch_index: step must be >= 0, got {step!r}.")
    if not 0 <= seed < 2**64:
        raise ValueError(f"batch_index: seed must be in [0, 2**64), got {seed!r}.")
    epoch, row = divmod(int(step), steps)
    table = _epoch(int(seed), epoch, num_examples, batch_size, order, num_shards)
    return table[row].copy()


@functools.lru_cache(maxsize=4)  # training and one or two evaluations, or two epochs at their seam
def _epoch(
    seed: int, epoch: int, num_examples: int, batch_size: int, order: Order, num_shards: int
) -> np.ndarray:
    tickets = _tickets(seed, epoch, num_examples)
    steps = steps_per_epoch(num_examples, batch_size, order=order, num_shards=num_shards)
    if order == "global":
        return _sorted(tickets)[: steps * batch_size].reshape(steps, batch_size)
    share = batch_size // num_shards
    parts = [
        _sorted(tickets[start:stop])[: steps * share].reshape(steps, share)
        for start, stop in _blocks(num_examples, num_shards)
    ]
    return np.concatenate(parts, axis=1)


_NUMBER_MASK = np.uint64(2**31 - 1)


def _tickets(seed: int, epoch: int, num_examples: int) -> np.ndarray:
    """For each example a random word with the example's number in its low 31 bits.

    The words are raw ones of a counter-based generator: NumPy promises these for ever, but not what
    Generator.permutation makes of them (NEP 19). With the number inside, sorting needs no argsort,
    which is several times slower, and no two words are equal.
    """
    words = np.random.Philox(key=np.array([seed, epoch], np.uint64)).random_raw(num_examples)
    words &= ~_NUMBER_MASK
    words |= np.arange(num_examples, dtype=np.uint64)
    return words


def _sorted(tickets: np.ndarray) -> np.ndarray:
    return (np.sort(tickets) & _NUMBER_MASK).astype(np.int32)


def shuffled(seed: int, num_examples: int, *, stream: int = 0) -> np.ndarray:
    """All numbers below `num_examples` in an order that depends on seed and stream alone.

    Args:
      seed: in [0, 2**64).
      num_examples: how many.
      stream: small number >= 0; each purpose takes its own, so that the order of a split is not
        that of a subset made with the same seed.
    Returns:
      int32 [num_examples].
    """
    if not 0 <= seed < 2**64:
        raise ValueError(f"seed must be in [0, 2**64), got {seed!r}.")
    # Counted down from the largest key: no run reaches so many epochs.
    return _sorted(_tickets(seed, 2**64 - 1 - stream, num_examples))


def _blocks(num_examples: int, num_shards: int) -> list[tuple[int, int]]:
    rows = padded_rows(num_examples) // num_shards
    return [
        (min(j * rows, num_examples), min((j + 1) * rows, num_examples)) for j in range(num_shards)
    ]


def _check(num_examples: int, batch_size: int, order: str, num_shards: int) -> None:
    if num_examples <= 0:
        raise ValueError(f"the data set holds no examples (num_examples = {num_examples!r}).")
    if num_examples >= 2**31:
        raise ValueError(f"num_examples must be below 2**31, got {num_examples!r}.")
    if batch_size <= 0:
        raise ValueError(f"batch_size must be positive, got {batch_size!r}.")
    if order not in ("global", "owner_local"):
        raise ValueError(f'order must be "global" or "owner_local", got {order!r}.')
    if batch_size > num_examples:
        raise ValueError(
            f"batch_size = {batch_size} is larger than the data set of {num_examples} examples; "
            f"lower it to at most {num_examples}."
        )
    if order == "global":
        return
    if num_shards <= 0 or ROW_MULTIPLE % num_shards:
        raise ValueError(f"num_shards must divide {ROW_MULTIPLE}, got {num_shards!r}.")
    if batch_size % num_shards:
        raise ValueError(
            f"batch_size = {batch_size} does not divide over num_shards = {num_shards}; "
            f"use a multiple of {num_shards}."
        )
    smallest = min(stop - start for start, stop in _blocks(num_examples, num_shards))
    if smallest < batch_size // num_shards:
        raise ValueError(
            f'order="owner_local": the smallest of {num_shards} blocks of {num_examples} examples '
            f"holds {smallest}, fewer than its share {batch_size // num_shards} of a batch; "
            'lower batch_size or use order="global".'
        )
