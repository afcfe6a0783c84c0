"""A mean of the inputs ruins plain gradient descent and leaves debiased descent and heads alone.

Context length 40, mean norm 0 to 3: exact losses of the plain and the debiased step, and paired
Monte Carlo of those and of two heads as trained at mean zero.
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
from experiments.figures.in_context.lengths import HEADS
from in_context import linear_attention, predictors, softmax_attention
from shared import plotting

N = 40


def compute(fast: bool) -> dict[str, Any]:
    """Losses over the norm of the mean."""
    norms = (0.0, 1.0, 3.0) if fast else (0.0, 0.5, 1.0, 1.5, 2.0, 2.5, 3.0)
    size = 20_000 if fast else 200_000
    plain = linear_attention.optimal_step(N, DIM, **SETTING).learning_rate
    rate = softmax_attention.optimal_debiased(N, DIM, **SETTING).learning_rate
    answers = {
        "plain": lambda p: predictors.gradient_descent(p, plain),
        "debiased": lambda p: softmax_attention.debiased_gradient_descent(p, rate),
        "two heads": lambda p: softmax_attention.apply_heads(*map(jnp.array, HEADS), p),
    }
    exact: dict[str, list[float]] = {"plain": [], "debiased": []}
    measured: dict[str, list[dict]] = {name: [] for name in answers}
    for place, norm in enumerate(norms):
        # Every direction is alike for isotropic inputs; the diagonal one excites all coordinates.
        mean = np.full(DIM, norm / DIM**0.5)
        with jax.enable_x64(True):
            eye = np.eye(DIM)
            options = {"covariance": eye, "prior": PRIOR_VARIANCE * eye, "noise": NOISE}
            for name, P, loss in (
                ("plain", plain * eye, linear_attention.population_loss),
                ("debiased", rate / N * eye, linear_attention.debiased_loss),
            ):
                exact[name].append(float(loss(P, N, mean=mean, **options)))
        key = jax.random.fold_in(jax.random.key(0), place)
        found = losses(answers, regression(N, mean=mean.astype(np.float32)), key, size)
        for name, value in found.items():
            measured[name].append(value)
    deviations = [
        abs(found["mean"] - value) / found["error"]
        for name, values in exact.items()
        for found, value in zip(measured[name], values)
    ]
    one, three = norms.index(1.0), norms.index(3.0)
    return {
        "data": f"n {N}, d {DIM}, noise variance 0.1; {size} prompts per point",
        "seeds": [0],
        "norms": list(norms),
        "exact": exact,
        "measured": measured,
        "claims": [
            claim(
                "largest deviation from an exact value, in standard errors",
                max(deviations),
                high=3.0,
            ),
            claim("plain at mean norm 0", exact["plain"][0], low=0.2397, high=0.2399),
            claim("debiased at mean norm 0", exact["debiased"][0], low=0.2428, high=0.2429),
            claim("plain at mean norm 1", exact["plain"][one], low=0.52, high=0.56),
            claim("debiased at mean norm 1", exact["debiased"][one], low=0.265, high=0.275),
            claim("plain at mean norm 3", exact["plain"][three], low=100.0),
            claim("debiased at mean norm 3", exact["debiased"][three], low=0.49, high=0.52),
            claim(
                "two heads at mean norm 3",
                measured["two heads"][three]["mean"],
                low=0.49,
                high=0.54,
            ),
        ],
    }


def draw(result: dict[str, Any]):
    """Lines where exact, points where measured."""
    figure, axes = plotting.new_figure(width=5.0, height=3.6)
    axis = axes[0, 0]
    for place, (name, found) in enumerate(result["measured"].items()):
        color = plotting.COLORS[place]
        mean = [point["mean"] for point in found]
        error = [2 * point["error"] for point in found]
        axis.errorbar(result["norms"], mean, error, fmt="o", color=color, markersize=4, label=name)
        style = "-" if name in result["exact"] else ":"
        axis.plot(result["norms"], result["exact"].get(name, mean), style, color=color)
    axis.set(yscale="log", xlabel="norm of the inputs' mean", ylabel="loss")
    axis.set_title("n = 40; solid: exact; bars: 2 standard errors")
    axis.legend()
    return figure
