"""Nonlinearities: how one function of (K, v1, v2) carries a Kernel through."""

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from ntk._kernel import Gap, Kernel
from ntk.stax._covariance import (
    own_entries,
    plain_residual,
    same_entries,
    settle,
    spread,
    variances,
)
from ntk.stax._layer import Layer, Need

Array = jax.Array


class Dual(NamedTuple):
    """Gaussian averages of f(u) f(v), of f'(u) f'(v), and the residual of the first or None.

    A function that can give sqrt(E[f(u)^2] E[f(v)^2]) - E[f(u) f(v)] without cancellation, and
    whose outputs are nowhere nearly opposite, gives it as a Gap: weights then need no division.
    """

    nngp: Array
    slope: Array
    residual: Array | Gap | None = None


@dataclasses.dataclass(frozen=True)
class Activation(Layer):
    """Base of nonlinearities. A new one defines `fn` and `dual`, and nothing else.

    `dual(cross, var1, var2, q)` takes arrays that broadcast against each other, with
    q = var1 var2 - cross^2, exact where the inputs are equal.
    """

    def fn(self, x: Array) -> Array:
        """The function itself."""
        raise NotImplementedError(f"{self.name} has no finite-width function.")

    def dual(self, cross: Array, var1: Array, var2: Array, q: Array) -> Dual:
        """Gaussian averages for pairs."""
        raise NotImplementedError(f"{self.name} has no kernel.")

    def variance(self, var: Array) -> Array:
        """E[f(u)^2]."""
        return self.dual(var, var, var, jnp.zeros_like(var)).nngp

    def check(self, kernel: Kernel) -> None:
        """Raises when the inputs are not Gaussian."""
        if not kernel.is_gaussian:
            raise NotImplementedError(
                f"{self.name} needs Gaussian inputs: put Dense or Conv in front of it."
            )

    def need(self, need: Need) -> Need:
        """Variances, besides what the outputs need."""
        return Need(need.pairs, True, need.own_pairs)

    def apply(self, params: Any, inputs: Any, **kwargs: Any) -> Any:
        """The function, entry by entry."""
        del params, kwargs
        return self.fn(inputs)

    def kernel(self, kernel: Kernel, **kwargs: Any) -> Kernel:
        """nngp' = E[f f], ntk' = ntk E[f' f']."""
        del kwargs
        self.check(kernel)
        var1, var2 = variances(kernel)
        flat = kernel.diagonal_spatial
        left, right = spread(var1, 0, 2, flat), spread(var2, 1, 2, flat)
        known = plain_residual(kernel)
        q = _q(kernel.nngp, left, right, known, same_entries(kernel))
        dual = self.dual(kernel.nngp, left, right, q)
        tangent = kernel.ntk
        if tangent is not None and tangent.ndim:
            tangent = tangent * dual.slope
        residual = jax.lax.stop_gradient(dual.residual)
        if known is None and kernel.spatial_ndim:
            residual = None  # the next layer that moves positions would drop it
        as_gap = isinstance(residual, Gap)
        nngp, tangent, residual, cov1, cov2 = settle(
            dual.nngp,
            tangent,
            residual.value if as_gap else residual,
            self._own(kernel, kernel.cov1, var1),
            None if kernel.cov2 is None else self._own(kernel, kernel.cov2, var2),
        )
        out = kernel.replace(
            nngp=nngp,
            ntk=tangent,
            residual=Gap(residual) if as_gap else residual,
            cov1=cov1,
            cov2=cov2,
            is_gaussian=False,
            is_input=False,
        )
        if kernel.mask1 is None and kernel.mask2 is None:
            return out
        return out.mask(kernel.mask1, kernel.mask2)

    def _own(self, kernel: Kernel, cov: Array, var: Array) -> Array:
        if kernel.diagonal_batch and (kernel.diagonal_cov or kernel.spatial_ndim == 0):
            return self.variance(cov)
        lead = 1 if kernel.diagonal_batch else 2
        left = spread(var, 0, lead, kernel.diagonal_cov)
        right = spread(var, 1, lead, kernel.diagonal_cov)
        q = _q(cov, left, right, None, own_entries(kernel, cov))
        return self.dual(cov, left, right, q).nngp


def _q(cross: Array, var1: Array, var2: Array, residual: Array | None, equal: Any) -> Array:
    if residual is None:
        residual = jnp.maximum(var1 * var2 - cross * cross, 0)
        if equal is not None:
            residual = jnp.where(equal, jnp.zeros((), residual.dtype), residual)
    return jax.lax.stop_gradient(residual)
