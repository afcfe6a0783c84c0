"""Softmax attention with two heads learns opposite heads that add up to debiased gradient descent.

Figure 1 of He et al. (arXiv:2503.12734): key-query circuits omega I, output circuits that read the
answer alone, sum mu = 0. One head does 60 % worse; four heads hold dummies or pairs.
"""

import functools
from typing import Any

import jax
import numpy as np

from experiments.figures import claim
from experiments.figures.in_context._common import DIM, SETTING, losses, regression
from in_context import softmax_attention
from shared import plotting

N = 40
# Two heads of one sign can hold errors that cancel; weight decay has them give these up.
FOUR = {"learning_rate": 1e-2, "weight_decay": 0.02}


def compute(fast: bool) -> dict[str, Any]:
    """Trained layers, their circuits along training, and losses on common prompts."""
    # heads -> (steps, seeds, options of the training)
    if fast:
        runs: dict[str, tuple[int, int, dict]] = {"1": (1500, 1, {}), "2": (2500, 1, {})}
    else:
        runs = {"1": (10_000, 1, {}), "2": (20_000, 3, {}), "4": (40_000, 3, FOUR)}
    size = 10_000 if fast else 200_000
    task = regression(N)
    rate = softmax_attention.optimal_debiased(N, DIM, **SETTING).learning_rate
    predictors = {
        "debiased": lambda p: softmax_attention.debiased_gradient_descent(p, rate),
    }
    models = {}
    for heads, (steps, seeds, options) in runs.items():
        run = jax.jit(
            functools.partial(
                softmax_attention.train,
                task,
                DIM,
                num_heads=int(heads),
                num_steps=steps,
                num_records=40,
                **options,
            )
        )
        for seed in range(seeds):
            trained = run(key=jax.random.key(seed))
            name = f"H = {heads}, seed {seed}"
            predictors[name] = lambda p, w=trained.params: softmax_attention.apply(w, p)
            models[name] = describe(trained)
    measured = losses(predictors, task, jax.random.key(100), size, baseline="debiased")
    two = [model for name, model in models.items() if name.startswith("H = 2")]
    best = measured["debiased"]["mean"]
    excess = [measured[name]["difference"] / best for name in models if name.startswith("H = 2")]
    one = measured["H = 1, seed 0"]["mean"] / min(
        measured[name]["mean"] for name in models if name.startswith("H = 2")
    )
    loose = 20 if fast else 1
    claims = [
        claim("H = 2: |sum mu| / sum |mu|, worst", worst(two, "mu_imbalance"), high=0.005 * loose),
        claim("H = 2: spread of |omega|, worst", worst(two, "omega_spread"), high=0.03 * loose),
        claim(
            "H = 2: diagonal energy, worst",
            min(model["weighted_diagonal_energy"] for model in two),
            low=0.9 if fast else 0.999,
        ),
        claim(
            "H = 2: last-entry energy, worst",
            min(model["weighted_last_entry_energy"] for model in two),
            low=0.9 if fast else 0.999,
        ),
        claim("H = 2: paired excess over debiased", max(excess), high=0.015 * loose),
        claim("H = 1 loss / H = 2 loss", one, low=1.3 if fast else 1.6),
    ]
    if "4" in runs:
        four = [
            claims_of_four(name, models[name], measured, best) for name in models if "H = 4" in name
        ]
        meeting = sum(all(c["holds"] for c in of_seed) for of_seed in four)
        claims += [*four[0], claim("H = 4: seeds of three that meet all five bars", meeting, low=2)]
    return {
        "data": f"n {N}, d {DIM}, noise variance 0.1; Adam 3e-3 (four heads: {FOUR}), 256 fresh "
        "prompts per step; "
        f"losses on {size} common prompts; float32",
        "seeds": list(range(runs["2"][1])),
        "models": models,
        "losses": measured,
        "claims": claims,
    }


def claims_of_four(name: str, model: Any, measured: Any, best: float) -> list[dict[str, Any]]:
    """The bars of a layer with four heads, some of which may be dummies."""
    diagonal, last = model["weighted_diagonal_energy"], model["weighted_last_entry_energy"]
    return [
        claim(f"{name}: |sum mu| / sum |mu|", model["mu_imbalance"], high=0.005),
        claim(f"{name}: spread of |omega|, active heads", model["omega_spread"], high=0.03),
        claim(f"{name}: diagonal energy, active heads", diagonal, low=0.999),
        claim(f"{name}: last-entry energy, active heads", last, low=0.999),
        claim(
            f"{name}: paired excess over debiased", measured[name]["difference"] / best, high=0.015
        ),
    ]


def worst(models: list[dict[str, Any]], name: str) -> float:
    """The largest of a scalar over models."""
    return max(model[name] for model in models)


def describe(trained: Any) -> dict[str, Any]:
    """Circuits at the end, heads along training, and the scalars of the decomposition."""
    final = softmax_attention.decompose(trained.params)
    path = jax.vmap(softmax_attention.decompose)(trained.trajectory)
    scalars = (
        "weighted_diagonal_energy",
        "weighted_last_entry_energy",
        "mu_imbalance",
        "omega_spread",
    )
    return {
        "steps": np.asarray(trained.steps).tolist(),
        "omega": np.asarray(path.omega).tolist(),
        "mu": np.asarray(path.mu[..., 0]).tolist(),
        "key_query": np.asarray(final.key_query).tolist(),
        "output_value": np.asarray(final.output_value[:, 0]).tolist(),
    } | {name: float(getattr(final, name)) for name in scalars}


def draw(result: dict[str, Any]):
    """One row per number of heads: omega and mu over steps, and the circuits of seed 0."""
    chosen = [name for name in result["models"] if name.endswith("seed 0")]
    figure, axes = plotting.new_figure(len(chosen), 4, width=3.3, height=2.8)
    for row, name in zip(axes, chosen):
        model = result["models"][name]
        row[0].semilogx(model["steps"], model["omega"])
        row[0].set(title=name, xlabel="training step", ylabel="omega of each head")
        row[1].semilogx(model["steps"], model["mu"])
        row[1].set(title=name, xlabel="training step", ylabel="mu of each head")
        circuits = np.concatenate(model["key_query"], axis=1)
        values = np.array(model["output_value"])
        for axis, picture, title, label in (
            (row[2], circuits, "key-query, head by head", "head x query entry"),
            (row[3], values, "output-value", "token entry"),
        ):
            size = np.abs(picture).max()
            image = axis.imshow(picture, cmap="RdBu_r", vmin=-size, vmax=size, aspect="auto")
            axis.set(title=title, xlabel=label)
            axis.set_ylabel("token entry" if axis is row[2] else "head")
            axis.set_yticks(range(len(picture)))
            axis.grid(False)
            figure.colorbar(image, ax=axis)
    return figure
