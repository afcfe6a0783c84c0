"""Three heads serve two overlapping tasks in superposition; four give each task a pair.

Section on multi-task regression of He et al. (arXiv:2503.12734): d = 6, outputs on coordinates 0-3
and 2-5, n = 48. Heads carry an output vector mu_h in R^2.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments.figures import claim
from in_context import softmax_attention, tasks
from shared import plotting

DIM, N = 6, 48
SUPPORTS = ((0, 1, 2, 3), (2, 3, 4, 5))


def compute(fast: bool) -> dict[str, Any]:
    """Trained layers with 3 and 4 heads, their losses and what each head reads and writes."""
    steps, size = (800, 4000) if fast else (16_000, 40_000)
    task = tasks.MultiTask(num_context=N, supports=SUPPORTS, dim=DIM, noise=0.1**0.5)
    prompt = task.sample(jax.random.key(100), size)
    models = {}
    for heads in (3, 4):
        run = jax.jit(
            lambda key, heads=heads: softmax_attention.train(
                task, DIM, num_heads=heads, num_outputs=2, key=key, num_steps=steps
            )
        )
        trained = run(jax.random.key(0))
        found = softmax_attention.decompose(trained.params)
        diagonal = jnp.diagonal(found.key_query[:, :DIM], axis1=1, axis2=2)
        models[str(heads)] = {
            "steps": np.asarray(trained.steps).tolist(),
            "losses": np.asarray(trained.losses).tolist(),
            "loss": float(softmax_attention.squared_error(trained.params, prompt)),
            "mu": np.asarray(found.mu).tolist(),
            "diagonal": np.asarray(diagonal).tolist(),
            "imbalance": float(found.mu_imbalance),
        }
    power = float(jnp.mean(prompt.target**2))
    bar = 0.8 if fast else 0.46
    return {
        "data": f"d {DIM}, n {N}, two outputs, noise variance 0.1; {steps} Adam steps of 256 fresh "
        f"prompts; losses on {size} prompts; float32",
        "seeds": [0],
        "models": models,
        "power": power,
        "claims": [
            claim("H = 3: mean squared error", models["3"]["loss"], low=0.2, high=bar),
            claim("H = 4: mean squared error", models["4"]["loss"], low=0.2, high=bar),
            claim(
                "H = 4 loss / H = 3 loss",
                models["4"]["loss"] / models["3"]["loss"],
                high=1.1 if fast else 1.02,
            ),
            claim(
                "|sum of mu| / sum |mu|, worst over outputs",
                max(model["imbalance"] for model in models.values()),
                high=0.6 if fast else 0.1,
            ),
        ],
    }


def draw(result: dict[str, Any]):
    """Loss, what each head compares (diagonal of key-query) and what it writes (mu)."""
    figure, axes = plotting.new_figure(2, 3, width=3.5, height=2.7)
    for row, (heads, model) in zip(axes, result["models"].items()):
        row[0].loglog(model["steps"], model["losses"])
        row[0].set(xlabel="training step", ylabel="mean squared error", title=f"H = {heads}")
        for axis, name, label in (
            (row[1], "diagonal", "input coordinate"),
            (row[2], "mu", "output"),
        ):
            picture = np.array(model[name])
            size = np.abs(picture).max()
            image = axis.imshow(picture, cmap="RdBu_r", vmin=-size, vmax=size, aspect="auto")
            axis.set(xlabel=label, ylabel="head")
            axis.set_xticks(range(picture.shape[1]))
            axis.set_yticks(range(picture.shape[0]))
            axis.set_title("key-query diagonal" if name == "diagonal" else "mu")
            axis.grid(False)
            figure.colorbar(image, ax=axis)
    return figure
