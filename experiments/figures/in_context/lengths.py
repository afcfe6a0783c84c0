"""Attention generalises in length because softmax divides by n: so does linear attention that does.

Losses over the context length of what was optimal, or trained, at n = 40: exact curves where there
is a formula, paired Monte Carlo where there is none.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments.figures import claim
from experiments.figures.in_context._common import (
    DIM,
    NOISE,
    PRIOR_VARIANCE,
    SETTING,
    losses,
    regression,
)
from in_context import linear_attention, predictors, softmax_attention
from shared import plotting

TRAIN = 40
HEADS = ([0.13, -0.13], [3.45, -3.45])  # as trained in arXiv:2503.12734
SINGLE = ([0.5177], [1.5523])


def compute(fast: bool) -> dict[str, Any]:
    """Exact curves and Monte Carlo points."""
    lengths = (20, 40, 160) if fast else (10, 20, 40, 60, 80, 100, 120, 160, 200)
    size = 20_000 if fast else 100_000
    rate = softmax_attention.optimal_debiased(TRAIN, DIM, **SETTING).learning_rate
    step = linear_attention.optimal_step(TRAIN, DIM, **SETTING).learning_rate
    exact: dict[str, list[float]] = {"linear": [], "linear / n": [], "debiased": []}
    measured: dict[str, list[dict]] = {}
    with jax.enable_x64(True):
        eye = np.eye(DIM)
        moments = {"covariance": eye, "prior": PRIOR_VARIANCE * eye, "noise": NOISE}
        for n in lengths:
            for name, divide in (("linear", False), ("linear / n", True)):
                exact[name].append(
                    linear_attention.loss_at_length(TRAIN, n, DIM, normalised=divide, **SETTING)
                )
            P = rate / n * eye
            exact["debiased"].append(float(linear_attention.debiased_loss(P, n, **moments)))
    for n in lengths:
        answers = {
            "linear": lambda p: predictors.gradient_descent(p, step),
            "linear / n": lambda p, n=n: predictors.gradient_descent(p, step * TRAIN / n),
            "debiased": lambda p: softmax_attention.debiased_gradient_descent(p, rate),
            "two heads": lambda p: softmax_attention.apply_heads(*map(jnp.array, HEADS), p),
            "one head": lambda p: softmax_attention.apply_heads(*map(jnp.array, SINGLE), p),
            "Bayes": lambda p: predictors.ridge(p, NOISE**2 / PRIOR_VARIANCE),
        }
        key = jax.random.fold_in(jax.random.key(0), n)
        for name, found in losses(answers, regression(n), key, size).items():
            measured.setdefault(name, []).append(found)
    deviations = [
        abs(found["mean"] - value) / found["error"]
        for name, values in exact.items()
        for found, value in zip(measured[name], values)
    ]
    at = {n: place for place, n in enumerate(lengths)}
    two = measured["two heads"][at[40]]
    return {
        "data": f"d {DIM}, noise variance 0.1, weights N(0, I/d); {size} prompts per length",
        "seeds": [0],
        "lengths": list(lengths),
        "exact": exact,
        "measured": measured,
        "claims": [
            claim(
                "largest deviation from an exact value, in standard errors",
                max(deviations),
                high=3.0,
            ),
            claim("linear at 160", exact["linear"][at[160]], low=6.53, high=6.55),
            claim("linear / n at 160", exact["linear / n"][at[160]], low=0.1495, high=0.1497),
            claim("debiased at 160", exact["debiased"][at[160]], low=0.146, high=0.149),
            claim(
                "two heads at 40 against 0.24269",
                abs(two["mean"] - 0.24269) / (two["error"] + 3e-4),
                high=3.0,
            ),
        ],
    }


def draw(result: dict[str, Any]):
    """Lines where exact, points where measured."""
    figure, axes = plotting.new_figure(width=5.6, height=4)
    axis = axes[0, 0]
    for place, (name, found) in enumerate(result["measured"].items()):
        color = plotting.COLORS[place]
        mean = [point["mean"] for point in found]
        error = [2 * point["error"] for point in found]
        axis.errorbar(
            result["lengths"], mean, error, fmt="o", color=color, markersize=4, label=name
        )
        curve = result["exact"].get(name, mean)
        axis.plot(result["lengths"], curve, "-" if name in result["exact"] else ":", color=color)
    axis.axvline(TRAIN, color="0.6", linewidth=1, linestyle="--")
    axis.set(xscale="log", yscale="log", xlabel="context length n", ylabel="loss")
    labels = ["" if n == 120 else str(n) for n in result["lengths"]]  # it would touch 100
    axis.set_xticks(result["lengths"], labels, minor=False)
    axis.minorticks_off()
    axis.set_title("optimal or trained at n = 40; solid: exact; bars: 2 standard errors")
    axis.legend(fontsize=8)
    return figure
