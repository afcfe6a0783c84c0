"""The stopwatch of the benchmarks."""

import pytest

from benchmarks.interleave import interleave


class Clock:
    """Time that passes only where a contender says so."""

    def __init__(self):
        self.now = 0.0

    def __call__(self):
        return self.now

    def work(self, seconds):
        def run():
            self.now += seconds

        return run


def test_ratios_are_taken_within_a_round():
    clock = Clock()
    timings = interleave(
        {"ours": clock.work(2.0), "peer": clock.work(8.0)},
        baseline="peer", rounds=5, calls=3, clock=clock,
    )  # fmt: skip
    assert timings["ours"].ratio == pytest.approx(0.25)
    assert timings["ours"].median_s == pytest.approx(2.0)
    assert timings["peer"].ratio == 1.0
    assert timings["ours"].low <= timings["ours"].ratio <= timings["ours"].high


def test_a_slow_spell_of_the_machine_does_not_move_the_ratio():
    clock = Clock()
    slowness = iter([1.0] * 5 + [10.0] * 10 + [1.0] * 50)

    def contender(seconds):
        def run():
            clock.now += seconds

        return run

    def slow_round(seconds):
        def run():
            clock.now += seconds * next(slowness)

        return run

    steady = interleave({"a": contender(1.0), "b": contender(1.0)}, baseline="a", clock=clock)
    assert steady["b"].ratio == 1.0
    noisy = interleave(
        {"a": slow_round(1.0), "b": slow_round(3.0)}, baseline="a", rounds=15, clock=clock
    )
    assert noisy["b"].ratio == pytest.approx(3.0)


@pytest.mark.parametrize(
    "options",
    [{"baseline": "missing"}, {"baseline": "a", "rounds": 0}, {"baseline": "a", "calls": 0}],
)
def test_a_comparison_that_cannot_be_made_is_refused(options):
    with pytest.raises(ValueError, match="interleave"):
        interleave({"a": lambda: None}, **options)
