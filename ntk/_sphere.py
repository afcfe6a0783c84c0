"""Kernels on the sphere: as functions of the cosine, and their eigenvalues."""

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

Array = jax.Array


def cosine_form(
    kernel_fn: Callable[..., Any], dimension: int, *, get: str = "ntk", norm: float = 1.0
) -> Callable[[Array], Array]:
    """h with K(x, y) = h(cos angle(x, y)) for inputs of one norm.

    Args:
      kernel_fn: of a network that is invariant under rotations, such as a fully connected one.
      dimension: of the inputs, at least 2.
      get: "ntk" or "nngp".
      norm: of the inputs.
    Returns:
      A function of cosines [k] to kernels [k].
    """
    if dimension < 2:
        raise ValueError(f"cosine_form: dimension must be at least 2, got {dimension}.")

    def h(cosine: Array) -> Array:
        cosine = jnp.asarray(cosine)
        flat = cosine.reshape(-1)
        sine = jnp.sqrt(jnp.maximum((1 - flat) * (1 + flat), 0))
        rest = jnp.zeros((flat.size, dimension - 2), flat.dtype)
        points = jnp.concatenate([flat[:, None], sine[:, None], rest], axis=1) * norm
        pole = jnp.zeros((1, dimension), flat.dtype).at[0, 0].set(norm)
        return kernel_fn(pole, points, get)[0].reshape(cosine.shape)

    return h


def multiplicity(dimension: int, degree: int) -> int:
    """Number of independent spherical harmonics of a degree on the sphere in R^dimension.

    >>> [multiplicity(3, k) for k in range(4)]
    [1, 3, 5, 7]
    """
    if degree == 0:
        return 1
    first = math.comb(degree + dimension - 2, degree)
    return first + math.comb(degree + dimension - 3, degree - 1)


def sphere_spectrum(
    h: Callable[[Array], Array], dimension: int, max_degree: int, *, nodes: int | None = None
) -> Array:
    """Eigenvalues of the kernel h(<x, y>) under the uniform law on the sphere (Funk-Hecke).

    Args:
      h: function of cosines.
      dimension: of the space that holds the sphere, at least 2.
      max_degree: highest degree of the harmonics.
      nodes: of the quadrature in the angle; None for enough to resolve the degree.
    Returns:
      Eigenvalues of degrees 0 to max_degree, [max_degree + 1]; each has `multiplicity` copies.
    """
    if dimension < 2 or max_degree < 0:
        raise ValueError(
            f"sphere_spectrum: dimension must be >= 2 and max_degree >= 0, got {dimension} and "
            f"{max_degree}."
        )
    nodes = 200 + 2 * max_degree if nodes is None else nodes
    # In the angle the kernels of kinked networks are smooth; in the cosine they are not.
    x, w = np.polynomial.legendre.leggauss(nodes)
    angle = (x + 1) * (math.pi / 2)
    cosine = jnp.asarray(np.cos(angle))
    density = w * np.sin(angle) ** (dimension - 2)
    weights = jnp.asarray(density / np.sum(density)) * h(cosine)
    polynomials = [jnp.ones_like(cosine), cosine]
    for k in range(1, max_degree):
        # Gegenbauer polynomials with value 1 at 1.
        ahead = (2 * k + dimension - 2) * cosine * polynomials[k] - k * polynomials[k - 1]
        polynomials.append(ahead / (k + dimension - 2))
    return jnp.stack([jnp.sum(weights * p) for p in polynomials[: max_degree + 1]])
