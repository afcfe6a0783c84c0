"""Where fits start: a grid over the curved parameters, the straight ones solved in closed form."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from scipy.optimize import nnls

TINY = 1e-3  # of the mean loss; stands for a column that the closed form sets to 0


def grid_starts(law, prepared, key=None):
    """Inner vectors [starts, parameters], best first by the closed form's squared error.

    Variable projection: for given exponents the law is linear in its amplitudes, and those with the
    least relative squared error are a small non-negative least-squares problem.

    Args:
      key: None for the law's own grid; otherwise as many points, drawn between its extremes.
    """
    scaled = law.nonlinear_starts()
    if key is not None:
        low, high = scaled.min(axis=0), scaled.max(axis=0)
        draws = np.asarray(jax.random.uniform(key, scaled.shape, jnp.float32), dtype=float)
        # Start values of either sign are spread evenly, positive ones by their logarithms.
        even = low + draws * (high - low)
        safe_low, safe_high = np.where(low > 0, low, 1.0), np.where(low > 0, high, 1.0)
        scaled = np.where(low > 0, safe_low * (safe_high / safe_low) ** draws, even)
    linear = [i for i, p in enumerate(law.parameters) if p.linear]
    errors = np.zeros(len(scaled))
    if linear:
        with jax.enable_x64(True):
            columns = np.asarray(
                _columns(
                    law,
                    jax.tree.map(jnp.asarray, prepared.inputs),
                    jnp.asarray(scaled),
                    tuple(linear),
                )
            )
        weight = np.sqrt(prepared.weights) * np.exp(-prepared.log_losses)
        goal = np.sqrt(prepared.weights)
        for row, matrix in zip(range(len(scaled)), columns):
            design = (matrix * weight).T
            if not np.all(np.isfinite(design)):
                errors[row] = np.inf
                continue
            size = np.maximum(np.linalg.norm(design, axis=0), 1e-300)
            answer, errors[row] = nnls(design / size, goal)
            scaled[row, linear] = np.maximum(answer, TINY * np.linalg.norm(goal)) / size
    z = np.stack([p.inner(scaled[:, i]) for i, p in enumerate(law.parameters)], axis=1)
    return z[np.argsort(errors, kind="stable")]


@partial(jax.jit, static_argnums=(0, 3))
def _columns(law, inputs, scaled, linear):
    """What a unit of each amplitude adds to the loss, [starts, amplitudes, points]."""

    def one(row, index):
        symbols = law.symbols
        params = {
            s: jnp.where(i == index, 1.0, 0.0) if i in linear else row[i]
            for i, s in enumerate(symbols)
        }
        return law.predict(params, inputs)

    return jax.lax.map(lambda row: jax.vmap(lambda i: one(row, i))(jnp.asarray(linear)), scaled)
