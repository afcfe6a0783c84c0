"""Under mu-P the best learning rate of Adam stays where it is as the network widens.

Training loss of a multilayer perceptron on digits against the learning rate, by width. In the
standard parameterization the valley moves left as the width grows; under mu-P, tuned at the base
width 64, it stays. Yang et al., arXiv:2203.03466, Figure 1, at a size for one machine.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from matplotlib.figure import Figure

from experiments.figures import claim
from shared import data, models, plotting

BASE_WIDTH = 64
DEPTH = 3
BATCH_SIZE = 128
LAST = 10  # steps whose mean loss counts
PARAMETERIZATIONS = ("standard", "mup")


def losses(
    parameterization: models.Parameterization,
    width: int,
    rates: np.ndarray,
    seeds: int,
    num_steps: int,
) -> np.ndarray:
    """Mean training loss of the last steps, [seeds, rates]; NaN where a run diverged."""
    train, _ = data.digits()
    sizes = {"num_examples": train.num_examples, "batch_size": BATCH_SIZE}
    batches = [train.batch(data.batch_index(0, step, **sizes)) for step in range(num_steps)]
    images = jnp.stack([batch["image"] for batch in batches])
    labels = jnp.stack([batch["label"] for batch in batches])
    model = models.mlp(
        num_outputs=10,
        width=width,
        depth=DEPTH,
        parameterization=parameterization,
        base_width=BASE_WIDTH,
        updates="sign",
    )

    def loss(params: Any, image: jax.Array, label: jax.Array) -> jax.Array:
        logits, _ = model.apply(params, (), image, train=True, key=None)
        return optax.softmax_cross_entropy_with_integer_labels(logits, label).mean()

    def run(key: jax.Array, rate: jax.Array) -> jax.Array:
        params, _ = model.init(key, images[0])
        optimizer = optax.scale_by_adam()

        def step(carry: Any, batch: Any) -> tuple[Any, jax.Array]:
            params, state = carry
            value, grads = jax.value_and_grad(loss)(params, *batch)
            updates, state = optimizer.update(grads, state)
            params = jax.tree.map(lambda p, u: p - rate * u, params, updates)
            return (params, state), value

        _, values = jax.lax.scan(step, (params, optimizer.init(params)), (images, labels))
        return values[-LAST:].mean()

    # One rate after the other: together, eight copies of the widest network would fill a cache.
    over_rates = jax.jit(lambda key: jax.lax.map(lambda rate: run(key, rate), jnp.asarray(rates)))
    return np.stack([over_rates(jax.random.key(seed)) for seed in range(seeds)])


def best_exponent(rates: np.ndarray, values: np.ndarray) -> float:
    """log2 of the rate at the bottom of the valley, by a parabola through the lowest three."""
    finite = np.where(np.isfinite(values), np.log(np.maximum(values, 1e-12)), 1e3)
    i = int(np.clip(np.argmin(finite), 1, len(rates) - 2))
    left, middle, right = finite[i - 1 : i + 2]
    curvature = left - 2 * middle + right
    offset = 0.0 if curvature <= 0 else float(np.clip((left - right) / (2 * curvature), -1, 1))
    return float(np.log2(rates[i]) + offset * np.log2(rates[i + 1] / rates[i]))


def compute(fast: bool) -> dict[str, Any]:
    """Losses by parameterization, width, seed and rate, and how far the best rate moves."""
    widths = [64, 256] if fast else [64, 128, 256, 512]
    seeds = 1 if fast else 3
    num_steps = 30 if fast else 60
    rates = 2.0 ** np.arange(-13, -2)
    found = {
        name: [losses(name, width, rates, seeds, num_steps) for width in widths]
        for name in PARAMETERIZATIONS
    }
    best = {
        name: [best_exponent(rates, values.mean(0)) for values in found[name]] for name in found
    }
    growth = np.log2(widths[-1] / widths[0])
    moved = {name: (best[name][-1] - best[name][0]) / growth for name in best}
    return {
        "data": "scikit-learn digits, 1437 training images",
        "seeds": seeds,
        "num_steps": num_steps,
        "widths": widths,
        "rates": rates.tolist(),
        "losses": {name: [v.tolist() for v in found[name]] for name in found},
        "best": best,
        "claims": [
            claim("mu-P: exponent of the best rate in the width", moved["mup"], low=-0.3, high=0.3),
            claim("standard: exponent of the best rate in the width", moved["standard"], high=-0.4),
        ],
    }


def draw(result: dict[str, Any]) -> Figure:
    """Loss against rate, a line for each width, one panel a parameterization."""
    figure, axes = plotting.new_figure(1, len(PARAMETERIZATIONS))
    titles = {"standard": "standard", "mup": f"mu-P, base width {BASE_WIDTH}"}
    rates = np.array(result["rates"])
    for axis, name in zip(axes[0], PARAMETERIZATIONS):
        for place, width in enumerate(result["widths"]):
            values = np.array(result["losses"][name][place], np.float64)
            color = plotting.COLORS[place]
            axis.plot(rates, values.mean(0), "o-", color=color, markersize=3, label=str(width))
            axis.fill_between(rates, values.min(0), values.max(0), color=color, alpha=0.2)
            axis.axvline(2 ** result["best"][name][place], color=color, linestyle=":", linewidth=1)
        axis.set_xscale("log", base=2)
        axis.set_yscale("log")
        axis.set_xlabel("learning rate")
        axis.set_title(titles[name])
    low = min(axis.get_ylim()[0] for axis in axes[0])
    high = max(axis.get_ylim()[1] for axis in axes[0])
    for axis in axes[0]:
        axis.set_ylim(low, high)  # one scale, so that the valleys can be compared
    axes[0, 0].set_ylabel(f"training loss, last {LAST} of {result['num_steps']} steps")
    axes[0, 1].legend(title="width")
    figure.suptitle(
        f"{result['data']}: mean and range over {result['seeds']} seed"
        f"{'s' if result['seeds'] > 1 else ''}; dotted: best rate",
        fontsize=9,
    )
    return figure
