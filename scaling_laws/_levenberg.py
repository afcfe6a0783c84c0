"""Many small robust least-squares problems as one compiled batch.

A fixed number of lanes works through a queue: a lane that has converged writes its answer and takes
the next problem in the same iteration. So nothing waits for the slowest problem, the working set
stays in the cache, and one program serves any number of problems.
"""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from scaling_laws import _robust

MOST_PROGRAMS = 32  # that one function keeps


def bounded(function: Any):
    """A jitted function, its programs forgotten once they are too many.

    A program on a CPU holds some 450 memory maps of the 65,530 that Linux gives a process, and when
    they are gone the compiler crashes: a session of many laws and data sizes would end there.
    """
    if function._cache_size() >= MOST_PROGRAMS:
        function.clear_cache()
    return function


class Batch(NamedTuple):
    """What the problems share and what is their own.

    Leading axes: `inputs` leaves [sets, ...], `targets` [sets of targets, points], `weights`
    [sets of weights, points], `lower` and `upper` [sets of bounds, parameters]. `which` has the
    row of each for every problem, [problems, 4]; an axis of length 1 is shared and never gathered.
    """

    start: Any  # [problems, parameters]
    inputs: Any
    targets: Any
    weights: Any
    lower: Any
    upper: Any
    which: Any


class Solution(NamedTuple):
    """One row per problem."""

    z: Any  # [problems, parameters]
    objective: Any  # [problems]
    converged: Any  # [problems], bool
    iterations: Any  # [problems], int


class _Lane(NamedTuple):
    z: Any
    objective: Any
    damping: Any
    iteration: Any
    quiet: Any  # consecutive iterations that changed nothing that counts
    finished: Any


def solve(
    residual,
    batch: Batch,
    *,
    kind,
    delta,
    tolerance=1e-10,
    max_iterations=200,
    lanes=64,
    room=1,
    method="lm",
) -> Solution:
    """Minimises sum_i weight_i rho(residual_i) for every problem of the batch.

    Args:
      residual: (z, inputs, targets) -> [points]; hashable, since compiled code is kept by it.
      batch: arrays of any float type; they are computed in float64.
      kind, delta: see `_robust`. delta may change without a new compilation.
      tolerance: a problem is finished when two iterations in a row lower the objective by less
        than this fraction, or when heavy damping finds no lower point.
      max_iterations: per problem.
      lanes: problems that advance together.
      room: compile for at least so many problems, so that a later call with more is served too.
      method: "lm", Levenberg-Marquardt whose weights go from reweighted least squares to Newton's
        as the damping falls; "lbfgs", projected L-BFGS.
    """
    from scaling_laws import _lbfgs

    problems = len(batch.start)
    room = max(room, problems)
    lanes = int(min(lanes, 2 ** int(np.ceil(np.log2(room)))))
    run = bounded({"lm": _run, "lbfgs": _lbfgs.run}[method])
    with jax.enable_x64(True):
        padded = _pad(batch, lanes, room)
        z, objective, converged, iterations = run(
            residual,
            jax.tree.map(jnp.asarray, padded),
            jnp.asarray(problems),
            jnp.asarray(float(delta)),
            jnp.asarray(float(tolerance)),
            jnp.asarray(int(max_iterations)),
            kind=kind,
            lanes=lanes,
        )
        return Solution(
            *(np.asarray(leaf)[:problems] for leaf in (z, objective, converged, iterations))
        )


def _pad(batch, lanes, room):
    """Rounds the number of problems up, so that few sizes are ever compiled."""
    problems = len(batch.start)
    size = lanes
    while size < room:
        size *= 2
    extra = size - problems
    which = np.asarray(batch.which, dtype=np.int64).reshape(problems, 4)
    start = np.asarray(batch.start, dtype=np.float64)
    as_float = partial(np.asarray, dtype=np.float64)
    return Batch(
        start=np.concatenate([start, np.repeat(start[:1], extra, axis=0)]),
        inputs=jax.tree.map(np.asarray, batch.inputs),
        targets=as_float(batch.targets),
        weights=as_float(batch.weights),
        lower=as_float(batch.lower),
        upper=as_float(batch.upper),
        which=np.concatenate([which, np.zeros((extra, 4), np.int64)]),
    )


def gather(batch: Batch, index):
    """The (inputs, targets, weights, lower, upper) of problem `index`."""
    which = batch.which[index]

    def pick(table, row):
        return table[0] if table.shape[0] == 1 else table[row]

    return (
        jax.tree.map(lambda leaf: pick(leaf, which[0]), batch.inputs),
        pick(batch.targets, which[1]),
        pick(batch.weights, which[2]),
        pick(batch.lower, which[3]),
        pick(batch.upper, which[3]),
    )


def queue(batch: Batch, problems, lanes, begin, step):
    """Runs `step` on `lanes` problems at a time until all `problems` have finished.

    Args:
      begin: (z, data) -> lane, `data` as `gather` returns it.
      step: (lane, data) -> lane; a lane has at least `z`, `objective`, `iteration`, `finished`
        and `quiet`.
    Returns:
      z, objective, converged, iterations, by problem.
    """
    total, width = batch.start.shape
    z_out = jnp.zeros((total + 1, width))
    objective_out = jnp.zeros(total + 1)
    done_out = jnp.zeros(total + 1, bool)
    iterations_out = jnp.zeros(total + 1, int)

    def start(index):
        return begin(batch.start[index], gather(batch, index))

    def condition(carry):
        index = carry[0]
        return jnp.any(index < problems)

    def body(carry):
        index, upcoming, lane, outputs = carry
        lane = jax.vmap(lambda lane, index: step(lane, gather(batch, index)))(lane, index)
        finished = lane.finished & (index < problems)
        # Row `total` is a bin for lanes that have nothing to write.
        row = jnp.where(finished, index, total)
        values = (lane.z, lane.objective, lane.quiet > 0, lane.iteration)
        outputs = tuple(table.at[row].set(new) for table, new in zip(outputs, values))

        def refill(args):
            lane, index, upcoming = args
            fresh_index = upcoming + jnp.cumsum(finished) - 1
            fresh = jax.vmap(start)(jnp.minimum(fresh_index, total - 1))

            def choose(old, new):
                shape = finished.shape + (1,) * (old.ndim - 1)
                return jnp.where(finished.reshape(shape), new, old)

            lane = jax.tree.map(choose, lane, fresh)
            index = jnp.where(finished, fresh_index, index)
            return lane, index, upcoming + jnp.sum(finished)

        lane, index, upcoming = jax.lax.cond(
            jnp.any(finished), refill, lambda args: args, (lane, index, upcoming)
        )
        index = jnp.where(index < problems, index, total)
        return index, upcoming, lane, outputs

    index = jnp.arange(lanes)
    lane = jax.vmap(start)(jnp.minimum(index, total - 1))
    index = jnp.where(index < problems, index, total)
    carry = (index, jnp.asarray(lanes), lane, (z_out, objective_out, done_out, iterations_out))
    outputs = jax.lax.while_loop(condition, body, carry)[3]
    return tuple(table[:total] for table in outputs)


# Scaled parameters are logarithms and exponents of order 1. A longer move in one of them comes from
# a column that vanishes at this point, and says little about where to go.
LONGEST_MOVE = 8.0
DAMPINGS = (0.02, 0.2, 2.0)  # tried together at every step, as multiples of the current one
FIRST_DAMPING = 1e-2
BENT = 0.75  # a step is bent along its valley when its turn is at most so long beside it
HEAVY_DAMPING = 1e3


def finite(move):
    """The move, 0 where it is not a number."""
    return jnp.where(jnp.isfinite(move), move, 0.0)


@partial(jax.jit, static_argnames=("residual", "kind", "lanes"))
def _run(residual, batch, problems, delta, tolerance, max_iterations, *, kind, lanes):
    objective_of = partial(total, residual, kind, delta)

    def begin(z, data):
        z = jnp.clip(z, data[3], data[4])
        objective = objective_of(z, data)
        return _Lane(
            z=z,
            objective=objective,
            damping=jnp.asarray(FIRST_DAMPING),
            iteration=jnp.asarray(0),
            quiet=jnp.asarray(0),
            # Where the objective is infinite there is no slope to follow.
            finished=~jnp.isfinite(objective),
        )

    def step(lane, data):
        inputs, targets, weights, lower, upper = data
        tangents, values = jacobian(residual, lane.z, inputs, targets)
        slope, curvature = _robust.weights(kind, delta, values)
        gradient = tangents @ (weights * slope * values)
        majorant = (tangents * (weights * slope)[None]) @ tangents.T
        newton = (tangents * (weights * curvature)[None]) @ tangents.T
        scale = jnp.diagonal(majorant) + 1e-300
        # At a bound with the slope pointing out of the box the parameter stays where it is.
        stuck = ((lane.z <= lower) & (gradient > 0)) | ((lane.z >= upper) & (gradient < 0))
        free = 1.0 - stuck

        def attempt(damping):
            # Light damping is Newton's step, heavier damping that of reweighted least squares,
            # which descends from anywhere, and more shortens it.
            share = jnp.minimum(damping, 1.0)
            matrix = (1 - share) * newton + share * majorant
            matrix = matrix * free[:, None] * free[None, :]
            matrix = matrix + jnp.diag(jnp.where(stuck, 1.0, 0.1 * damping * scale))
            move = finite(-solve_positive(matrix, gradient * free))
            # A straight step leaves a bent valley at once; half the turn of its path follows it.
            bend = along_twice(residual, lane.z, move, inputs, targets)
            blend = weights * ((1 - share) * curvature + share * slope)
            turn = finite(-solve_positive(matrix, (tangents @ (blend * bend)) * free))
            bent = 2 * jnp.sum(scale * turn**2) ** 0.5 <= BENT * jnp.sum(scale * move**2) ** 0.5
            move = move + jnp.where(bent, 0.5 * turn, 0.0)
            clipped = jnp.any(jnp.abs(move) > LONGEST_MOVE)
            z = lane.z + jnp.clip(move, -LONGEST_MOVE, LONGEST_MOVE)
            z = jnp.clip(z, lower, upper)
            return z, objective_of(z, data), clipped

        dampings = lane.damping * jnp.asarray(DAMPINGS)
        tried, objectives, clipped = jax.vmap(attempt)(dampings)
        best = jnp.argmin(objectives)
        better = objectives[best] < lane.objective
        fall = jnp.where(better, lane.objective - objectives[best], 0.0)
        small = fall <= tolerance * jnp.abs(lane.objective)
        # A refusal means something only once the damping is heavy.
        settled = small & ((better & ~clipped[best]) | (lane.damping > HEAVY_DAMPING))
        quiet = jnp.where(settled, lane.quiet + 1, jnp.where(better, 0, lane.quiet))
        damping = jnp.where(better, dampings[best], 8.0 * lane.damping)
        iteration = lane.iteration + 1
        return _Lane(
            z=jnp.where(better, tried[best], lane.z),
            objective=jnp.where(better, objectives[best], lane.objective),
            damping=jnp.clip(damping, 1e-12, 1e12),
            iteration=iteration,
            quiet=quiet,
            finished=lane.finished | (quiet >= 2) | (iteration >= max_iterations),
        )

    return queue(batch, problems, lanes, begin, step)


def total(residual, kind, delta, z, data):
    """The weighted sum of losses; infinite where a residual is not a number."""
    inputs, targets, weights, _, _ = data
    terms = _robust.value(kind, delta, residual(z, inputs, targets))
    # A point of weight 0 may hold anything, so it is masked before it is multiplied.
    summed = jnp.sum(jnp.where(weights > 0, weights * terms, 0.0))
    return jnp.where(jnp.isfinite(summed), summed, jnp.inf)


def jacobian(residual, z, inputs, targets):
    """(derivatives [parameters, points], residuals [points]); one forward pass serves all."""

    def along(direction):
        value, slope = jax.jvp(lambda z: residual(z, inputs, targets), (z,), (direction,))
        return slope, value

    return jax.vmap(along, out_axes=(0, None))(jnp.eye(z.shape[0]))


def along_twice(residual, z, move, inputs, targets):
    """The second derivative of the residuals along a move, [points]."""

    def slope(z):
        return jax.jvp(lambda z: residual(z, inputs, targets), (z,), (move,))[1]

    return jax.jvp(slope, (z,), (move,))[1]


def solve_positive(matrix, vector):
    """Solves a small positive definite system by an unrolled Cholesky factorisation.

    A pivot that is not positive is replaced, so the answer is always finite; the caller tests the
    step that it gives.
    """
    size = vector.shape[0]
    # Unit diagonal first: parameters differ by many orders of magnitude.
    scale = jax.lax.rsqrt(jnp.maximum(jnp.diagonal(matrix), 1e-300))
    lower = [[None] * size for _ in range(size)]
    for j in range(size):
        for i in range(j, size):
            entry = matrix[i, j] * scale[i] * scale[j]
            for k in range(j):
                entry = entry - lower[i][k] * lower[j][k]
            if i == j:
                lower[j][j] = jnp.sqrt(jnp.maximum(entry, 1e-14))
            else:
                lower[i][j] = entry / lower[j][j]
    forward = []
    for i in range(size):
        total = vector[i] * scale[i]
        for k in range(i):
            total = total - lower[i][k] * forward[k]
        forward.append(total / lower[i][i])
    answer = [None] * size
    for i in reversed(range(size)):
        total = forward[i]
        for k in range(i + 1, size):
            total = total - lower[k][i] * answer[k]
        answer[i] = total / lower[i][i]
    return jnp.stack(answer) * scale
