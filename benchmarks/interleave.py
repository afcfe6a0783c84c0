"""Times two or more callables in one run, in turns, so that a busy machine slows all alike."""

import dataclasses
import statistics
import time
from collections.abc import Callable, Mapping

import jax


@dataclasses.dataclass(frozen=True)
class Timing:
    """What one contender took. Seconds are of this run and machine; compare ratios only."""

    median_s: float
    ratio: float  # median over rounds of its time over the baseline's in the same round
    low: float  # lower quartile of those ratios
    high: float  # upper quartile


def interleave(
    contenders: Mapping[str, Callable[[], object]],
    *,
    baseline: str,
    rounds: int = 15,
    calls: int = 1,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[str, Timing]:
    """Runs every contender once per round, `rounds` times, after one call each to compile.

    Args:
      contenders: name to function of no arguments; what it returns is waited for.
      baseline: the contender whose ratio is 1.
      rounds: number of turns; the order is reversed in every second one.
      calls: calls per turn, for work shorter than about 10 ms.
      clock: `time.perf_counter`, or `time.process_time` for CPU seconds.
    Returns:
      A Timing for each name.
    Raises:
      ValueError: `baseline` is not a contender, or `rounds` or `calls` is below 1.
    """
    if baseline not in contenders:
        raise ValueError(f"interleave: baseline {baseline!r} is not one of {sorted(contenders)}.")
    if rounds < 1 or calls < 1:
        raise ValueError(f"interleave: rounds and calls must be >= 1, got {rounds} and {calls}.")
    for function in contenders.values():
        jax.block_until_ready(function())
    seconds: dict[str, list[float]] = {name: [] for name in contenders}
    for turn in range(rounds):
        order = list(contenders.items())
        for name, function in reversed(order) if turn % 2 else order:
            start = clock()
            for _ in range(calls):
                result = function()
            jax.block_until_ready(result)
            seconds[name].append((clock() - start) / calls)
    timings = {}
    for name, own in seconds.items():
        ratios = sorted(a / b for a, b in zip(own, seconds[baseline]))
        timings[name] = Timing(
            median_s=statistics.median(own),
            ratio=statistics.median(ratios),
            low=ratios[len(ratios) // 4],
            high=ratios[(3 * len(ratios)) // 4],
        )
    return timings
