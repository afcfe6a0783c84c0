"""Trained networks follow the Gaussian limit of the tangent kernel, closer the wider they are.

Jacot, Gabriel and Hongler (arXiv:1806.07572), Figure 2: three hidden ReLU layers, beta = 0.1, four
points on the unit circle, 1000 steps of gradient descent at learning rate 1, and the law
N(Theta_* Theta^-1 y, S) of infinitely wide networks. Widths are the paper's, 50 and 1000; it shows
ten networks of each, here there are forty, so that their mean is known to a sixth of a deviation.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import ntk
from experiments.figures import claim
from experiments.figures.ntk._finite import apply, circle, init
from shared import plotting

TRAIN = np.pi * np.array([-0.7, -0.3, 0.2, 0.6])
TARGETS = np.array([0.6, -0.4, 0.5, -0.2])


def trained(width: int, seeds: int, steps: int, grid: np.ndarray) -> np.ndarray:
    """Outputs on the circle of networks after training, [seeds, points]."""
    x, y = circle(TRAIN.astype(np.float32)), jnp.asarray(TARGETS, jnp.float32)[:, None]

    def loss(params):
        return 0.5 * jnp.mean((apply(params, x, activation=jax.nn.relu) - y) ** 2)

    @jax.jit
    def run(key):
        params = init(key, (2, width, width, width, 1))

        def step(p, _):
            return jax.tree.map(lambda a, g: a - g, p, jax.grad(loss)(p)), None

        params, _ = jax.lax.scan(step, params, None, length=steps)
        return apply(params, circle(grid.astype(np.float32)), activation=jax.nn.relu)[:, 0]

    return np.stack([run(jax.random.fold_in(jax.random.key(0), k)) for k in range(seeds)])


def limit(grid: np.ndarray, steps: int) -> tuple[np.ndarray, np.ndarray]:
    """Mean and standard deviation of infinitely wide networks after as many steps."""
    layers = [part for _ in range(3) for part in (ntk.stax.Dense(1, 1.0, 0.1), ntk.stax.Relu())]
    _, _, kernel_fn = ntk.stax.serial(*layers, ntk.stax.Dense(1, 1.0, 0.1))
    with jax.enable_x64(True):
        predict_fn = ntk.predict.gradient_descent_mse_ensemble(
            kernel_fn, circle(TRAIN), TARGETS[:, None], learning_rate=1.0
        )
        law = predict_fn(t=float(steps), x_test=circle(grid), get="ntk", compute_cov=True)
        return np.asarray(law.mean)[:, 0], np.sqrt(np.diagonal(law.covariance))


def compute(fast: bool) -> dict[str, Any]:
    """Percentiles of trained networks and of the limit."""
    widths, seeds, steps = ((20, 100), 10, 200) if fast else ((50, 1000), 40, 1000)
    grid = np.linspace(-np.pi, np.pi, 60 if fast else 180)
    mean, std = limit(grid, steps)
    curves, gaps, spreads = {}, [], []
    for width in widths:
        outputs = trained(width, seeds, steps, grid)
        curves[str(width)] = np.percentile(outputs, [10, 50, 90], axis=0).tolist()
        gaps.append(float(np.sqrt(np.mean((outputs.mean(0) - mean) ** 2) / np.mean(std**2))))
        spreads.append(float(np.sqrt(np.mean(outputs.var(0, ddof=1)) / np.mean(std**2))))
    return {
        "data": f"4 points on the circle, {steps} steps, learning rate 1; float32 networks",
        "seeds": seeds,
        "grid": grid.tolist(),
        "mean": mean.tolist(),
        "std": std.tolist(),
        "curves": curves,
        "gaps": gaps,
        "claims": [
            # The mean of k draws from the limit itself deviates by 1 / sqrt(k) deviations, and
            # their deviation by a share of 1 / sqrt(2 k); the bars are twice that.
            claim(
                f"mean of {seeds} nets of width {widths[-1]}, off the limit in its deviations",
                gaps[-1],
                high=2.0 / seeds**0.5,
            ),
            claim(
                f"deviation of {seeds} nets of width {widths[-1]} over the limit's",
                spreads[-1],
                low=1.0 - 2.0 / (2 * seeds) ** 0.5,
                high=1.0 + 2.0 / (2 * seeds) ** 0.5,
            ),
        ],
    }


def draw(result: dict[str, Any]) -> Any:
    """One panel per width."""
    curves = result["curves"]
    with plotting.theory_style():
        figure, axes = plotting.new_figure(1, len(curves))
        grid, mean, std = (np.asarray(result[k]) for k in ("grid", "mean", "std"))
        panels = zip(axes[0], curves.items(), result["gaps"])
        for axis, (width, (low, middle, high)), gap in panels:
            axis.fill_between(
                grid, mean - 1.2816 * std, mean + 1.2816 * std, color="0.85", label="limit, 10-90 %"
            )
            axis.plot(grid, mean, color="0.3", label="limit, mean")
            axis.plot(grid, middle, color=plotting.COLORS[1], label="networks, median")
            for edge, label in ((low, "networks, 10 and 90 %"), (high, None)):
                axis.plot(grid, edge, "--", color=plotting.COLORS[1], linewidth=1, label=label)
            axis.plot(TRAIN, TARGETS, "ko", markersize=5)
            axis.set_title(
                f"{result['seeds']} of width {width}: mean off by {gap:.2f} deviations", fontsize=10
            )
            axis.set_ylim(-0.5, 1.15)  # room for the legend
            axis.set_xlabel("angle on the circle (rad)")
        axes[0, 0].set_ylabel("output after training")
        axes[0, 0].legend(fontsize=8, loc="upper center", ncols=2, columnspacing=1.0)
    return figure
