"""The annealing law's best schedule is a cliff: the peak, then zero for a length in closed form."""

from typing import Any

import numpy as np

import scaling_laws
from experiments.figures import claim
from scaling_laws import curves, laws
from shared.plotting import COLORS, new_figure

TRUTH = {"L0": 2.78, "A": 0.593, "alpha": 0.455, "C": 0.481, "lambda": 0.999}
PEAK = 3e-4


def _runs(steps: int) -> list[curves.Curve]:
    """Noise-free curves of the law itself."""
    plans = {
        "cosine": curves.cosine(steps, peak=PEAK, end=3e-5),
        "two stages": curves.two_stage(steps, peak=PEAK, switch=steps // 3, end=9e-5),
    }
    made = []
    for name, rates in plans.items():
        s1, s2 = scaling_laws.learning_rate_areas(rates, decay=TRUTH["lambda"])
        loss = TRUTH["L0"] + TRUTH["A"] * s1 ** -TRUTH["alpha"] - TRUTH["C"] * s2
        at = np.arange(200, steps, steps // 100)
        made.append(curves.Curve(at, loss[at], rates, name=name))
    return made


def compute(fast: bool) -> dict[str, Any]:
    """Searches schedules of several lengths and compares them with the closed form."""
    result = scaling_laws.fit(laws.LRAnnealing(decay=0.999), _runs(8000), loss="lsq")
    lengths = [6000, 24000] if fast else [6000, 12000, 24000, 48000]
    found, expected, losses = [], [], []
    for steps in lengths:
        best = scaling_laws.optimize_schedule(result, steps=steps, peak=PEAK)
        n = np.arange(1, steps)
        gain = np.log(TRUTH["C"]) + (n - 1) * np.log(TRUTH["lambda"])
        cost = np.log(TRUTH["alpha"] * TRUTH["A"]) - (TRUTH["alpha"] + 1) * np.log(
            PEAK * (steps - n)
        )
        expected.append(int(n[np.argmin(np.abs(gain - cost))]))
        found.append(int(np.sum(best.learning_rates < PEAK / 2)))
        losses.append(best.families | {"found": best.final_loss})
    worst = max(abs(a / b - 1) for a, b in zip(found, expected))
    gap = min(row[f] - row["found"] for row in losses for f in ("cosine", "linear", "wsd"))
    limited = scaling_laws.optimize_schedule(
        result, steps=lengths[0], peak=PEAK, floor=3e-5, max_slope=PEAK / 2000
    )
    return {
        "data": "noise-free curves of the law with the constants of 100M parameters",
        "seeds": "none: nothing is random",
        "lengths": lengths,
        "found": found,
        "expected": expected,
        "losses": losses,
        "limited": limited.learning_rates[:: max(lengths[0] // 300, 1)].tolist(),
        "limited_every": max(lengths[0] // 300, 1),
        "claims": [
            claim("largest relative error of the length of the cliff", worst, high=0.02),
            claim("gain over the best cosine, linear or WSD schedule, nats", gap, low=0.0),
        ],
    }


def draw(result: dict[str, Any]):
    """The length of the cliff, and the schedules with and without a limited slope."""
    figure, axes = new_figure(1, 2)
    lengths = np.array(result["lengths"])
    axes[0, 0].plot(lengths, result["expected"], "-", label="closed form")
    axes[0, 0].plot(lengths, result["found"], "o", label="search over every rate")
    axes[0, 0].set(xlabel="steps of the run", ylabel="steps at rate 0", ylim=(0, None))
    axes[0, 0].legend()
    steps, n = lengths[0], result["found"][0]
    axes[0, 1].plot([0, steps - n, steps - n, steps], [3e-4, 3e-4, 0, 0], label="unconstrained")
    limited = np.array(result["limited"])
    axes[0, 1].plot(
        np.arange(len(limited)) * result["limited_every"],
        limited,
        color=COLORS[1],
        label="floor 3e-5, slope at most peak / 2000",
    )
    axes[0, 1].set(xlabel="step", ylabel="learning rate", ylim=(0, 4.2e-4))
    axes[0, 1].legend(fontsize=8, loc="upper left")
    return figure
