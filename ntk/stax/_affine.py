"""What layers with Gaussian weights and biases share: variances, parameters, checks."""

from typing import Any

import jax
import jax.numpy as jnp

from ntk._kernel import Gap, Kernel
from ntk.stax._covariance import plain_residual, spread, variances

Array = jax.Array


def check_affine(name: str, parameterization: str, s: tuple[int, int], W_std: Any, b_std: Any):
    """Raises when a hyperparameter of a layer with weights is out of range."""
    if parameterization not in ("ntk", "standard"):
        raise ValueError(
            f"{name}: parameterization must be 'ntk' or 'standard', got {parameterization!r}."
        )
    if len(s) != 2 or min(s) < 1:
        raise ValueError(f"{name}: s must be two positive widths, got {s}.")
    for key, value in (("W_std", W_std), ("b_std", b_std)):
        if isinstance(value, (int, float)) and not abs(value) < float("inf"):
            raise ValueError(f"{name}: {key} must be finite, got {value}.")


def residual_after_affine(kernel: Kernel, weight: Any, bias: Any) -> Array | None:
    """The residual of W u + b from that of u: no difference of close numbers is formed.

    With the gap m = sqrt(v1 v2) - K = residual / (sqrt(v1 v2) + K) the squared distance of the pair
    is (sqrt(v1) - sqrt(v2))^2 + 2 m, and
    (w v1 + b)(w v2 + b) - (w K + b)^2 = w^2 residual + w b (squared distance).
    """
    residual = plain_residual(kernel)
    if residual is None:
        return None
    weight = jax.lax.stop_gradient(jnp.asarray(weight, residual.dtype))
    if bias is None:
        return residual * weight**2
    var1, var2 = jax.lax.stop_gradient(variances(kernel))
    root1 = spread(jnp.sqrt(var1), 0, 2, kernel.diagonal_spatial)
    root2 = spread(jnp.sqrt(var2), 1, 2, kernel.diagonal_spatial)
    if isinstance(kernel.residual, Gap):
        gap = kernel.residual.value
    else:
        cross = jax.lax.stop_gradient(kernel.nngp)
        norm = root1 * root2
        tiny = jnp.finfo(residual.dtype).tiny
        gap = jnp.where(cross > 0, residual / jnp.maximum(norm + cross, tiny), norm - cross)
    difference = root1 - root2
    distance = difference * difference + 2 * gap
    bias = jax.lax.stop_gradient(jnp.asarray(bias, residual.dtype))
    return weight * (weight * residual + bias * distance)


def affine(
    before: Kernel,
    mixed: Kernel,
    *,
    W_std: Any,
    b_std: Any,
    parameterization: str,
    fan_in: float,
    **changes: Any,
) -> Kernel:
    """The kernel after Gaussian weights and a bias.

    Args:
      before: the kernel of the inputs.
      mixed: the same after the positions that a weight sees were averaged.
      W_std, b_std: standard deviations; `b_std` None for no bias.
      parameterization: "ntk" or "standard".
      fan_in: inputs of one output, over `s[0]`, for "standard".
      **changes: fields to change as well.
    """
    weight = W_std**2
    bias = None if b_std is None else b_std**2

    def shifted(array: Any) -> Any:
        if array is None:
            return None
        out = array * weight
        return out if bias is None else out + bias

    nngp = shifted(mixed.nngp)
    tangent = mixed.ntk
    if tangent is not None:
        tangent = tangent * weight if tangent.ndim else None
        if parameterization == "ntk":
            own = nngp
        else:
            own = mixed.nngp * fan_in
            own = own if bias is None else own + 1
        tangent = own if tangent is None else own + tangent
    residual = residual_after_affine(before, weight, bias) if mixed is before else None
    kernel = mixed.replace(
        nngp=nngp,
        ntk=tangent,
        cov1=shifted(mixed.cov1),
        cov2=shifted(mixed.cov2),
        residual=residual,
        is_gaussian=True,
        is_input=False,
        shared=(),
        **changes,
    )
    if kernel.mask1 is None and kernel.mask2 is None:
        return kernel
    return kernel.mask(kernel.mask1, kernel.mask2)


def draw(
    key: Array, weight_shape: tuple[int, ...], bias_shape: tuple[int, ...], *, W_std: Any,
    b_std: Any, parameterization: str, fan_in: float,
) -> tuple[Array, Array | None]:  # fmt: skip
    """Weights and biases; the standard deviations are in the layer with "ntk"."""
    key_w, key_b = jax.random.split(key)
    weights = jax.random.normal(key_w, weight_shape)
    bias: Any = None if b_std is None else jax.random.normal(key_b, bias_shape)
    if parameterization == "standard":
        weights = weights * (W_std / jnp.sqrt(fan_in))
        bias = None if bias is None else bias * b_std
    return weights, bias


def weight_scale(parameterization: str, W_std: Any, fan_in: float, s: tuple[int, int]) -> Any:
    """The factor in front of weights in the finite layer."""
    return W_std / fan_in**0.5 if parameterization == "ntk" else 1 / s[0] ** 0.5
