"""A trained softmax layer comes as close to one gradient step as its data let it, not closer.

Documents of n rows in d dimensions, targets on held-out rows (`in_context.closeness`), beside the
variant that leaks the targets of the rows it asks for, where closeness means nothing. The same
experiment on the training loop: experiments/configs/in_context_closeness.py.
"""

from typing import Any

import jax
import numpy as np

from experiments.figures import claim
from in_context import closeness
from shared import plotting

# n, d -> standard deviation of the logits, training steps
SIZES = {
    (25, 5): (1.0, 4000),
    (25, 10): (1.0, 4000),
    (25, 20): (1.0, 4000),
    (50, 5): (0.5, 4000),
    (50, 10): (0.5, 4000),
    (50, 20): (0.5, 6000),
    (100, 5): (0.5, 4000),
    (100, 10): (0.5, 4000),
    (100, 20): (0.5, 12_000),
}
CHUNKS = 10  # of 1000 held-out documents; on 1000 alone a ratio of losses is uncertain by 3 %


def compute(fast: bool) -> dict[str, Any]:
    """Losses and closeness along training, for every size, and the leaking variant."""
    sizes = {(25, 5): (1.0, 500)} if fast else SIZES
    seeds = 1 if fast else 3
    rows = {}
    for (n, d), (scale, steps) in sizes.items():
        documents = closeness.Documents(n, d, scale=scale)
        rows[f"n {n}, d {d}"] = run(documents, steps, seeds)
    leak = run(closeness.Documents(25, 5, leak=True), 500 if fast else 4000, seeds)
    claims = [
        # The warning: by its loss the leaking layer beats the step, and it is no step at all.
        claim("leak, n 25, d 5: layer / step, worst", np.max(leak["ratio"]), high=1.0),
        claim("leak, n 25, d 5: cosine, largest", np.max(leak["cosine"]), high=0.8),
    ]
    if fast:
        row = rows["n 25, d 5"]
        claims.append(claim("n 25, d 5: cosine", np.min(row["cosine"]), low=0.9))
    else:
        small, large = rows["n 100, d 5"], rows["n 100, d 20"]
        claims += [
            claim("n 100, d 5: cosine, worst", np.min(small["cosine"]), low=0.99),
            claim("n 100, d 5: layer / step, least", np.min(small["ratio"]), low=0.95, high=1.02),
            claim("n 100, d 5: layer / step, largest", np.max(small["ratio"]), low=0.95, high=1.02),
            claim("n 100, d 20: cosine, worst", np.min(large["cosine"]), low=0.97),
            claim("n 100, d 20: layer / step, worst", np.max(large["ratio"]), high=1.05),
            claim(
                "key-query diagonal, spread over mean, worst",
                max(np.max(row["diagonal_spread"]) for row in rows.values()),
                high=0.1,
            ),
        ]
    return {
        "data": "fresh documents, batch 64, Adam 0.01; measured on 10 000 held-out documents (1000 "
        "along training), 25 queries each; the step's learning rate tuned on 1000 others; float32",
        "seeds": list(range(seeds)),
        "rows": rows,
        "leak": leak,
        "claims": claims,
    }


def run(documents: closeness.Documents, steps: int, seeds: int) -> dict[str, Any]:
    """Trains every seed; reports along the way (`path`) and, on more documents, at the end."""
    tuning = documents.sample(jax.random.key(98), 1000)
    learning_rate = closeness.best_learning_rate(tuning, num_candidates=200)
    keys = jax.random.split(jax.random.key(99), CHUNKS)

    def report(params, key):
        prompt = documents.sample(key, 1000)
        return closeness.report(params, prompt, learning_rate, leak=documents.leak)

    def one(key):
        trained = closeness.train(documents, key=key, num_steps=steps, num_records=10)
        path = jax.lax.map(lambda params: report(params, keys[0]), trained.trajectory)
        return trained.steps, path, jax.lax.map(lambda key: report(trained.params, key), keys)

    found, path, end = jax.jit(jax.vmap(one))(jax.random.split(jax.random.key(0), seeds))
    end = {name: np.asarray(value, np.float64) for name, value in end._asdict().items()}
    layer, step = end["layer_loss"], end["step_loss"]
    ratio = layer.mean(1) / step.mean(1)
    # The delta method for a ratio of means, over the chunks.
    apart = layer - ratio[:, None] * step
    return {
        "steps": np.asarray(found[0]).tolist(),
        "learning_rate": float(learning_rate),
        "step_loss": float(step[0].mean()),
        "uniform_loss": float(end["uniform_loss"][0].mean()),
        "layer_loss": layer.mean(1).tolist(),
        "ratio": ratio.tolist(),
        "ratio_error": (apart.std(1, ddof=1) / CHUNKS**0.5 / step.mean(1)).tolist(),
        "cosine": end["sensitivity_cosine"].mean(1).tolist(),
        "diagonal_spread": end["diagonal_spread"].mean(1).tolist(),
        "path": {
            "ratio": np.asarray(path.ratio).tolist(),
            "cosine": np.asarray(path.sensitivity_cosine).tolist(),
            "sensitivity_difference": np.asarray(path.sensitivity_difference).tolist(),
            "prediction_difference": np.asarray(path.prediction_difference).tolist(),
        },
    }


def draw(result: dict[str, Any]):
    """Ratio and cosine along training, differences, and losses over d."""
    figure, axes = plotting.new_figure(2, 2, width=4.6)
    shown = [name for name in result["rows"] if name.split()[1] in ("25,", "100,")]
    shown = [name for name in shown if not name.endswith("10")]
    for place, name in enumerate(shown):
        _lines(axes[0, 0], result["rows"][name], "ratio", name, plotting.COLORS[place])
        _lines(axes[0, 1], result["rows"][name], "cosine", name, plotting.COLORS[place])
        _lines(
            axes[1, 0], result["rows"][name], "prediction_difference", name, plotting.COLORS[place]
        )
    _lines(axes[0, 0], result["leak"], "ratio", "leak: n 25, d 5", "k", "--")
    _lines(axes[0, 1], result["leak"], "cosine", "leak: n 25, d 5", "k", "--")
    axes[0, 0].axhline(1.0, color="0.6", linewidth=1)
    axes[0, 0].set(ylabel="loss, layer / step", ylim=(0.2, 2))
    axes[0, 0].set_title(f"{len(result['seeds'])} seeds, band: range")
    axes[0, 1].set(ylabel="cosine of sensitivities")
    axes[1, 0].set(ylabel="||layer - step||, predictions")
    for axis in (axes[0, 0], axes[0, 1], axes[1, 0]):
        axis.set_xlabel("training step")
        axis.legend(fontsize=7)
    last_panel = axes[1, 1]
    groups: dict[int, list] = {}
    for name, row in result["rows"].items():
        n, d = (int(part) for part in name.replace("n ", "").replace("d ", "").split(", "))
        groups.setdefault(n, []).append((d, row))
    for place, (n, rows) in enumerate(groups.items()):
        color = plotting.COLORS[place]
        dims = [d for d, _ in rows]
        uniform = np.array([row["uniform_loss"] for _, row in rows])
        layer = np.array([np.mean(row["layer_loss"]) for _, row in rows])
        step = np.array([row["step_loss"] for _, row in rows])
        last_panel.plot(dims, layer / uniform, "o-", color=color, label=f"layer, n {n}")
        last_panel.plot(dims, step / uniform, "x--", color=color, label=f"step, n {n}")
    last_panel.set(xlabel="d", ylabel="loss / loss of the uniform answer")
    last_panel.legend(fontsize=7)
    return figure


def _lines(axis, row, name, label, color, style="-"):
    values = np.array(row["path"][name])
    axis.plot(row["steps"], values.mean(0), style, color=color, label=label)
    axis.fill_between(row["steps"], values.min(0), values.max(0), color=color, alpha=0.2)
