"""Batches by number beside what one writes by hand: NumPy's permutation and fancy indexing.

60000 examples of 784 bytes, 256 a step, a whole epoch with its shuffle, in CPU seconds.
"""

import time
from typing import Any

import numpy as np

from benchmarks.interleave import interleave
from shared import data

NUM_EXAMPLES, BATCH_SIZE = 60_000, 256
BAR = 1.5


def run(fast: bool) -> list[dict[str, Any]]:
    """Rows for the runner: global and owner-local order, and order with the gather."""
    rng = np.random.default_rng(0)
    arrays = {
        "image": rng.integers(0, 256, (NUM_EXAMPLES, 784)).astype(np.uint8),
        "label": rng.integers(0, 10, NUM_EXAMPLES).astype(np.int32),
    }
    source = data.Arrays(arrays)
    epochs: dict[str, int] = {}

    def by_hand() -> int:
        order = rng.permutation(NUM_EXAMPLES)
        total = 0
        for start in range(0, NUM_EXAMPLES - BATCH_SIZE + 1, BATCH_SIZE):
            index = order[start : start + BATCH_SIZE]
            batch = {name: array[index] for name, array in arrays.items()}
            total += len(batch["label"])
        return total

    def epoch(order: data.Order, num_shards: int) -> int:
        sizes: dict[str, Any] = {
            "num_examples": NUM_EXAMPLES,
            "batch_size": BATCH_SIZE,
            "order": order,
            "num_shards": num_shards,
        }
        steps = data.steps_per_epoch(**sizes)
        epochs[order] = epochs.get(order, 0) + 1  # every call shuffles anew, as by hand
        total = 0
        for step in range(steps):
            batch = source.batch(data.batch_index(0, epochs[order] * steps + step, **sizes))
            total += len(batch["label"])
        return total

    timings = interleave(
        {
            "by hand": by_hand,
            "global": lambda: epoch("global", 1),
            "owner_local": lambda: epoch("owner_local", 8),
        },
        baseline="by hand",
        rounds=5 if fast else 31,
        clock=time.process_time,
    )
    return [
        {
            "name": f"an epoch of batches, {order} order",
            "ours": timings[order].median_s,
            "peer": timings["by hand"].median_s,
            "ratio": timings[order].ratio,
            "low": timings[order].low,
            "high": timings[order].high,
            "bar": f"<= {BAR} x NumPy by hand",
            "holds": timings[order].ratio <= BAR,
        }
        for order in ("global", "owner_local")
    ]
