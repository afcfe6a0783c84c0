"""Gaussian averages of any function by quadrature: panels end where the function has a kink.

With u = s1 (c x - s y) and v = s2 (c y' ...) written below, x and y independent standard normals,
the lines u = t and v = t at a kink t cut the plane; between them everything is smooth. The inner
integral splits at these lines, the outer one where two of them meet, so no panel holds a kink,
whatever the correlation.
"""

import itertools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

Array = jax.Array
Function = Callable[[Any], Any]

#: Panels reach this many standard deviations: exp(-9.5^2 / 2) is 3e-20.
REACH = 9.5
#: Gauss-Legendre nodes of a panel.
NODES = 20
#: Widest panel, in standard deviations.
WIDTH = 2.4


def find_kinks(fn: Function, reach: float = 64.0, tolerance: float = 1e-11) -> tuple[float, ...]:
    """Points where a function, or a derivative of it, jumps, found by bisection.

    Args:
      fn: of one number; it is evaluated on NumPy arrays of float64 through JAX.
      reach: where to look, on both sides of zero.
      tolerance: of the local polynomial fits, relative to the size of the function nearby.
    """
    with jax.enable_x64(True), jax.ensure_compile_time_eval():

        def values(points):
            return np.asarray(jax.vmap(fn)(jnp.asarray(points, jnp.float64)), np.float64)

        order = 16
        nodes = np.cos(np.pi * (np.arange(order) + 0.5) / order)
        checks = np.linspace(-0.97, 0.97, 12)
        to_checks = np.polynomial.chebyshev.chebvander(checks, order - 1) @ np.linalg.inv(
            np.polynomial.chebyshev.chebvander(nodes, order - 1)
        )
        # Off-centre cuts: a kink at 0 must not hide on the edge of two panels.
        edges = np.linspace(-reach, reach * 1.037, 97)
        panels: list[Any] = [(a, b, None) for a, b in itertools.pairwise(edges)]
        found: list[tuple[float, float]] = []
        for _ in range(60):
            if not panels:
                break
            low, high = np.array([(a, b) for a, b, _ in panels]).T
            # Panels overlap by a tenth, so that no kink hides on a common edge.
            middle, half = (low + high) / 2, 1.1 * (high - low) / 2
            seen = values((middle[:, None] + half[:, None] * nodes).ravel()).reshape(-1, order)
            truth = values((middle[:, None] + half[:, None] * checks).ravel())
            truth = truth.reshape(-1, len(checks))
            size = np.maximum(np.max(np.abs(seen), axis=1), 1e-3)
            bad = np.max(np.abs(seen @ to_checks.T - truth), axis=1) > tolerance * size
            bad |= ~np.isfinite(truth).all(axis=1)
            parents = {parent for (_, _, parent), wrong in zip(panels, bad) if wrong}
            # A narrow panel that fails while its halves pass holds a kink on its cut or within.
            found += [p for p in {p for _, _, p in panels} - parents if p and p[1] < 2e-4]
            wrong = [panel for panel, is_bad in zip(panels, bad) if is_bad]
            panels = []
            for a, b, _ in wrong:
                m, h = (a + b) / 2, (b - a) / 2
                if h < 1e-11 * max(1.0, abs(m)):
                    found.append((m, h))
                else:
                    cut = m + 0.031 * h
                    panels += [(a, cut, (m, h)), (cut, b, (m, h))]
    kinks: list[float] = []
    for middle, half in sorted(found):
        point = _simplest(middle, half)
        if not kinks or point - kinks[-1] > max(1e-7, 8 * half):
            kinks.append(point)
    return tuple(kinks)


def _simplest(middle: float, half: float) -> float:
    """The number with the fewest decimals within `half` of `middle`, or `middle`."""
    for digits in range(9):
        if abs(round(middle, digits) - middle) <= half:
            return float(round(middle, digits)) + 0.0
    return float(middle)


def _panels(breaks: Array, deg: int) -> tuple[Array, Array]:
    """Nodes and normal weights on [-REACH, REACH], cut at sorted breaks and every WIDTH.

    Args:
      breaks: [..., B]; anything outside the range is moved to its ends.
      deg: nodes of a panel.
    Returns:
      Nodes and weights, [..., panels * deg].
    """
    grid = np.linspace(-REACH, REACH, int(np.ceil(2 * REACH / WIDTH)) + 1)
    fixed = jnp.broadcast_to(jnp.asarray(grid, breaks.dtype), breaks.shape[:-1] + grid.shape)
    edges = jnp.sort(jnp.concatenate([fixed, jnp.clip(breaks, -REACH, REACH)], axis=-1), axis=-1)
    x, w = np.polynomial.legendre.leggauss(deg)
    x, w = (jnp.asarray(a, breaks.dtype).reshape((1,) * breaks.ndim + (-1,)) for a in (x, w))
    low, high = edges[..., :-1, None], edges[..., 1:, None]
    points = (low + high) / 2 + (high - low) / 2 * x
    weights = (high - low) / 2 * w
    weights = weights * jnp.exp(-points * points / 2) / np.sqrt(2 * np.pi)
    shape = breaks.shape[:-1] + (-1,)
    return points.reshape(shape), weights.reshape(shape)


def pair_average(
    f: Function,
    g: Function,
    kinks: Sequence[float],
    s1: Array,
    s2: Array,
    cosine_half: Array,
    sine_half: Array,
    deg: int,
) -> Array:
    """E[f(u) g(v)] for one pair: u = s1 (c x - s y), v = s2 (c x + s y).

    Args:
      f, g: functions of one number, smooth but at the kinks.
      kinks: where.
      s1, s2: standard deviations, scalars.
      cosine_half, sine_half: of half the angle between u and v.
      deg: nodes of a panel.
    """
    dtype = s1.dtype
    # The inner variable is the one along which both breaking lines run flattest.
    swap = cosine_half < sine_half
    c = jnp.where(swap, sine_half, cosine_half)
    s = jnp.where(swap, cosine_half, sine_half)
    sign = jnp.where(swap, -1, 1).astype(dtype)
    points = jnp.asarray(list(kinks), dtype)
    t1 = points / jnp.where(s1 > 0, s1, 1)
    t2 = sign * points / jnp.where(s2 > 0, s2, 1)
    # u / s1 = c x - s y and sign v / s2 = c x + s y: lines at t1_i and t2_j meet at
    # y = (t2_j - t1_i) / (2 s).
    meet = (t2[None, :] - t1[:, None]).reshape(-1)
    tiny = jnp.asarray(1e-30, dtype)
    outer = jnp.where(s > tiny, meet / (2 * jnp.where(s > tiny, s, 1)), REACH)
    y, weight_y = _panels(outer, deg)
    breaks = jnp.concatenate(
        [(t1[None, :] + s * y[:, None]) / c, (t2[None, :] - s * y[:, None]) / c], axis=-1
    )
    x, weight_x = _panels(breaks, deg)
    u = s1 * (c * x - s * y[:, None])
    v = sign * s2 * (c * x + s * y[:, None])
    inner = jnp.sum(weight_x * f(u) * g(v), axis=-1)
    return jnp.sum(weight_y * inner)


def gauss_hermite_average(
    f: Function, g: Function, cross: Array, var1: Array, var2: Array, deg: int
) -> Array:
    """E[f(u) g(v)] by deg x deg Gauss-Hermite nodes, as in arXiv:2209.04121; for smooth f, g.

    Args:
      f, g: functions of arrays.
      cross, var1, var2: covariance and variances, of shapes that broadcast.
      deg: nodes in each direction.
    """
    nodes, weights = np.polynomial.hermite.hermgauss(deg)
    x = jnp.asarray(np.sqrt(2) * nodes, cross.dtype)
    w = jnp.asarray(weights / np.sqrt(np.pi), cross.dtype)
    s1, s2 = jnp.sqrt(var1), jnp.sqrt(var2)
    norm = s1 * s2
    cosine = jnp.clip(jnp.where(norm > 0, cross / jnp.where(norm > 0, norm, 1), 0), -1, 1)
    left = 1 - cosine * cosine
    sine = jnp.where(left > 0, jnp.sqrt(jnp.where(left > 0, left, 1)), 0)

    def step(total, i):
        row = f(s1 * x[i])

        def inner(partial, j):
            v = s2 * (cosine * x[i] + sine * x[j])
            return partial + w[j] * g(v), None

        column, _ = jax.lax.scan(inner, jnp.zeros_like(cosine), jnp.arange(deg))
        return total + w[i] * row * column, None

    total, _ = jax.lax.scan(step, jnp.zeros_like(cosine), jnp.arange(deg))
    return total
