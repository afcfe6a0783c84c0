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
    (25, 5): (1.0, 1500),
    (25, 10): (1.0, 1500),
    (25, 20): (1.0, 2000),
    (50, 5): (0.5, 1500),
    (50, 10): (0.5, 1500),
    (50, 20): (0.5, 2000),
    (100, 5): (0.5, 1500),
    (100, 10): (0.5, 2000),
    (100, 20): (0.5, 4000),
}


def compute(fast: bool) -> dict[str, Any]:
    """Losses and closeness along training, for every size, and the leaking variant."""
    sizes = {(25, 5): (1.0, 500)} if fast else SIZES
    seeds = 1 if fast else 3
    rows = {}
    for (n, d), (scale, steps) in sizes.items():
        documents = closeness.Documents(n, d, scale=scale)
        rows[f"n {n}, d {d}"] = run(documents, steps, seeds)
    leak = run(closeness.Documents(25, 5, leak=True), 500 if fast else 1500, seeds)
    claims = [
        claim(
            "leak, n 25, d 5: layer / step (a warning: it copies), worst",
            last(leak, "ratio").max(),
            high=0.9 if fast else 0.5,
        ),
    ]
    if fast:
        row = rows["n 25, d 5"]
        claims.append(claim("n 25, d 5: cosine", last(row, "cosine").min(), low=0.9))
    else:
        small, large = rows["n 100, d 5"], rows["n 100, d 20"]
        claims += [
            claim("n 100, d 5: cosine, worst", last(small, "cosine").min(), low=0.99),
            claim(
                "n 100, d 5: layer / step, worst", last(small, "ratio").max(), low=0.85, high=1.02
            ),
            claim("n 100, d 20: cosine, worst", last(large, "cosine").min(), low=0.97),
            claim("n 100, d 20: layer / step, worst", last(large, "ratio").max(), high=1.05),
            claim(
                "key-query diagonal, spread over mean, worst",
                max(last(row, "diagonal_spread").max() for row in rows.values()),
                high=0.1,
            ),
        ]
    return {
        "data": "fresh documents, batch 64, Adam 0.01; measured on 1000 held-out documents, 25 "
        "queries each; the step's learning rate tuned on 1000 others; float32",
        "seeds": list(range(seeds)),
        "rows": rows,
        "leak": leak,
        "claims": claims,
    }


def last(row: dict[str, Any], name: str) -> np.ndarray:
    """The final value of every seed."""
    return np.array(row[name])[:, -1]


def run(documents: closeness.Documents, steps: int, seeds: int) -> dict[str, Any]:
    """Trains every seed and reports along the way."""
    tuning = documents.sample(jax.random.key(98), 1000)
    learning_rate = closeness.best_learning_rate(tuning, num_candidates=200)
    prompt = documents.sample(jax.random.key(99), 1000)

    def one(key):
        trained = closeness.train(documents, key=key, num_steps=steps, num_records=10)
        report = jax.lax.map(
            lambda params: closeness.report(params, prompt, learning_rate, leak=documents.leak),
            trained.trajectory,
        )
        return trained.steps, report

    found, report = jax.jit(jax.vmap(one))(jax.random.split(jax.random.key(0), seeds))
    names = {
        "layer_loss": "layer_loss",
        "ratio": "ratio",
        "cosine": "sensitivity_cosine",
        "sensitivity_difference": "sensitivity_difference",
        "prediction_difference": "prediction_difference",
        "diagonal_spread": "diagonal_spread",
    }
    return {
        "steps": np.asarray(found[0]).tolist(),
        "step_loss": float(report.step_loss[0, 0]),
        "uniform_loss": float(report.uniform_loss[0, 0]),
    } | {name: np.asarray(getattr(report, field)).tolist() for name, field in names.items()}


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
        layer = np.array([np.mean(last(row, "layer_loss")) for _, row in rows])
        step = np.array([row["step_loss"] for _, row in rows])
        last_panel.plot(dims, layer / uniform, "o-", color=color, label=f"layer, n {n}")
        last_panel.plot(dims, step / uniform, "x--", color=color, label=f"step, n {n}")
    last_panel.set(xlabel="d", ylabel="loss / loss of the uniform answer")
    last_panel.legend(fontsize=7)
    return figure


def _lines(axis, row, name, label, color, style="-"):
    values = np.array(row[name])
    axis.plot(row["steps"], values.mean(0), style, color=color, label=label)
    axis.fill_between(row["steps"], values.min(0), values.max(0), color=color, alpha=0.2)
