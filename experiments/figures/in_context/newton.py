"""Newton reaches the minimum of softmax regression to 1e-12 in at most 12 iterations.

Gradient descent with the safe step stands beside it, on convex instances (weights from the sharp
spectrum bound) and on the same instances with a weak regulariser, which are not convex. On the
larger ones the safe step hardly moves: it fits the worst curvature, not the one that is met.
"""

from typing import Any

import jax
import numpy as np

from experiments.figures import claim
from in_context import softmax_regression
from shared import plotting

SIZES = ((30, 4), (200, 10))
KINDS = ("convex", "weak")
WEAK = 3e-3


def compute(fast: bool) -> dict[str, Any]:
    """Loss gaps per iteration of both solvers."""
    seeds = range(2 if fast else 8)
    curves: dict[str, dict[str, list]] = {}
    worst = dict.fromkeys(KINDS, 0)
    certified = 0
    with jax.enable_x64(True):
        for n, d in SIZES[:1] if fast else SIZES:
            for kind in KINDS:
                lines = [solve(n, d, kind, seed, 200 if fast else 2000) for seed in seeds]
                worst[kind] = max(worst[kind], *(line["iterations"] for line in lines))
                certified += sum(line["certified"] for line in lines)
                curves[f"{kind} regulariser, n = {n}, d = {d}"] = {
                    solver: [line[solver] for line in lines] for solver in ("newton", "descent")
                }
    convex = len(seeds) * (1 if fast else len(SIZES))
    return {
        "data": f"A N(0,1), b Dirichlet, {len(seeds)} instances of each size; float64",
        "seeds": list(seeds),
        "curves": curves,
        "claims": [
            claim("Newton iterations to 1e-12, convex, worst", worst["convex"], high=12),
            claim("Newton iterations to 1e-12, weak, worst", worst["weak"], high=12),
            claim("convex instances certified", certified, low=convex, high=convex),
        ],
    }


def solve(n: int, d: int, kind: str, seed: int, descent_steps: int) -> dict[str, Any]:
    """Gaps to the minimum along both solvers' ways, and Newton's iterations to 1e-12."""
    rng = np.random.default_rng(seed)
    A, b = rng.normal(size=(n, d)), rng.dirichlet(np.ones(n))
    weights = np.full(n, WEAK)
    if kind == "convex":
        strength = 0.01 * float(np.linalg.norm(A, 2)) ** 2
        weights = softmax_regression.convex_weights(A, b, strong_convexity=strength)
    # One start, at 0, as gradient descent has it.
    result = softmax_regression.newton(A, b, weights=weights, num_starts=1)
    descent = softmax_regression.gradient_descent(A, b, weights=weights, num_steps=descent_steps)
    # Gradient descent may end in another minimum; its gap is to its own.
    end = softmax_regression.newton(A, b, weights=weights, x0=descent.x, num_starts=1)
    low = min(minimum.loss for minimum in end.minima)
    gap = np.asarray(result.losses) - float(result.loss)
    return {
        "newton": gap.tolist(),
        "descent": (np.asarray(descent.losses) - low).tolist(),
        "iterations": int(np.argmax(gap <= 1e-12)),
        "certified": int(result.certificate.global_minimum),
    }


def draw(result: dict[str, Any]):
    """Gap over iterations, one line per instance; a row for each size."""
    rows = -(-len(result["curves"]) // len(KINDS))
    figure, axes = plotting.new_figure(rows, len(KINDS))
    for axis, (name, curves) in zip(axes.ravel(), result["curves"].items()):
        for place, (solver, lines) in enumerate(curves.items()):
            for number, line in enumerate(lines):
                steps = np.arange(len(line)) + 1
                label = {"newton": "Newton", "descent": "gradient descent, safe step"}[solver]
                axis.loglog(
                    steps,
                    np.maximum(line, 1e-17),
                    color=plotting.COLORS[place],
                    alpha=0.7,
                    label=label if number == 0 else None,
                )
        axis.axhline(1e-12, color="0.5", linewidth=1, linestyle="--")
        axis.set(xlabel="iteration + 1", ylabel="loss - minimum")
        axis.set_title(f"{name}; {len(lines)} instances")
        axis.legend()
    return figure
