"""Method 2 (IsoFLOP) is biased when the grid of sizes drifts off centre; the fitted law is not."""

from typing import Any

import numpy as np

import scaling_laws
from experiments.figures import claim
from scaling_laws import laws
from shared.plotting import COLORS, new_figure

TRUTH = {"E": 1.8172, "A": 482.01, "B": 2085.43, "alpha": 0.3478, "beta": 0.3658}
EXACT = TRUTH["beta"] / (TRUTH["alpha"] + TRUTH["beta"])
NOISE = 1e-3  # of log loss
BUDGETS = np.geomspace(6e18, 3e21, 9)


def _table(drift: float, seed: int) -> dict[str, np.ndarray]:
    """IsoFLOP runs whose sizes move off the optimum by a factor 10^drift from end to end."""
    rng = np.random.default_rng(seed)
    result = _law()
    best = scaling_laws.compute_optimal(result, BUDGETS).params
    centre = best * 10 ** (drift * np.linspace(-0.5, 0.5, len(BUDGETS)))
    size = (centre[:, None] * np.geomspace(1 / 8, 8, 11)[None, :]).ravel()
    flops = np.repeat(BUDGETS, 11)
    loss = result.predict({"params": size, "tokens": flops / (6 * size)})
    noisy = loss * np.exp(NOISE * rng.standard_normal(len(loss)))
    return {"params": size, "flops": flops, "loss": noisy}


def _law():
    """The published law as a fit, from exact data."""
    n, d = (a.ravel() for a in np.meshgrid(np.geomspace(1e8, 1e10, 6), np.geomspace(1e9, 1e12, 6)))
    loss = TRUTH["E"] + TRUTH["A"] * n ** -TRUTH["alpha"] + TRUTH["B"] * d ** -TRUTH["beta"]
    return scaling_laws.fit(laws.Chinchilla(), {"params": n, "tokens": d, "loss": loss}, loss="lsq")


def compute(fast: bool) -> dict[str, Any]:
    """Exponent a of N_opt ~ C^a by methods 2 and 3 against the drift of the grid."""
    drifts = [-1.0, 0.0, 1.0] if fast else [-1.0, -0.5, 0.0, 0.5, 1.0]
    seeds = list(range(3 if fast else 10))
    table = {"isoflop": [], "parametric": []}
    for drift in drifts:
        rows = [scaling_laws.hoffmann_methods(_table(drift, seed)) for seed in seeds]
        for method in table:
            table[method].append([row[method]["exponent"] for row in rows])
    isoflop = np.array(table["isoflop"]).mean(axis=1)
    parametric = np.array(table["parametric"]).mean(axis=1)
    return {
        "data": f"simulated from Besiroglu et al. 2024, 9 budgets x 11 sizes, noise {NOISE}",
        "seeds": seeds,
        "drifts": drifts,
        "exact": EXACT,
        **table,
        "claims": [
            claim("spread of method 2 over drifts", float(np.ptp(isoflop)), low=0.01),
            claim("largest bias of method 3", float(np.abs(parametric - EXACT).max()), high=0.01),
        ],
    }


def draw(result: dict[str, Any]):
    """Mean exponent with one standard deviation over seeds."""
    figure, axes = new_figure(1, 1, width=5.0)
    axis = axes[0, 0]
    for color, method, label in zip(
        COLORS, ("isoflop", "parametric"), ("method 2, IsoFLOP parabolas", "method 3, fitted law")
    ):
        values = np.array(result[method])
        axis.errorbar(
            result["drifts"],
            values.mean(1),
            values.std(1, ddof=1),
            fmt="o-",
            color=color,
            capsize=3,
            label=label,
        )
    axis.axhline(result["exact"], color="k", lw=0.8, label="truth")
    axis.set(
        xlabel="drift of the grid's centre, decades from first to last budget",
        ylabel="exponent a of N_opt ~ C^a",
        title=f"mean and sd of {len(result['seeds'])} seeds",
    )
    axis.legend(fontsize=8)
    return figure
