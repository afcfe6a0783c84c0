"""Along a kernel component training converges at its eigenvalue; all else falls as n^-1/2.

Jacot, Gabriel and Hongler (arXiv:1806.07572), Figure 3: two hidden ReLU layers, the target is the
output at the start plus half of the second component of the kernel on digits. The error along the
component decays as exp(-lambda_2 t); the deviation orthogonal to it is an effect of finite width.
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


def digits(count: int) -> np.ndarray:
    """Images of 8 x 8 digits with unit norm, [count, 64] (scikit-learn's, in place of MNIST)."""
    from sklearn.datasets import load_digits

    images, _ = load_digits(return_X_y=True)
    images = images[:count].astype(np.float32)
    images = images - images.mean()
    return images / np.linalg.norm(images, axis=1, keepdims=True) * 8.0


def component(x: np.ndarray) -> tuple[float, np.ndarray]:
    """Second eigenvalue of the limiting kernel over n, and its vector with mean square 1."""
    dense = lambda: ntk.stax.Dense(1, 1.0, 0.1)  # noqa: E731
    relu = ntk.stax.Relu()
    _, _, kernel_fn = ntk.stax.serial(dense(), relu, dense(), relu, dense())
    with jax.enable_x64(True):
        values, vectors = np.linalg.eigh(np.asarray(kernel_fn(x.astype(float), None, "ntk")))
    return float(values[-2] / len(x)), vectors[:, -2] * len(x) ** 0.5


@functools.partial(jax.jit, static_argnames=("width", "steps"))
def run(key, x, second, rate, *, width: int, steps: int) -> tuple[jax.Array, jax.Array]:
    """Error along the component, and size of the move orthogonal to it, after every step."""
    first = init(key, (x.shape[1], width, width, 1))
    start = apply(first, x, activation=jax.nn.relu)[:, 0]
    target = start + 0.5 * second

    def loss(params):
        return 0.5 * jnp.mean((apply(params, x, activation=jax.nn.relu)[:, 0] - target) ** 2)

    def step(params, _):
        params = jax.tree.map(lambda a, g: a - rate * g, params, jax.grad(loss)(params))
        moved = apply(params, x, activation=jax.nn.relu)[:, 0] - start
        along = jnp.mean(moved * second)
        aside = jnp.sqrt(jnp.mean((moved - along * second) ** 2))
        return params, (0.5 - along, aside)

    return jax.lax.scan(step, first, None, length=steps)[1]


def follow(x, second, width: int, key, steps: int, rate: float) -> tuple[np.ndarray, np.ndarray]:
    """The same as NumPy arrays."""
    along, aside = run(
        key, jnp.asarray(x), jnp.asarray(second, jnp.float32), rate, width=width, steps=steps
    )
    return np.asarray(along), np.asarray(aside)


def compute(fast: bool) -> dict[str, Any]:
    """Curves of networks of several widths."""
    count, widths, seeds = (64, (64, 256), 2) if fast else (256, (64, 256, 1024), 3)
    x = digits(count)
    value, second = component(x)
    rate = 0.05 / value
    steps = 60
    curves, aside = {}, []
    for width in widths:
        keys = [jax.random.fold_in(jax.random.key(width), k) for k in range(seeds)]
        runs = [follow(x, second, width, key, steps, rate) for key in keys]
        curves[str(width)] = {
            "along": np.mean([r[0] for r in runs], 0).tolist(),
            "aside": np.mean([r[1] for r in runs], 0).tolist(),
        }
        aside.append(float(np.mean([r[1].max() for r in runs])))
    time = rate * np.arange(1, steps + 1)
    widest = np.asarray(curves[str(widths[-1])]["along"])
    rate_found = float(-np.polyfit(time[:30], np.log(np.abs(widest[:30])), 1)[0] / value)
    slope, error = fitted_slope(widths, aside)
    return {
        "data": f"{count} digits of scikit-learn, unit norm times 8; {seeds} seeds; float32",
        "seeds": seeds,
        "eigenvalue": value,
        "time": time.tolist(),
        "curves": curves,
        "aside": aside,
        "slope": [slope, error],
        "claims": [
            claim(
                f"rate along the component over lambda_2, width {widths[-1]}",
                rate_found,
                low=0.8,
                high=1.2,
            ),
            claim("slope of the orthogonal deviation in the width", slope, low=-1.2, high=-0.3),
        ],
    }


def draw(result: dict[str, Any]) -> Any:
    """Decay along the component, and the deviation beside it."""
    with plotting.theory_style():
        figure, axes = plotting.new_figure(1, 2)
        time = np.asarray(result["time"])
        for color, (width, curve) in zip(plotting.COLORS, result["curves"].items()):
            axes[0, 0].semilogy(time, np.abs(curve["along"]), color=color, label=f"width {width}")
            axes[0, 1].plot(time, curve["aside"], color=color, label=f"width {width}")
        axes[0, 0].semilogy(
            time,
            0.5 * np.exp(-result["eigenvalue"] * time),
            "k--",
            label="exp(-$\\lambda_2$ t) / 2",
        )
        axes[0, 0].set_ylabel("error along the component")
        axes[0, 1].set_ylabel("move orthogonal to it (rms)")
        axes[0, 1].set_ylim(top=1.4 * max(result["aside"]))  # room for the legend
        axes[0, 1].set_title(f"width to the power {result['slope'][0]:.2f}")
        for axis in axes[0]:
            axis.set_xlabel("time (steps times learning rate)")
            axis.legend(fontsize=8)
        axes[0, 0].set_title(f"mean of {result['seeds']} seeds")
    return figure
