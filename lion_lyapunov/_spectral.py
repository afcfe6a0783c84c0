"""Kappas of a matrix's singular values, and kappas of its rows and columns."""

import jax.numpy as jnp

from lion_lyapunov._checks import Number, check_choice
from lion_lyapunov._kappa import (
    Array,
    Kappa,
    euclidean,
    keep_dtype,
    make_kappa,
    max_or_nan,
    normalize,
    working,
)
from lion_lyapunov._norms import linf, lp, norm_kappa
from lion_lyapunov._polar import Coefficients, newton_schulz, polar
from lion_lyapunov._separable import l1
from lion_lyapunov._top_k import top_k


def require_matrix(name: str, z: Array) -> None:
    """Raises unless `z` has two axes; which axes of a larger array form a matrix is a choice."""
    if z.ndim != 2:
        raise ValueError(
            f"{name}: needs a matrix, got an array of shape {z.shape}. Give vectors and scalars a "
            "kappa of their own with optax.partition (as `muon` does); wrap the kappa in "
            "as_matrix(...) for convolution kernels and in batched(...) for stacked matrices."
        )


def spectral(kappa: Kappa, name: str | None = None) -> Kappa:
    """The kappa of the singular values, K(Z) = kappa(sigma(Z)), by exact SVD.

    Args:
      kappa: an even kappa of vectors that does not care about their order, such as `huber(e)`.
      name: shown in messages.
    Raises:
      ValueError: `kappa` is not even or not symmetric, so that no function of the matrix results.
    """
    if not (kappa.is_even and kappa.is_symmetric) or kappa.over_tree:
        raise ValueError(
            f"spectral: kappa must be even and unchanged by permutations of one vector, got "
            f"{kappa!r}; for example spectral(huber(1.0))."
        )
    name = name or f"spectral({kappa.name})"

    def values(z):
        require_matrix(name, z)
        return jnp.linalg.svd(z, compute_uv=False)

    def lift(function):
        def lifted(z):
            require_matrix(name, z)
            left, s, right = jnp.linalg.svd(z, full_matrices=False)
            return (left * function(s)[None, :]) @ right

        return lifted

    def slopes(s):
        # Zero singular values of a rank-deficient matrix come back as rounding noise.
        noise = max(s.size, 1) * float(jnp.finfo(s.dtype).eps) * jnp.max(s, initial=0.0)
        return kappa.subgradient(jnp.where(s <= noise, 0.0, s))

    gauge = kappa.dual_norm
    return make_kappa(
        name=name,
        value=keep_dtype(lambda z: kappa.value(values(z))),
        subgradient=keep_dtype(lift(slopes)),
        conjugate=keep_dtype(lambda y: kappa.conjugate(values(y))),
        project=keep_dtype(lift(kappa.project)),
        conjugate_subgradient=keep_dtype(lift(kappa.conjugate_subgradient)),
        dual_norm=None if gauge is None else keep_dtype(lambda y: gauge(values(y))),
        is_even=True,
        is_smooth=kappa.is_smooth,
        is_support=kappa.is_support,
        tie_rule=f"zero singular values are dropped; on the others: {kappa.tie_rule}",
    )


def nuclear(
    method: str = "polar",
    *,
    schedule: tuple[Coefficients, ...] | None = None,
    num_steps: int = 5,
    error: float | None = None,
) -> Kappa:
    """The nuclear norm: Muon. Minimises f under |X|_op <= 1 / weight_decay.

    Args:
      method: how the subgradient U V^T is found. "polar": matrix products, converged to working
        precision; "newton_schulz": `num_steps` of them, cheaper and inexact, with singular values
        certified to be at most 1, so that the constraint still holds; "svd": exact.
      schedule, num_steps: of `newton_schulz`.
      error: bound on the distance to 1 of the resolved singular values, of `polar`.
    """
    check_choice("nuclear", "method", method, ("polar", "newton_schulz", "svd"))
    base = spectral(l1(), name="nuclear")
    if method == "svd":
        return base

    def subgradient(z):
        z = jnp.asarray(z)
        require_matrix("nuclear", z)
        if method == "newton_schulz":
            return newton_schulz(z, schedule=schedule, num_steps=num_steps)
        return polar(working(z), error=error).astype(z.dtype)

    return make_kappa(
        name="nuclear" if method == "polar" else "nuclear(newton_schulz)",
        value=base.value,
        subgradient=subgradient,
        conjugate=base.conjugate,
        project=base.project,
        conjugate_subgradient=base.conjugate_subgradient,
        dual_norm=base.dual_norm,
        is_even=True,
        is_smooth=False,
        is_support=True,
        tie_rule=base.tie_rule,
    )


def operator_norm() -> Kappa:
    """The largest singular value: steps of rank one inside a nuclear ball, low rank."""
    return spectral(linf(), name="operator_norm")


def schatten(p: Number) -> Kappa:
    """The l_p norm of the singular values: minimises f over a Schatten-q ball, 1/p + 1/q = 1."""
    return spectral(lp(p), name=f"schatten({p:g})" if isinstance(p, int | float) else "schatten")


def ky_fan(k: int) -> Kappa:
    """Sum of the k largest singular values: |X|_op <= 1/lam and |X|_nuclear <= k/lam."""
    return spectral(top_k(k), name=f"ky_fan({k})")


def row_l2() -> Kappa:
    """Sum of the l2 norms of the rows: every row stays in its own Euclidean ball."""
    return _line_l2("row_l2", axis=1)


def col_l2() -> Kappa:
    """Sum of the l2 norms of the columns: every column stays in its own Euclidean ball."""
    return _line_l2("col_l2", axis=0)


def _line_l2(name: str, axis: int) -> Kappa:
    def norms(z):
        require_matrix(name, z)
        return euclidean(z, axis=axis, keepdims=True)

    def subgradient(z):
        require_matrix(name, z)
        return normalize(z, axis=axis)

    return norm_kappa(
        name,
        norm=lambda z: jnp.sum(norms(z)),
        subgradient=subgradient,
        dual_norm=lambda y: max_or_nan(norms(y)),
        project=lambda y: y / jnp.maximum(norms(y), 1.0),
        tie_rule="a line that is zero gets zero",
    )
