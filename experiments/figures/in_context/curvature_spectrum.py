"""The curvature of softmax regression lies in [-5/16, 0.359], not in [-4, 8].

For every n from 2 to 12 an optimiser looks for the least and largest eigenvalue of B over all
softmax vectors and directions, with the worst target in the simplex or in the unit ball.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from experiments.figures import claim
from in_context.softmax_regression import spectrum_bounds
from shared import plotting


def rayleigh(parts: tuple, present: jax.Array, sign: float, simplex: bool) -> jax.Array:
    """h^T B h for the worst b: the second derivative of softmax is linear in the target.

    Rows that are not `present` have no mass and no direction, so one program serves every n.
    """
    u, h = parts
    f = jnp.where(present, u**2, 0.0)  # unlike a softmax, reaches the faces of the simplex
    f = f / jnp.sum(f)
    h = jnp.where(present, h, 0.0)
    h = h / jnp.linalg.norm(h)
    h = h - jnp.sum(f * h)
    bend = f * (h**2 - jnp.sum(f * h**2))  # D^2 softmax [h, h]
    free = jnp.sum((f * h) ** 2) + jnp.sum(f * bend)
    # Vertices of the simplex are alike up to the order of the rows, so the first stands for all.
    worst = -bend[0] if simplex else sign * jnp.linalg.norm(bend)
    return free + worst


def compute(fast: bool) -> dict[str, Any]:
    """Extremes over (softmax vector, direction) from many random starts."""
    sizes = (2, 3, 5) if fast else tuple(range(2, 13))
    starts, steps = (24, 800) if fast else (48, 2000)
    found: dict[str, list[float]] = {}
    with jax.enable_x64(True):
        for simplex in (True, False):
            for sign, name in ((-1.0, "low"), (1.0, "high")):
                label = f"{'simplex' if simplex else 'ball'} {name}"
                found[label] = extremes(sizes, sign, simplex, starts, steps)
        corner = np.eye(3)[0]
        sphere = np.array([0.6, -0.8, 0.0])
        bounds = {"simplex": spectrum_bounds(corner), "ball": spectrum_bounds(sphere)}
    known = {
        f"{kind} {side}": float(getattr(value, side))
        for kind, value in bounds.items()
        for side in ("low", "high")
    }
    bar = 1e-4 if fast else 1e-6  # the digits that the bounds are quoted to
    claims = []
    for label, values in found.items():
        gap = max(abs(value - known[label]) for value in values)
        claims.append(claim(f"{label}: largest |found - bound| over n", gap, high=bar))
        beyond = max((known[label] - v) * (1 if "low" in label else -1) for v in values)
        claims.append(claim(f"{label}: found beyond the bound", beyond, high=1e-9))
    return {
        "data": f"{starts} random starts and {steps} Adam steps each; float64",
        "seeds": [0],
        "sizes": list(sizes),
        "found": found,
        "bounds": known,
        "claims": claims,
    }


def extremes(
    sizes: tuple[int, ...], sign: float, simplex: bool, starts: int, steps: int
) -> list[float]:
    """For every n the least (sign -1) or largest (sign 1) value that Adam finds."""
    optimizer = optax.adam(optax.cosine_decay_schedule(0.1, steps))
    largest = max(sizes)

    def run(key, n):
        present = jnp.arange(largest) < n

        def objective(parts):
            return -sign * rayleigh(parts, present, sign, simplex)

        first, second = jax.random.split(key)
        parts = (jax.random.normal(first, (largest,)), jax.random.normal(second, (largest,)))

        def step(carry, _):
            parts, state = carry
            updates, state = optimizer.update(jax.grad(objective)(parts), state)
            return (optax.apply_updates(parts, updates), state), None

        (parts, _), _ = jax.lax.scan(step, (parts, optimizer.init(parts)), length=steps)
        return objective(parts)

    keys = jax.random.split(jax.random.key(0), starts)
    values = jax.jit(jax.vmap(jax.vmap(run, (0, None)), (None, 0)))(keys, jnp.array(sizes))
    return (-sign * np.min(np.asarray(values), axis=1)).tolist()


def draw(result: dict[str, Any]):
    """What was found for each n, on the bounds."""
    figure, axes = plotting.new_figure(width=5.2)
    axis = axes[0, 0]
    for place, (label, values) in enumerate(result["found"].items()):
        color = plotting.COLORS[place // 2]
        axis.plot(
            result["sizes"], values, "ov"[place // 2], color=color, label=f"found, b in {label}"
        )
        axis.axhline(result["bounds"][label], color=color, linewidth=1)
    axis.set(xlabel="n, rows of A", ylabel="extreme eigenvalue of B", ylim=(-0.5, 0.75))
    axis.set_xticks(result["sizes"])
    axis.set_title("published interval: [-4, 8]; lines: bounds of the package")
    axis.legend(ncols=2, fontsize=8, loc="upper center")
    return figure
