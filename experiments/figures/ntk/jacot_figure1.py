"""The tangent kernel of wide networks is fixed at initialization and stays there in training.

Jacot, Gabriel and Hongler (arXiv:1806.07572), Figure 1: three hidden ReLU layers, beta = 0.1,
Theta(x0, x) along the circle for several widths, before and after 200 steps of gradient descent at
learning rate 1 on x1 x2, against the infinite-width kernel.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments.figures import claim
from experiments.figures.ntk._finite import apply, circle, fitted_slope, init
from ntk import stax
from shared import plotting

# Theta at angles 0, pi/4, pi/2, pi, computed once with neural-tangents 0.6.5.
KNOWN = (0.28250, 0.16997, 0.09270, 0.06435)


def limit(angles: np.ndarray) -> np.ndarray:
    """The infinite-width kernel between the angle 0 and others."""
    layers = [part for _ in range(3) for part in (stax.Dense(1, 1.0, 0.1), stax.Relu())]
    _, _, kernel_fn = stax.serial(*layers, stax.Dense(1, 1.0, 0.1))
    with jax.enable_x64(True):
        return np.asarray(kernel_fn(circle(np.zeros(1)), circle(angles), "ntk"))[0]


def finite(width: int, seeds: int, angles: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Kernels before and after training, [seeds, angles]."""
    x = jax.random.normal(jax.random.key(1), (32, 2))
    y = x[:, :1] * x[:, 1:]
    points = circle(angles.astype(np.float32))

    def f(params, inputs):
        return apply(params, inputs, activation=jax.nn.relu)

    def kernel(params):
        def gradient(point):
            return jax.grad(lambda p: f(p, point[None])[0, 0])(params)

        origin = gradient(circle(jnp.zeros(1))[0])

        def one(point):
            dot = jax.tree.map(lambda a, b: jnp.sum(a * b), origin, gradient(point))
            return sum(jax.tree.leaves(dot))

        return jax.lax.map(one, points)

    @jax.jit
    def run(key):
        params = init(key, (2, width, width, width, 1))

        def step(p, _):
            grads = jax.grad(lambda q: 0.5 * jnp.mean((f(q, x) - y) ** 2))(p)
            return jax.tree.map(lambda a, g: a - g, p, grads), None

        after, _ = jax.lax.scan(step, params, None, length=200)
        return kernel(params), kernel(after)

    runs = [run(jax.random.fold_in(jax.random.key(0), seed)) for seed in range(seeds)]
    return np.stack([a for a, _ in runs]), np.stack([b for _, b in runs])


def compute(fast: bool) -> dict[str, Any]:
    """Kernels of both kinds, and how spread and drift shrink with the width."""
    plan = {50: 12, 200: 12} if fast else {100: 20, 300: 20, 1000: 10}
    angles = np.linspace(-np.pi, np.pi, 9 if fast else 33)
    true = limit(np.array([0, np.pi / 4, np.pi / 2, np.pi]))
    zero = len(angles) // 2
    curves, spread, drift = {}, [], []
    for width, seeds in plan.items():
        before, after = finite(width, seeds, angles)
        spread.append(float(before[:, zero].std(ddof=1) / before[:, zero].mean()))
        drift.append(float(np.mean(after[:, zero] / before[:, zero] - 1)))
        curves[str(width)] = {"before": before.tolist(), "after": after.tolist()}
    widths = list(plan)
    return {
        "angles": angles.tolist(),
        "limit": limit(angles).tolist(),
        "curves": curves,
        "spread": spread,
        "drift": drift,
        "data": "32 standard normal points in the plane, target x1 x2, full batch",
        "seeds": f"{plan} (width: initializations)",
        "claims": [
            claim("largest error of the limit at 0, pi/4, pi/2, pi (5 digits known)",
                  np.max(np.abs(true - KNOWN)), high=6e-6),
            claim("slope of the relative spread at angle 0 in the width (-1/2 expected)",
                  fitted_slope(widths, spread)[0], low=-0.85, high=-0.2),
            claim("drift of the widest over that of the narrowest network",
                  drift[-1] / drift[0], low=-0.1, high=0.5),
        ],
    }  # fmt: skip


def draw(result: dict[str, Any]):
    """Thin lines: single networks; dashed after training; black: the limit."""
    curves = result["curves"]
    shown = [next(iter(curves)), next(reversed(curves))]
    figure, axes = plotting.new_figure(1, 2, width=4.4, height=3.4)
    angles = np.array(result["angles"])
    for axis, width, color in zip(axes[0], shown, plotting.COLORS):
        for name, style in (("before", "-"), ("after", "--")):
            for i, line in enumerate(curves[width][name][:5]):
                label = f"{name} training" if i == 0 else None
                axis.plot(angles, line, style, color=color, alpha=0.5, linewidth=1, label=label)
        axis.plot(angles, result["limit"], color="black", label="infinite width")
        axis.set_title(f"width {width}: 5 of {len(curves[width]['before'])} initializations")
        axis.set_xlabel("angle $\\gamma$ of $x$ (radians)")
        axis.set_ylabel("$\\Theta(x_0, x)$")
        axis.legend()
    top = max(axis.get_ylim()[1] for axis in axes[0])
    for axis in axes[0]:
        axis.set_ylim(0, top)
    return figure
