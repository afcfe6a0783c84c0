"""Dropout."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from ntk._kernel import Kernel
from ntk.stax._covariance import own_entries, same_entries
from ntk.stax._kernel_fn import as_network
from ntk.stax._layer import Layer, Need, Network


@dataclasses.dataclass(frozen=True)
class DropoutLayer(Layer):
    """Description of `Dropout`."""

    rate: float
    mode: str

    @property
    def repeatable(self) -> bool:  # pyright: ignore[reportIncompatibleVariableOverride]
        """In training it matters which inputs are the same."""
        return self.mode == "test"

    def apply(self, params: Any, inputs: Any, rng: Any = None, **kwargs: Any) -> Any:
        """Keeps entries with probability `rate` and divides them by it."""
        del params, kwargs
        if self.mode == "test":
            return inputs
        if rng is None:
            raise ValueError("Dropout in mode 'train' needs apply_fn(params, inputs, rng=key).")
        keep = jax.random.bernoulli(rng, self.rate, inputs.shape)
        return jnp.where(keep, inputs / self.rate, jnp.zeros((), inputs.dtype))

    def need(self, need: Need) -> Need:
        """What the outputs need."""
        return need

    def kernel(self, kernel: Kernel, **kwargs: Any) -> Kernel:
        """Variances grow by 1 / rate; covariances of different inputs or positions stay."""
        del kwargs
        if self.mode == "test":
            return kernel
        same = None
        if kernel.x1_is_x2:
            same = jnp.eye(kernel.nngp.shape[0], dtype=bool)
        kernel = kernel.replace(same=same, residual=None)
        entries = same_entries(kernel)

        def scaled(array, where):
            if array is None or array.ndim == 0:
                return array
            return (
                array / self.rate if where is None else jnp.where(where, array / self.rate, array)
            )

        if entries is not None:
            kernel = kernel.replace(
                nngp=scaled(kernel.nngp, entries), ntk=scaled(kernel.ntk, entries)
            )
        one = kernel.diagonal_batch and (kernel.diagonal_cov or kernel.spatial_ndim == 0)

        def own(cov):
            return None if cov is None else scaled(cov, None if one else own_entries(kernel, cov))

        return kernel.replace(cov1=own(kernel.cov1), cov2=own(kernel.cov2), is_input=False)


def Dropout(rate: float, mode: str = "train") -> Network:
    """Dropout.

    Args:
      rate: probability to KEEP an entry, as in neural-tangents.
      mode: "train" or "test"; nothing is dropped in "test".
    """
    if not 0 < rate <= 1:
        raise ValueError(f"Dropout: rate, the probability to keep, must be in (0, 1], got {rate}.")
    if mode not in ("train", "test"):
        raise ValueError(f"Dropout: mode must be 'train' or 'test', got {mode!r}.")
    return as_network(DropoutLayer(rate, mode))
