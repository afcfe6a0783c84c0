"""A large output scale makes training lazy: the kernel moves as 1/scale; a small one lets it align.

Chizat, Oyallon and Bach (arXiv:1812.07956): the model scale * (f(w) - f(w0)), trained with the
learning rate divided by scale^2 until the loss has fallen by the same factor.
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

network = functools.partial(apply, activation=jnp.tanh, w_std=1.5, b_std=0.1)


@functools.partial(jax.jit, static_argnames=("width", "max_steps"))
def run(key, x, y, scale, *, width: int, max_steps: int) -> dict[str, jax.Array]:
    """Kernel drift and alignment when the loss has fallen to a hundredth."""
    first = init(key, (x.shape[1], width, width, 1))
    start = network(first, x)

    def loss(params):
        return 0.5 * jnp.mean((scale * (network(params, x) - start) - y) ** 2)

    before = ntk.empirical_ntk_fn(network)(x, None, first)
    rate = y.size / jnp.linalg.eigvalsh(before)[-1] / scale**2

    def unfinished(carry):
        return (carry[1] > 0.005) & (carry[2] < max_steps)

    def step(carry):
        params, _, count = carry
        value, slope = jax.value_and_grad(loss)(params)
        return jax.tree.map(lambda a, g: a - rate * g, params, slope), value, count + 1

    params, value, _ = jax.lax.while_loop(unfinished, step, (first, jnp.float32(1.0), 0))
    after = ntk.empirical_ntk_fn(network)(x, None, params)
    gain = ntk.dynamics.alignment(after, y) - ntk.dynamics.alignment(before, y)
    return {"drift": ntk.dynamics.kernel_drift(after, before), "gain": gain, "loss": value}


def train(scale: float, seed: int, width: int, max_steps: int) -> dict[str, float]:
    """One network on data of its own."""
    x = jnp.asarray(np.random.default_rng(seed).normal(size=(32, 6)), jnp.float32)
    y = jnp.sign(x[:, :1] * x[:, 1:2])
    key = jax.random.fold_in(jax.random.key(2), seed)
    found = run(key, x, y, jnp.float32(scale), width=width, max_steps=max_steps)
    return {k: float(v) for k, v in found.items()}


def compute(fast: bool) -> dict[str, Any]:
    """Drift and gain in alignment for scales over three decades."""
    scales = (0.3, 3.0, 30.0) if fast else (0.1, 0.3, 1.0, 3.0, 10.0, 30.0)
    width, seeds, steps = (64, 2, 1500) if fast else (128, 4, 10_000)
    runs = [[train(s, seed, width, steps) for seed in range(seeds)] for s in scales]
    points = {k: [[r[k] for r in row] for row in runs] for k in ("drift", "gain", "loss")}
    drift = [float(np.exp(np.mean(np.log(row)))) for row in points["drift"]]
    lazy = [k for k, s in enumerate(scales) if s >= 3.0]
    slope, error = fitted_slope([scales[k] for k in lazy], [drift[k] for k in lazy])
    gains = [float(np.mean(row)) for row in points["gain"]]
    return {
        "data": "32 points N(0,1) in 6 dimensions, y = sign(x1 x2); float32",
        "seeds": seeds,
        "scales": list(scales),
        "points": points,
        "drift": drift,
        "gain": gains,
        "slope": [slope, error],
        "claims": [
            claim("power of the scale in the lazy regime", slope, low=-1.2, high=-0.8),
            claim(
                f"gain in alignment at scale {scales[0]}, in standard errors over seeds",
                gains[0] / (float(np.std(points["gain"][0], ddof=1)) / seeds**0.5),
                low=2.0,
            ),
            claim(
                "largest loss at the end over that at the start",
                float(np.max(points["loss"])) / 0.5,
                high=0.1,
            ),
        ],
    }


def draw(result: dict[str, Any]) -> Any:
    """Drift and alignment against the scale."""
    scales = np.asarray(result["scales"])
    with plotting.theory_style():
        figure, axes = plotting.new_figure(1, 2)
        for axis, name, color in zip(axes[0], ("drift", "gain"), plotting.COLORS):
            for scale, values in zip(scales, result["points"][name]):
                axis.plot([scale] * len(values), values, ".", color=color, alpha=0.35)
            axis.plot(scales, result[name], "o-", color=color)
            axis.set_xscale("log")
            axis.set_xlabel("output scale")
        axes[0, 0].set_yscale("log")
        drift = np.asarray(result["drift"])
        axes[0, 0].plot(scales, drift[-1] * scales[-1] / scales, "k--", label="1 / scale")
        axes[0, 0].set_ylabel("relative drift of the kernel")
        axes[0, 0].set_title(f"power {result['slope'][0]:.2f} for scales of 3 and more")
        axes[0, 1].set_ylabel("gain in kernel-target alignment")
        axes[0, 1].set_title(f"{result['seeds']} seeds, mean and each")
        axes[0, 0].legend(fontsize=8)
    return figure
