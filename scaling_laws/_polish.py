"""The last digits of a fit: Newton's method with the exact second derivatives."""

import dataclasses
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from scaling_laws import _levenberg, _robust


@dataclasses.dataclass(frozen=True)
class Residual:
    """A law's residual as a hashable function: equal laws share compiled code."""

    law: Any

    def __call__(self, z, inputs, targets):
        return self.law.residual(z, inputs, targets)


@partial(jax.jit, static_argnames=("residual", "kind"))
def _derivatives(residual, kind, delta, z, inputs, targets, weights):
    def objective(z):
        terms = _robust.value(kind, delta, residual(z, inputs, targets))
        return jnp.sum(jnp.where(weights > 0, weights * terms, 0.0))

    return jax.grad(objective)(z), jax.hessian(objective)(z)


def newton(residual, kind, delta, z, prepared, free, *, steps=8):
    """Moves z by Newton steps while they shrink the gradient.

    An objective says nothing below the square root of its rounding; its gradient goes on.
    """
    arrays = _levenberg.Batch(
        None, prepared.inputs, prepared.log_losses, prepared.weights, None, None, None
    )
    with jax.enable_x64(True):
        inputs = jax.tree.map(jnp.asarray, arrays.inputs)
        targets, weights = jnp.asarray(arrays.targets), jnp.asarray(arrays.weights)

        derivatives = _levenberg.bounded(_derivatives)

        def at(z):
            gradient, hessian = derivatives(
                residual, kind, jnp.asarray(delta), jnp.asarray(z), inputs, targets, weights
            )
            gradient, hessian = np.asarray(gradient)[free], np.asarray(hessian)[np.ix_(free, free)]
            scale = np.sqrt(np.maximum(np.diag(hessian), 1e-300))
            return gradient, hessian, float(np.max(np.abs(gradient / scale), initial=0.0))

        gradient, hessian, size = at(z)
        for _ in range(steps):
            if not len(gradient) or not np.all(np.isfinite(hessian)):
                break
            values = np.linalg.eigvalsh(hessian)
            if values[0] <= 0:
                break
            trial = z.copy()
            trial[free] -= np.linalg.solve(hessian, gradient)
            if np.max(np.abs(trial - z)) > 0.1:
                break
            new_gradient, new_hessian, new_size = at(trial)
            if not new_size < size:
                break
            z, gradient, hessian, size = trial, new_gradient, new_hessian, new_size
    return z
