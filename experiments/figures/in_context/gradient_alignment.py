"""A trained linear layer answers as the best gradient step does, also off its distribution.

Figure 2 of von Oswald et al. (arXiv:2212.07677): inputs uniform in (-1/2, 1/2), n = d = 10. Losses
are half the squared error, as there; the step's learning rate is the closed form, not a scan.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments.figures import claim
from in_context import alignment, linear_attention, predictors, tasks
from shared import plotting

N = D = 10
SCALES = (0.5, 0.75, 1.0, 1.25, 1.5, 2.0)


def compute(fast: bool) -> dict[str, Any]:
    """Alignment along training, and losses for scaled inputs and weights."""
    steps, seeds, size = (1000, 1, 4000) if fast else (5000, 3, 20_000)
    task = tasks.LinearRegression(N, D, half_width=0.5)
    best = linear_attention.optimal_uniform_step(N, D, half_width=0.5)
    run = jax.jit(
        jax.vmap(
            lambda key: linear_attention.train(
                task, D, key=key, num_steps=steps, batch_size=512, learning_rate=1e-2
            )
        )
    )
    trained = run(jax.random.split(jax.random.key(0), seeds))
    prompt = task.sample(jax.random.key(1), size)

    def reference(prompt):
        return predictors.gradient_descent(prompt, best.learning_rate)

    def measure(params, prompt):
        return alignment.compare(lambda p: linear_attention.apply(params, p), reference, prompt)

    # The prompts are an argument: as constants they would be folded while compiling.
    path = jax.jit(
        lambda trajectory, prompt: jax.vmap(lambda p: jax.lax.map(lambda q: measure(q, prompt), p))(
            trajectory
        )
    )(trained.trajectory, prompt)
    shifted = jax.jit(jax.vmap(measure, (0, None)))
    scans = {}
    for kind in ("inputs", "weights"):
        scans[kind] = {"layer": [], "step": []}
        for scale in SCALES:
            moved = jax.tree.map(jnp.asarray, prompt)
            if kind == "inputs":
                moved = moved._replace(x=scale * moved.x, query=scale * moved.query)
            moved = moved._replace(y=scale * moved.y, target=scale * moved.target)
            found = shifted(trained.params, moved)
            scans[kind]["layer"].append((np.asarray(found.model_loss) / 2).tolist())
            scans[kind]["step"].append(float(found.reference_loss[0]) / 2)
    final = {name: np.asarray(value)[:, -1] for name, value in path._asdict().items()}
    off = max(
        abs(layer / step - 1)
        for scan in scans.values()
        for row, step in zip(scan["layer"], scan["step"])
        for layer in row
    )
    return {
        "data": f"{steps} Adam steps of 512 fresh prompts; measured on {size} prompts; float32",
        "seeds": list(range(seeds)),
        "steps": np.asarray(trained.steps[0]).tolist(),
        "path": {name: np.asarray(value).tolist() for name, value in path._asdict().items()},
        "scales": list(SCALES),
        "scans": scans,
        "exact_half_loss": best.loss / 2,
        "claims": [
            claim("closed form: half the loss", best.loss / 2, low=0.206228, high=0.206230),
            claim(
                "layer / step, same prompts, worst",
                float(np.max(final["model_loss"] / final["reference_loss"])),
                high=1.02 if fast else 1.005,
            ),
            claim(
                "cosine of sensitivities, worst",
                float(final["sensitivity_cosine"].min()),
                low=0.99 if fast else 0.999,
            ),
            claim(
                "prediction difference, worst",
                float(final["prediction_difference"].max()),
                high=0.06 if fast else 0.02,
            ),
            claim("off distribution: |layer / step - 1|, worst", off, high=0.1 if fast else 0.03),
        ],
    }


def draw(result: dict[str, Any]):
    """Losses, alignment, and losses off the training distribution."""
    figure, axes = plotting.new_figure(1, 3, width=3.8)
    steps, path = result["steps"], result["path"]
    loss = np.array(path["model_loss"]) / 2
    axes[0, 0].plot(steps, loss.mean(0), label="trained layer")
    axes[0, 0].fill_between(steps, loss.min(0), loss.max(0), alpha=0.2)
    step = np.array(path["reference_loss"])[0] / 2
    axes[0, 0].plot(steps, step, "k--", label="step, same prompts")
    axes[0, 0].axhline(result["exact_half_loss"], color="0.5", label="step, all prompts (exact)")
    axes[0, 0].set(xlabel="training step", ylabel="half squared error")
    axes[0, 0].set_title(f"n = d = 10, {len(result['seeds'])} seeds, band: range")
    for name, label in (
        ("sensitivity_cosine", "cosine of sensitivities"),
        ("sensitivity_difference", "difference of sensitivities"),
        ("prediction_difference", "difference of predictions"),
    ):
        values = np.array(path[name])
        axes[0, 1].semilogy(steps, values.mean(0), label=label)
        axes[0, 1].fill_between(steps, values.min(0), values.max(0), alpha=0.2)
    axes[0, 1].set(xlabel="training step", ylabel="alignment")
    for place, (kind, scan) in enumerate(result["scans"].items()):
        color = plotting.COLORS[place]
        mean = np.mean(scan["layer"], axis=1)
        axes[0, 2].semilogy(result["scales"], mean, "o", color=color, label=f"layer, scaled {kind}")
        axes[0, 2].semilogy(result["scales"], scan["step"], "-", color=color, label="step")
    axes[0, 2].set(xlabel="scale", ylabel="half squared error")
    for axis in axes[0]:
        axis.legend(fontsize=8)
    return figure
