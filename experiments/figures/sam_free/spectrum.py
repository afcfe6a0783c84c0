"""Lanczos finds the edges of a Hessian's spectrum and its density, with error bars that hold.

A small network is trained on the digits, so that its whole Hessian can be formed and its exact
eigenvalues drawn beside what products with a vector alone tell: the density by stochastic Lanczos
quadrature, and the largest and smallest eigenvalue with the norm of their residual.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree
from matplotlib.figure import Figure

import sam_free
from experiments.figures import claim
from sam_free import sharpness
from shared import data, models, plotting

WIDTH = 8


def compute(fast: bool) -> dict[str, Any]:
    """Exact and estimated spectra of the mean loss over the training set."""
    num_iters, num_samples, steps = (40, 4, 60) if fast else (60, 16, 300)
    with jax.enable_x64(True):
        train, _ = data.digits()
        keep = 256 if fast else train.num_examples
        batch = {
            "image": jnp.asarray(train.arrays["image"][:keep], jnp.float64),
            "label": jnp.asarray(train.arrays["label"][:keep]),
        }
        model = models.mlp(num_outputs=10, width=WIDTH, depth=1)
        params, _ = model.init(jax.random.key(0), batch["image"][:1])
        params = jax.tree.map(lambda w: w.astype(jnp.float64), params)

        def loss_fn(params: Any, batch: Any) -> jax.Array:
            logits, _ = model.apply(params, (), batch["image"], train=False, key=None)
            return jnp.mean(sam_free.cross_entropy(logits, batch))

        def descend(params: Any, _: Any) -> tuple[Any, None]:
            grads = jax.grad(loss_fn)(params, batch)
            return jax.tree.map(lambda w, g: w - 0.5 * g, params, grads), None

        params, _ = jax.jit(lambda p: jax.lax.scan(descend, p, None, length=steps))(params)
        flat, unravel = ravel_pytree(params)
        hessian = jax.jit(jax.hessian(lambda v: loss_fn(unravel(v), batch)))(flat)
        exact = np.linalg.eigvalsh(np.asarray(hessian))
        key = jax.random.key(1)
        width = float(0.01 * (exact[-1] - exact[0]))
        density = sharpness.spectral_density(
            loss_fn,
            params,
            [batch],
            num_iters=num_iters,
            num_samples=num_samples,
            key=key,
            width=width,
        )
        edges = {
            which: sharpness.top_eigenvalues(
                loss_fn, params, [batch], which=which, num_iters=num_iters, key=key
            )
            for which in ("LA", "SA")
        }
        grid, value, error = (np.asarray(x) for x in density[:3])
        found = {
            which: [float(edge.value[0]), float(edge.error[0])] for which, edge in edges.items()
        }
    bumps = np.exp(-(((grid[:, None] - exact) / width) ** 2) / 2).mean(axis=1)
    truth = bumps / (width * np.sqrt(2 * np.pi))
    seen = truth > 1e-2 * truth.max()
    score = np.abs(value - truth)[seen] / np.maximum(error[seen], 1e-12)
    return {
        "data": f"digits, {keep} examples, {flat.size} parameters, {steps} steps",
        "seeds": [0],
        "num_samples": num_samples,
        "grid": grid.tolist(),
        "value": value.tolist(),
        "error": error.tolist(),
        "truth": truth.tolist(),
        "edges": found,
        "claims": [
            claim(
                "relative error of the largest eigenvalue",
                abs(found["LA"][0] / exact[-1] - 1),
                high=1e-4,
            ),
            claim(
                "relative error of the smallest eigenvalue",
                abs(found["SA"][0] / exact[0] - 1),
                high=1e-4,
            ),
            claim(
                "misses of the density within 4 standard errors",
                float(np.mean(score < 4)),
                low=0.8 if fast else 0.95,
            ),
        ],
    }


def draw(result: dict[str, Any]) -> Figure:
    """Density on a logarithmic axis, exact and estimated, with the edges."""
    figure, axes = plotting.new_figure(width=5.6)
    axis = axes[0, 0]
    grid, value, error = (np.array(result[name]) for name in ("grid", "value", "error"))
    axis.plot(grid, result["truth"], color=plotting.COLORS[6], label="all eigenvalues", lw=1.0)
    axis.plot(
        grid, value, color=plotting.COLORS[0], label=f"Lanczos, {result['num_samples']} vectors"
    )
    axis.fill_between(
        grid,
        np.maximum(value - 2 * error, 1e-12),
        value + 2 * error,
        color=plotting.COLORS[0],
        alpha=0.3,
        label="2 standard errors",
    )
    for which, label in (("SA", "smallest and largest"), ("LA", None)):
        axis.axvline(result["edges"][which][0], color=plotting.COLORS[1], ls="--", label=label)
    axis.set_yscale("log")
    axis.set_ylim(1e-4, 3 * max(result["truth"]))
    axis.set_xlabel("eigenvalue of the Hessian")
    axis.set_ylabel("density")
    axis.set_title(result["data"], fontsize=9)
    axis.legend(fontsize=8)
    return figure
