"""One attention head is the gradient of softmax regression to order eps, two heads to eps^2.

The relative error of the constructed heads over instances with n = 25, d = 5, and the drift of a
stack of layers from the same number of gradient steps. The slopes are alike for every instance, the
constants are not: the bars at eps = 1e-4 are those of the instance of seed 0.
"""

from typing import Any

import jax
import numpy as np

from experiments.figures import claim
from in_context import attention_gradient, softmax_regression
from shared import plotting


def compute(fast: bool) -> dict[str, Any]:
    """Errors over eps for one and two heads, and of a stack over its depth."""
    seeds = range(4 if fast else 20)
    grid = np.logspace(-6, -1, 11)
    errors: dict[str, list] = {"1": [], "2": []}
    drift, excess = [], []
    with jax.enable_x64(True):
        for seed in seeds:
            rng = np.random.default_rng(seed)
            A, b = rng.normal(size=(25, 5)), rng.dirichlet(np.ones(25))
            x, queries = rng.normal(size=5), rng.normal(size=(5, 5))
            exact = queries @ np.asarray(softmax_regression.gradient(A, x, b))
            for heads, rows in errors.items():
                found = [
                    attention_gradient.head_gradient(
                        A, x, b, queries, eps=eps, num_heads=int(heads)
                    )
                    for eps in grid
                ]
                apart = np.abs(np.array(found) - exact)
                rows.append((apart.max(axis=1) / np.abs(exact).max()).tolist())
                if heads == "1":
                    bound = [
                        attention_gradient.one_head_error_bound(A, x, b, queries, eps=eps)
                        for eps in grid
                    ]
                    excess.append(float((apart / np.array(bound)).max()))
            stack = attention_gradient.stack(
                A, b, queries, num_layers=20, learning_rate=3.0, eps=1e-4
            )
            x = np.zeros(5)
            path = [x]
            for _ in range(20):
                x = x - 3.0 * np.asarray(softmax_regression.gradient(A, x, b))
                path.append(x)
            expected = np.array(path) @ queries.T
            drift.append(np.abs(np.asarray(stack.query_logits) - expected).max(axis=1).tolist())
    middle = {heads: np.median(rows, axis=0) for heads, rows in errors.items()}
    at = int(np.argmin(np.abs(grid - 1e-4)))

    def slope(heads, low, high):
        chosen = (grid >= low * 0.99) & (grid <= high * 1.01)
        return float(np.polyfit(np.log(grid[chosen]), np.log(middle[heads][chosen]), 1)[0])

    return {
        "data": f"{len(seeds)} instances, n 25, d 5, 5 queries, A, x and queries N(0,1), b "
        "Dirichlet; slopes of the median; float64",
        "seeds": list(seeds),
        "eps": grid.tolist(),
        "errors": errors,
        "at_1e-4": {heads: np.array(rows)[:, at].tolist() for heads, rows in errors.items()},
        "drift": drift,
        "claims": [
            claim("one head at eps 1e-4, seed 0", errors["1"][0][at], high=1e-4),
            claim("two heads at eps 1e-4, seed 0", errors["2"][0][at], high=2e-8),
            claim("two heads at eps 1e-4, median", middle["2"][at], high=2e-8),
            claim("one head: largest error / its bound, any eps", max(excess), high=1.0),
            claim("slope, one head", slope("1", 1e-5, 1e-3), low=0.98, high=1.02),
            claim("slope, two heads", slope("2", 1e-4, 1e-2), low=1.95, high=2.05),
            claim("20 layers against 20 gradient steps", np.max(drift), high=1e-6),
        ],
    }


def draw(result: dict[str, Any]):
    """Errors over eps and over depth: median, and the band from least to largest."""
    figure, axes = plotting.new_figure(1, 2)
    for heads, rows in result["errors"].items():
        label = "one head" if heads == "1" else "two heads"
        _band(axes[0, 0].loglog, axes[0, 0], result["eps"], rows, label)
    axes[0, 0].set(xlabel="eps, size of the key-query weights", ylabel="error / largest gradient")
    axes[0, 0].set_title(f"{len(result['seeds'])} instances: median and range")
    axes[0, 0].legend()
    layers = np.arange(1, len(result["drift"][0]))
    rows = [row[1:] for row in result["drift"]]
    _band(axes[0, 1].semilogy, axes[0, 1], layers, rows, "two heads, eps = 1e-4")
    axes[0, 1].set(xlabel="layers", ylabel="|stack - gradient descent|, logits")
    axes[0, 1].set_title("k layers against k gradient steps")
    axes[0, 1].legend()
    return figure


def _band(plot, axis, x, rows, label):
    (line,) = plot(x, np.median(rows, axis=0), "o-", markersize=3, label=label)
    axis.fill_between(x, np.min(rows, 0), np.max(rows, 0), color=line.get_color(), alpha=0.2)
