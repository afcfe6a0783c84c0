"""Newton reaches the minimum of softmax regression to 1e-12 in at most 12 iterations.

Gradient descent with the safe step stands beside it, on convex instances (weights from the sharp
spectrum bound) and on the same instances with a weak regulariser, which are not convex.
"""

from typing import Any

import jax
import numpy as np

from experiments.figures import claim
from in_context import softmax_regression
from shared import plotting

N, D = 30, 4


def compute(fast: bool) -> dict[str, Any]:
    """Loss gaps per iteration of both solvers."""
    seeds = range(2 if fast else 8)
    descent_steps = 200 if fast else 2000
    curves: dict[str, dict[str, list]] = {}
    worst = {}
    certified = 0
    with jax.enable_x64(True):
        for name in ("convex", "weak"):
            curves[name] = {"newton": [], "descent": []}
            iterations = []
            for seed in seeds:
                rng = np.random.default_rng(seed)
                A, b = rng.normal(size=(N, D)), rng.dirichlet(np.ones(N))
                weights = np.full(N, 3e-3)
                if name == "convex":
                    strength = 0.01 * float(np.linalg.norm(A, 2)) ** 2
                    weights = softmax_regression.convex_weights(A, b, strong_convexity=strength)
                result = softmax_regression.newton(A, b, weights=weights)
                certified += result.certificate.global_minimum
                start = np.zeros(D)  # gradient descent may end in another minimum; gap to its own
                descent = softmax_regression.gradient_descent(
                    A, b, weights=weights, num_steps=descent_steps, x0=start
                )
                end = softmax_regression.newton(A, b, weights=weights, x0=descent.x, num_starts=1)
                low = min(minimum.loss for minimum in end.minima)
                gap = np.asarray(result.losses) - float(result.loss)
                iterations.append(int(np.argmax(gap <= 1e-12)))
                curves[name]["newton"].append(gap.tolist())
                curves[name]["descent"].append((np.asarray(descent.losses) - low).tolist())
            worst[name] = max(iterations)
    return {
        "data": f"A N(0,1) [{N}, {D}], b Dirichlet(0.1), {len(seeds)} instances; float64",
        "seeds": list(seeds),
        "curves": curves,
        "claims": [
            claim("Newton iterations to 1e-12, convex, worst", worst["convex"], high=12),
            claim("Newton iterations to 1e-12, weak, worst", worst["weak"], high=12),
            claim("convex instances certified", certified, low=len(seeds), high=len(seeds)),
        ],
    }


def draw(result: dict[str, Any]):
    """Gap over iterations, one line per instance."""
    figure, axes = plotting.new_figure(1, 2)
    for axis, (name, curves) in zip(axes[0], result["curves"].items()):
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
        axis.set_title(f"{name} regulariser, n = {N}, d = {D}, {len(lines)} instances")
        axis.legend()
    return figure
