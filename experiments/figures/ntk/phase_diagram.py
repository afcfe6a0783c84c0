"""Deep random networks are ordered where sigma_w^2 E[phi'^2] < 1 and chaotic beyond that line.

Poole et al. (arXiv:1606.05340), Figure 1, and Schoenholz et al. (arXiv:1611.01232), with phi = erf:
the correlation of two inputs after many layers, over the variances of weights and biases. Without
biases the line starts at sigma_w^2 = pi / 4, where sigma_w^2 phi'(0)^2 = 1.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments.figures import claim
from ntk import stax
from shared import plotting

DEPTH = 100
COSINE = 0.6  # of the two inputs


def after_layers(weight: Any, bias: Any, depth: int = DEPTH) -> tuple[jax.Array, jax.Array]:
    """Correlation of two inputs after `depth` layers, and sigma_w^2 E[phi'^2] there."""
    x = jnp.array([[1.0, 0.0], [COSINE, (1 - COSINE**2) ** 0.5]]) * 2**0.5
    block = (stax.Dense(1, jnp.sqrt(weight), jnp.sqrt(bias)), stax.Erf())
    _, _, kernel_fn = stax.serial(*block * depth, block[0])
    kernel = kernel_fn(x, None)
    correlation = kernel.nngp[0, 1] / jnp.sqrt(kernel.nngp[0, 0] * kernel.nngp[1, 1])
    # A unit tangent kernel passes through the nonlinearity multiplied by E[phi'(u) phi'(v)].
    slope = stax.Erf()[2](kernel.replace(ntk=jnp.ones((2, 2))), get="ntk")[0, 0]
    return correlation, weight * slope


def compute(fast: bool) -> dict[str, Any]:
    """The map over variances, and where the line meets the axis."""
    size = 16 if fast else 48
    weights, biases = np.linspace(0.1, 4.0, size), np.linspace(0.0, 0.6, size)
    with jax.enable_x64(True):
        run = jax.jit(jax.vmap(jax.vmap(after_layers, (0, None)), (None, 0)))
        correlation, chi = map(np.asarray, run(jnp.asarray(weights), jnp.asarray(biases)))
        # chi grows with the weights; without biases it passes 1 where the order is lost.
        fine = np.linspace(0.7, 0.87, 18)
        # Variances fall like 1 / depth on the line, hence the depth.
        _, on_axis = jax.jit(jax.vmap(lambda w: after_layers(w, 0.0, 3000)))(jnp.asarray(fine))
    on_axis = np.asarray(on_axis)
    critical = float(np.interp(1.0, on_axis, fine))
    clear = np.abs(chi - 1) > 0.1  # nearer the line 100 layers are not enough
    # Without biases the ordered phase shrinks the inputs until erf is linear: angles then stay.
    clear &= biases[:, None] > 0
    agree = float(np.mean((correlation[clear] > 0.999) == (chi[clear] < 1)))
    return {
        "weights": weights.tolist(),
        "biases": biases.tolist(),
        "correlation": correlation.tolist(),
        "chi": chi.tolist(),
        "data": f"two inputs with cosine {COSINE}, {DEPTH} layers, infinite width, float64",
        "seeds": "none: a deterministic recursion",
        "claims": [
            claim("critical sigma_w^2 without biases, over pi / 4", critical / (np.pi / 4),
                  low=0.97, high=1.03),
            claim("share of the map where order and chi < 1 coincide", agree, low=0.99),
        ],
    }  # fmt: skip


def draw(result: dict[str, Any]):
    """The correlation as a map, with the line chi = 1 on it."""
    figure, axes = plotting.new_figure(width=5.2, height=3.6)
    axis = axes[0, 0]
    weights, biases = np.array(result["weights"]), np.array(result["biases"])
    mesh = axis.pcolormesh(weights, biases, np.array(result["correlation"]), cmap="viridis",
                           vmin=0, vmax=1, shading="nearest", rasterized=True)  # fmt: skip
    axis.contour(weights, biases, np.array(result["chi"]), levels=[1.0], colors="white")
    axis.text(0.35, 0.35, "ordered", color="black")
    axis.text(2.6, 0.12, "chaotic", color="white")
    axis.plot([np.pi / 4], [0], "o", color=plotting.COLORS[1], clip_on=False, zorder=5)
    axis.grid(False)
    axis.set_xlabel("weight variance $\\sigma_w^2$ (dot: $\\pi/4$)")
    axis.set_ylabel("bias variance $\\sigma_b^2$")
    axis.set_title("erf networks: correlation of two inputs after 100 layers; line: $\\chi_1 = 1$")
    figure.colorbar(mesh, ax=axis, label="correlation")
    return figure
