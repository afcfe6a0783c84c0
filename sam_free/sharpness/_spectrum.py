"""Density of the curvature's eigenvalues by stochastic Lanczos quadrature."""

import functools
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from sam_free._checks import check_positive, check_whole
from sam_free.sharpness._data import Array, Data, LossFn, PyTree, gather_data
from sam_free.sharpness._lanczos import lanczos
from sam_free.sharpness._operator import check_curvature, curvature_product


class SpectralDensity(NamedTuple):
    """A smoothed density of eigenvalues that integrates to 1."""

    grid: Array  # [points] eigenvalues
    value: Array  # [points] density
    error: Array  # [points] standard error over the random vectors
    nodes: Array  # [samples, iters] Ritz values of each vector
    weights: Array  # [samples, iters] their weights, which sum to 1


def spectral_density(
    loss_fn: LossFn,
    params: PyTree,
    batches: Iterable[Any],
    *,
    num_iters: int = 40,
    num_samples: int = 8,
    key: Array,
    width: float | None = None,
    grid: Array | None = None,
    num_points: int = 512,
    curvature: str = "hessian",
    devices: Sequence[Any] | None = None,
) -> SpectralDensity:
    """The density of eigenvalues, by stochastic Lanczos quadrature (Ghorbani et al. 2019).

    Each random vector gives a quadrature rule with `num_iters` nodes whose first 2 num_iters - 1
    moments are exact for that vector; a Gaussian of standard deviation `width` around each node
    makes a density (arXiv:1901.10159).

    Args:
      loss_fn, params, batches, curvature, devices: as in `top_eigenvalues`.
      num_iters: nodes of each rule, at most the number of parameters.
      num_samples: random vectors.
      key: for the vectors.
      width: of the Gaussians; by default 1 % of the range of nodes.
      grid: eigenvalues at which the density is wanted; by default num_points over the range of
        nodes and four widths beyond.
      num_points: length of the default grid.
    Returns:
      `grid`, `value`, `error` and the quadrature itself.
    Raises:
      ValueError: an argument is out of its range.
    """
    check_whole("spectral_density", least=1, num_iters=num_iters, num_samples=num_samples)
    check_whole("spectral_density", least=2, num_points=num_points)
    if width is not None:
        check_positive("spectral_density", width=width)
    check_curvature("spectral_density", loss_fn, curvature)
    num_iters = min(num_iters, sum(leaf.size for leaf in jax.tree.leaves(params)))
    data = gather_data(batches, devices=devices)
    nodes, weights = _quadrature(loss_fn, params, data, key, num_iters, num_samples, curvature)
    low, high = jnp.min(nodes), jnp.max(nodes)
    # A matrix with a single eigenvalue has no range to take the width from.
    scale = jnp.maximum(high - low, 1e-3 * jnp.maximum(jnp.abs(high), 1e-3))
    spread = 0.01 * scale if width is None else jnp.asarray(width, nodes.dtype)
    if grid is None:
        grid = jnp.linspace(low - 4 * spread, high + 4 * spread, num_points)
    offset = (grid[None, None, :] - nodes[:, :, None]) / spread
    bumps = jnp.exp(-(offset**2) / 2) / (spread * jnp.sqrt(2 * jnp.pi))
    densities = jnp.sum(weights[:, :, None] * bumps, axis=1)
    error = jnp.full_like(grid, jnp.nan)
    if num_samples > 1:
        error = jnp.std(densities, axis=0, ddof=1) / num_samples**0.5
    return SpectralDensity(grid, jnp.mean(densities, axis=0), error, nodes, weights)


@functools.partial(jax.jit, static_argnums=(0, 4, 5, 6))
def _quadrature(
    loss_fn: LossFn,
    params: PyTree,
    data: Data,
    key: Array,
    num_iters: int,
    num_samples: int,
    curvature: str,
) -> tuple[Array, Array]:
    product, flat = curvature_product(loss_fn, params, data, curvature)

    def sample(own_key: Array) -> tuple[Array, Array]:
        signs = jax.random.rademacher(own_key, flat.shape, flat.dtype)
        ritz = lanczos(product, signs, num_iters)
        weights = jnp.where(ritz.valid, ritz.first**2, 0.0)
        # Nodes without weight stand on the largest one, so that they do not stretch the range.
        anchor = ritz.values[jnp.argmax(weights)]
        return jnp.where(ritz.valid, ritz.values, anchor), weights

    return jax.lax.map(sample, jax.random.split(key, num_samples))
