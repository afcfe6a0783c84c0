"""Three heads serve two overlapping tasks in superposition; four give each task a pair.

Section on multi-task regression of He et al. (arXiv:2503.12734): d = 6, outputs on coordinates 0-3
and 2-5, n = 48. Heads carry an output vector mu_h in R^2.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments.figures import claim
from in_context import linear_attention, softmax_attention, tasks
from shared import plotting

DIM, N = 6, 48
SUPPORTS = ((0, 1, 2, 3), (2, 3, 4, 5))


def compute(fast: bool) -> dict[str, Any]:
    """Trained layers with 3 and 4 heads, their losses and what each head reads and writes."""
    steps, size, seeds = (800, 4000, 1) if fast else (8000, 40_000, 3)
    task = tasks.MultiTask(num_context=N, supports=SUPPORTS, dim=DIM, noise=0.1**0.5)
    prompt = task.sample(jax.random.key(100), size)
    models = {}
    for heads in (3, 4):
        run = jax.jit(
            jax.vmap(
                lambda key, heads=heads: softmax_attention.train(
                    task, DIM, num_heads=heads, num_outputs=2, key=key, num_steps=steps
                )
            )
        )
        every = run(jax.random.split(jax.random.key(0), seeds))
        errors = jax.lax.map(lambda p: softmax_attention.squared_error(p, prompt), every.params)
        best = int(jnp.argmin(errors))  # some starts give all heads one sign and stay there
        trained = jax.tree.map(lambda leaf, best=best: leaf[best], every)
        found = softmax_attention.decompose(trained.params)
        diagonal = jnp.diagonal(found.key_query[:, :DIM], axis1=1, axis2=2)
        models[str(heads)] = {
            "steps": np.asarray(trained.steps).tolist(),
            "losses": np.asarray(trained.losses).tolist(),
            "loss": 2 * float(errors[best]),
            "losses_of_seeds": (2 * np.asarray(errors)).tolist(),
            "mu": np.asarray(found.mu).tolist(),
            "paired_outputs": paired_outputs(np.asarray(found.mu)),
            "diagonal": np.asarray(diagonal).tolist(),
            "imbalance": float(found.mu_imbalance),
        }
    power = float(jnp.mean(prompt.target**2))
    bar = 0.8 if fast else 0.44
    # What one gradient step on the right four coordinates would reach for both outputs, exactly.
    floor = 2 * linear_attention.optimal_step(N, 4, noise=0.1**0.5, prior_variance=0.25).loss
    return {
        "data": f"d {DIM}, n {N}, two outputs, noise variance 0.1; {steps} Adam steps of 256 fresh "
        f"prompts; losses on {size} prompts; float32",
        "seeds": list(range(seeds)),
        "models": models,
        "power": power,
        "one_step_each": floor,
        "claims": [
            claim(
                "H = 3: error of both outputs, best seed",
                models["3"]["loss"],
                low=0.39,
                high=bar,
            ),
            claim(
                "H = 4: error of both outputs, best seed",
                models["4"]["loss"],
                low=0.39,
                high=bar,
            ),
            claim(
                "H = 4 loss / H = 3 loss",
                models["4"]["loss"] / models["3"]["loss"],
                high=1.1 if fast else 1.02,
            ),
            claim(
                "H = 4: outputs with two heads of their own",
                models["4"]["paired_outputs"],
                low=0 if fast else 2,
            ),
        ],
    }


def paired_outputs(mu: np.ndarray) -> int:
    """How many outputs are the largest of exactly two heads, one of either sign; mu [H, k]."""
    owner = np.argmax(np.abs(mu), axis=1)
    signs = [np.sign(mu[owner == output, output]) for output in range(mu.shape[1])]
    return sum(sorted(own) == [-1.0, 1.0] for own in signs)


def draw(result: dict[str, Any]):
    """Loss, what each head compares (diagonal of key-query) and what it writes (mu)."""
    figure, axes = plotting.new_figure(2, 3, width=3.5, height=2.7)
    for row, (heads, model) in zip(axes, result["models"].items()):
        row[0].semilogy(model["steps"], model["losses"])
        row[0].set(xlabel="training step", ylabel="mean squared error per output")
        row[0].set_title(f"H = {heads}")
        row[0].axhline(result["one_step_each"] / 2, color="0.5", linestyle="--", linewidth=1)
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
