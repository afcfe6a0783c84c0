"""A step shifts the target by at most half the step of the logits, and the half is sharp.

Random instances over two decades of scale and ten of step size, for a step of x and one of A,
beside two equal logits moved apart, where the bound is attained.
"""

from typing import Any

import jax
import numpy as np

from experiments.figures import claim
from in_context import weight_shift
from shared import plotting

SHAPES = ((2, 1), (2, 4), (3, 2), (5, 3), (8, 8), (12, 5), (16, 16), (20, 2), (25, 5), (32, 16))


def compute(fast: bool) -> dict[str, Any]:
    """Ratios of shift to bound for 1e5 instances, and the published constant beside the sharp."""
    per_shape = 300 if fast else 10_000
    ratios: dict[str, list[np.ndarray]] = {"x": [], "A": []}
    violations = 0
    with jax.enable_x64(True):
        for seed, (n, d) in enumerate(SHAPES):
            rng = np.random.default_rng(seed)
            A = rng.normal(size=(per_shape, n, d)) * 10 ** rng.uniform(-1, 1, (per_shape, 1, 1))
            x = rng.normal(size=(per_shape, d)) * 10 ** rng.uniform(-1, 1, (per_shape, 1))
            dx = rng.normal(size=x.shape) * 10 ** rng.uniform(-9, 1, (per_shape, 1))
            dA = rng.normal(size=A.shape) * 10 ** rng.uniform(-9, 1, (per_shape, 1, 1))
            b = rng.dirichlet(np.ones(n), per_shape)
            for kind, shift in (
                ("x", weight_shift.shift_x(A, x, dx, b)),
                ("A", weight_shift.shift_a(A, x, dA, b)),
            ):
                ratios[kind].append(np.asarray(shift.certificate.ratio))
                violations += int((~np.asarray(shift.certificate.holds)).sum())
            violations += int((~np.asarray(weight_shift.closeness(A, x, dx, dA).holds)).sum())
        steps = np.logspace(-8, 0.5, 18)
        pair = np.array([[1.0], [-1.0]])
        adversarial = np.asarray(
            weight_shift.shift_x(
                pair, np.zeros(1), steps[:, None], np.full(2, 0.5)
            ).certificate.ratio
        )
        radii = np.linspace(0.5, 5, 19)
        # M_chain against the sharp constant 0.5 ||A|| at its largest, ||A|| = R.
        excess = [weight_shift.published_constant(25, R) - np.log(0.5 * R) for R in radii]
        at_four = weight_shift.published_constant(25, 4.0) - np.log(2.0)
    flat = {kind: np.concatenate(values) for kind, values in ratios.items()}
    edges = np.linspace(0, 1, 51)
    tight = float(adversarial.max())
    return {
        "data": f"{per_shape * len(SHAPES)} instances, n 2-32, d 1-16, scales 0.1-10, steps "
        "1e-9-10; float64",
        "seeds": list(range(len(SHAPES))),
        "edges": edges.tolist(),
        "counts": {kind: np.histogram(v, edges)[0].tolist() for kind, v in flat.items()},
        "quantiles": {
            kind: np.quantile(value, [0.5, 0.99, 1.0]).tolist() for kind, value in flat.items()
        },
        "steps": steps.tolist(),
        "adversarial": adversarial.tolist(),
        "radii": radii.tolist(),
        "log10_excess": (np.array(excess) / np.log(10)).tolist(),
        "claims": [
            claim("violations of the sharp bounds", violations, high=0),
            claim("largest ratio, adversarial", tight, low=0.9999, high=1 + 1e-12),
            claim("largest ratio, random", max(v.max() for v in flat.values()), high=1.0),
            claim("published / sharp at R = 4, n = 25, log10", at_four / np.log(10), low=27),
        ],
    }


def draw(result: dict[str, Any]):
    """Histogram, the attained bound, and the excess of the published constant."""
    figure, axes = plotting.new_figure(1, 3, width=3.6)
    histogram, tight, excess = axes[0]
    middle = np.add(result["edges"][:-1], result["edges"][1:]) / 2
    for kind, counts in result["counts"].items():
        histogram.step(middle, counts, where="mid", label=f"step of {kind}")
    histogram.set(xlabel="shift / sharp bound", ylabel="instances", yscale="log")
    histogram.set_title(f"{sum(result['counts']['x']):,} random instances each")
    histogram.legend()
    tight.semilogx(result["steps"], result["adversarial"], "o-")
    tight.axhline(1.0, color="0.5", linewidth=1)
    tight.set(xlabel="step of x", ylabel="shift / sharp bound", ylim=(0, 1.05))
    tight.set_title("two equal logits moved apart")
    excess.plot(result["radii"], result["log10_excess"])
    excess.axvline(4, color="0.5", linewidth=1, linestyle="--")
    excess.set(xlabel="R, bound on ||A|| and ||x||", ylabel="log10(published / sharp)")
    excess.set_title("n = 25; the theorem needs R >= 4")
    return figure
