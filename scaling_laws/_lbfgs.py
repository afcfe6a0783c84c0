"""Projected L-BFGS as a step function for the lanes of `_levenberg.queue`.

It needs gradients only and shares no step with Levenberg-Marquardt, so one checks the other.
"""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from scaling_laws import _levenberg

MEMORY = 10
LENGTHS = (2.0, 1.0, 0.5, 0.1, 0.01, 1e-3, 1e-5)  # of the step, tried together
CURVATURE = 1e-12  # pairs with less, relative to the step's own length, are not remembered


class _Lane(NamedTuple):
    z: Any
    objective: Any
    gradient: Any
    moves: Any  # [memory, parameters], newest last
    changes: Any  # of the gradient
    products: Any  # 1 / (move . change), 0 where the row is empty
    iteration: Any
    quiet: Any
    finished: Any


@partial(jax.jit, static_argnames=("residual", "kind", "lanes"))
def run(residual, batch, problems, delta, tolerance, max_iterations, *, kind, lanes):
    """Same arguments and outputs as `_levenberg._run`."""
    # The sum of Huber terms is about 1e-3 for a good fit; the shape matters, the size does not.
    objective_of = partial(_levenberg.total, residual, kind, delta)
    with_slope = jax.value_and_grad(objective_of)

    def begin(z, data):
        z = jnp.clip(z, data[3], data[4])
        objective, gradient = with_slope(z, data)
        blank = jnp.zeros((MEMORY, z.shape[0]))
        return _Lane(
            z=z,
            objective=objective,
            gradient=gradient,
            moves=blank,
            changes=blank,
            products=jnp.zeros(MEMORY),
            iteration=jnp.asarray(0),
            quiet=jnp.asarray(0),
            finished=~jnp.isfinite(objective),
        )

    def step(lane, data):
        lower, upper = data[3], data[4]
        stuck = ((lane.z <= lower) & (lane.gradient > 0)) | (
            (lane.z >= upper) & (lane.gradient < 0)
        )
        gradient = jnp.where(stuck, 0.0, lane.gradient)
        direction = jnp.where(stuck, 0.0, -_two_loops(lane, gradient))
        downhill = direction @ gradient < 0
        steepest = -gradient / jnp.maximum(jnp.max(jnp.abs(gradient)), 1e-300)
        direction = jnp.where(downhill, direction, 0.1 * steepest)
        direction = jnp.clip(direction, -_levenberg.LONGEST_MOVE, _levenberg.LONGEST_MOVE)

        def attempt(length):
            z = jnp.clip(lane.z + length * direction, lower, upper)
            return z, objective_of(z, data)

        tried, objectives = jax.vmap(attempt)(jnp.asarray(LENGTHS))
        best = jnp.argmin(objectives)
        better = objectives[best] < lane.objective
        z = jnp.where(better, tried[best], lane.z)
        objective, new_gradient = with_slope(z, data)
        move, change = z - lane.z, new_gradient - lane.gradient
        product = move @ change
        keep = better & (product > CURVATURE * jnp.sqrt((move @ move) * (change @ change)))

        def push(table, row):
            return jnp.where(keep, jnp.concatenate([table[1:], row[None]]), table)

        moves, changes = push(lane.moves, move), push(lane.changes, change)
        products = push(lane.products, jnp.where(keep, 1 / jnp.where(keep, product, 1.0), 0.0))
        # No progress: the memory misleads. Forget it, and stop if that does not help either.
        products = jnp.where(better, products, 0.0)
        small = lane.objective - objective <= tolerance * jnp.abs(lane.objective)
        quiet = jnp.where(small, lane.quiet + 1, 0)
        iteration = lane.iteration + 1
        return _Lane(
            z=z,
            objective=objective,
            gradient=new_gradient,
            moves=moves,
            changes=changes,
            products=products,
            iteration=iteration,
            quiet=quiet,
            finished=lane.finished | (quiet >= 4) | (iteration >= max_iterations),
        )

    return _levenberg.queue(batch, problems, lanes, begin, step)


def _two_loops(lane, gradient):
    """The inverse Hessian of the remembered pairs times the gradient (Nocedal & Wright, 7.4)."""
    left = [None] * MEMORY
    for i in reversed(range(MEMORY)):
        left[i] = lane.products[i] * (lane.moves[i] @ gradient)
        gradient = gradient - left[i] * lane.changes[i]
    filled = lane.products[-1] > 0
    length = lane.changes[-1] @ lane.changes[-1]
    scale = 1 / jnp.where(filled, lane.products[-1] * length, 1.0)
    gradient = jnp.where(filled, scale, 1.0) * gradient
    for i in range(MEMORY):
        right = lane.products[i] * (lane.changes[i] @ gradient)
        gradient = gradient + lane.moves[i] * (left[i] - right)
    return gradient
