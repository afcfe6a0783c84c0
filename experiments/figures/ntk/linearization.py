"""Weights stay within n^-1/2 of the linearized network's; outputs and kernel nearer still, as 1/n.

Lee, Xiao et al. (arXiv:1902.06720), Theorem 2.1 and Figures 1 and 2: gradient descent of tanh
networks and of their first-order expansion, from the same start, with the same steps. The linear
model's outputs come from the kernel alone (function space); its weights from training it (weight
space). The theorem bounds all three by n^-1/2; that outputs and kernel fall as 1/n, which the paper
sees too, is explained by Dyer and Gur-Ari (arXiv:1909.11304).
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import ntk
from experiments.figures import claim
from experiments.figures.ntk._finite import apply, fitted_slope, init
from shared import plotting

network = functools.partial(apply, activation=jnp.tanh, w_std=1.5**0.5, b_std=0.1)


@functools.partial(jax.jit, static_argnames=("width", "steps"))
def run(key, x, y, *, width: int, steps: int) -> dict[str, jax.Array]:
    """Trains a network on the first inputs, and its linearization in both spaces."""
    count = y.shape[0]
    train = x[:count]
    first = init(key, (x.shape[1], width, width, 1))
    pull = jax.vjp(lambda p: network(p, train), first)[1]
    kernel = ntk.empirical_ntk_fn(network)(x, train, first)
    rate = 0.5 / jnp.trace(kernel[:count])  # of the sum of squares
    start = network(first, x)

    def step(carry, _):
        params, outputs, change = carry
        slope = jax.grad(lambda p: 0.5 * jnp.sum((network(p, train) - y) ** 2))(params)
        params = jax.tree.map(lambda a, g: a - rate * g, params, slope)
        residual = outputs[:count] - y
        change = jax.tree.map(lambda a, g: a - rate * g, change, pull(residual)[0])
        return (params, outputs - rate * kernel @ residual, change), None

    nothing = jax.tree.map(jnp.zeros_like, first)
    carry = jax.lax.scan(step, (first, start, nothing), None, length=steps)[0]
    params, outputs, change = carry
    apart = jax.tree.map(lambda p, a, c: p - a - c, params, first, change)
    moved = jax.tree.map(jnp.add, first, change)
    after = ntk.empirical_ntk_fn(network)(train, None, params)
    return {
        "test": jnp.sqrt(jnp.mean((network(params, x) - outputs)[count:] ** 2)),
        "weights": jnp.sqrt(sum(jnp.sum(a**2) for a in jax.tree.leaves(apart))),
        "kernel": ntk.dynamics.kernel_drift(after, kernel[:count]),
        "spaces": jnp.max(jnp.abs(ntk.linearize(network, first)(moved, x) - outputs)),
    }


def deviations(width: int, seed: int, steps: int) -> dict[str, float]:
    """How far training and linearized training are apart at the end."""
    rng = np.random.default_rng(seed)
    x = jnp.asarray(rng.normal(size=(12, 8)), jnp.float32)
    y = jnp.asarray(rng.normal(size=(8, 1)), jnp.float32)
    key = jax.random.fold_in(jax.random.key(1), seed)
    return {k: float(v) for k, v in run(key, x, y, width=width, steps=steps).items()}


def compute(fast: bool) -> dict[str, Any]:
    """Deviations for widths up to 4096, with fitted powers."""
    widths = (64, 128, 256, 512) if fast else (64, 128, 256, 512, 1024, 2048, 4096)
    steps = 30 if fast else 60
    points: dict[str, list[list[float]]] = {"test": [], "weights": [], "kernel": []}
    spaces, counts = 0.0, []
    for width in widths:
        count = 2 if width >= 2048 else 4 if width >= 1024 else 8
        runs = [deviations(width, seed, steps) for seed in range(count)]
        counts.append(count)
        spaces = max([spaces] + [r["spaces"] for r in runs])
        for name, values in points.items():
            values.append([r[name] for r in runs])
    means = {k: [float(np.exp(np.mean(np.log(v)))) for v in p] for k, p in points.items()}
    slopes = {k: fitted_slope(widths, m) for k, m in means.items()}
    slack = 0.25 if fast else 0.12
    return {
        "data": f"8 training and 4 test inputs N(0,1) in 8 dimensions, {steps} steps; float32",
        "seeds": counts,
        "widths": list(widths),
        "points": points,
        "means": means,
        "slopes": slopes,
        "claims": [
            claim(
                "power of the width, weights",
                slopes["weights"][0],
                low=-0.5 - slack,
                high=-0.5 + slack,
            ),
            claim("power of the width, test outputs", slopes["test"][0], low=-1.3, high=-0.5),
            claim("power of the width, kernel", slopes["kernel"][0], low=-1.3, high=-0.5),
            claim("weight space against function space, largest gap", spaces, high=2e-4),
        ],
    }


def draw(result: dict[str, Any]) -> Any:
    """Deviations against the width on logarithmic axes."""
    names = {
        "test": "test outputs: |f - f_lin|, rms",
        "weights": "weights: |θ - θ_lin|",
        "kernel": "kernel: relative drift",
    }
    with plotting.theory_style():
        figure, axes = plotting.new_figure(1, 1, width=5.6, height=4.0)
        axis = axes[0, 0]
        widths = np.asarray(result["widths"])
        for color, (name, label) in zip(plotting.COLORS, names.items()):
            slope, error = result["slopes"][name]
            means = np.asarray(result["means"][name])
            axis.loglog(
                widths, means, "o-", color=color, label=f"{label}; {slope:.2f} ± {error:.2f}"
            )
            for width, values in zip(widths, result["points"][name]):
                axis.loglog(
                    [width] * len(values), values, ".", color=color, alpha=0.3, markersize=4
                )
        first = result["means"]["weights"][0]
        axis.loglog(widths, first * (widths / widths[0]) ** -0.5, "k--", label="width^-1/2")
        first = result["means"]["test"][0]
        axis.loglog(widths, first * widths[0] / widths, "k:", label="1 / width")
        lowest = min(min(row) for values in result["points"].values() for row in values)
        axis.set_ylim(bottom=lowest / 30)  # room for the legend
        axis.set_xlabel("width")
        axis.set_ylabel("deviation after training")
        axis.set_title("geometric means over 2 to 8 seeds; fitted powers", fontsize=9)
        axis.legend(fontsize=8)
    return figure
