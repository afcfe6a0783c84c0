"""The vanilla recurrent network (arXiv:2006.10246)."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from ntk._kernel import Kernel
from ntk.stax._activation import Activation
from ntk.stax._covariance import map_covariances
from ntk.stax._kernel_fn import as_network
from ntk.stax._layer import Layer, Need, Network, check_axes
from ntk.stax._window import Window, shifted

Array = jax.Array


@dataclasses.dataclass(frozen=True)
class RNNLayer(Layer):
    """Description of `RNN`."""

    width: int
    activation: Activation
    W_std: Any
    U_std: Any
    b_std: Any

    @property
    def name(self) -> str:
        """The name in messages."""
        return "RNN"

    @property
    def input_axes(self) -> tuple[int, int]:
        """Batch first, channels last."""
        return 0, -1

    def output_shape(self, shape: Any) -> Any:
        """[N, T, width]."""
        if len(shape) != 3:
            raise ValueError(f"RNN needs inputs [batch, time, channels], got shape {tuple(shape)}.")
        return (*shape[:2], self.width)

    def init(self, key: Array, shape: Any) -> Any:
        """Recurrent weights, input weights, bias."""
        keys = jax.random.split(key, 3)
        bias = None if self.b_std is None else jax.random.normal(keys[2], (self.width,))
        return (
            jax.random.normal(keys[0], (self.width, self.width)),
            jax.random.normal(keys[1], (shape[-1], self.width)),
            bias,
        )

    def apply(self, params: Any, inputs: Any, **kwargs: Any) -> Any:
        """Hidden states at all times, from zero."""
        del kwargs
        recurrent, incoming, bias = params
        drive = inputs @ incoming * (self.U_std / inputs.shape[-1] ** 0.5)
        if bias is not None:
            drive = drive + self.b_std * bias.reshape(1, 1, -1)

        def step(state, now):
            state = self.activation.fn(now + state @ recurrent * (self.W_std / self.width**0.5))
            return state, state

        start = jnp.zeros((inputs.shape[0], self.width), drive.dtype)
        _, states = jax.lax.scan(step, start, jnp.moveaxis(drive, 1, 0))
        return jnp.moveaxis(states, 0, 1)

    def need(self, need: Need) -> Need:
        """Variances; different times only when the outputs are read at different times."""
        return Need(need.pairs, True, need.own_pairs)

    def kernel(self, kernel: Kernel, **kwargs: Any) -> Kernel:
        """Covariances at (t, t') follow those at (t - 1, t' - 1), with the same weights."""
        del kwargs
        check_axes(kernel, 0, -1)
        self.output_shape(kernel.shape1)
        if kernel.mask1 is not None or kernel.mask2 is not None:
            raise NotImplementedError("RNN has no masked kernel.")
        times = kernel.shape1[1]
        recurrent, incoming = self.W_std**2, self.U_std**2
        bias = 0.0 if self.b_std is None else self.b_std**2
        back = Window(1, 1, 1, 1, 1, times, False)

        def late(array, lead, diagonal):
            axes = (lead,) if diagonal else (lead, lead + 1)
            return shifted(array, axes, back, -1)

        def drive(array):
            return None if array is None else array * incoming + bias

        inputs = kernel.replace(
            nngp=drive(kernel.nngp), cov1=drive(kernel.cov1), cov2=drive(kernel.cov2),
            ntk=None if kernel.ntk is None else kernel.ntk * incoming, residual=None,
            is_gaussian=True, is_input=False, shared=(),
            shape1=self.output_shape(kernel.shape1), shape2=self.output_shape(kernel.shape2),
        )  # fmt: skip

        def with_own(k, tangent):
            return k.replace(ntk=None if kernel.ntk is None else k.nngp + tangent)

        def step(state, _):
            past = map_covariances(self.activation.kernel(state).replace(residual=None), late)
            new = inputs.replace(
                nngp=inputs.nngp + recurrent * past.nngp,
                cov1=inputs.cov1 + recurrent * past.cov1,
                cov2=None if inputs.cov2 is None else inputs.cov2 + recurrent * past.cov2,
            )
            if kernel.ntk is not None:
                new = with_own(new, inputs.ntk + recurrent * past.ntk)
            return new, None

        state = inputs
        if kernel.ntk is not None:
            state = with_own(inputs, jnp.broadcast_to(inputs.ntk, inputs.nngp.shape))
        # After T steps every diagonal of times has been filled from its start.
        state, _ = jax.lax.scan(step, state, None, length=times - 1)
        return self.activation.kernel(state)


def RNN(
    width: int, activation: Any, W_std: Any = 1.0, U_std: Any = 1.0, b_std: Any = None
) -> Network:
    """h_t = activation(W_std W h_(t-1) / sqrt(width) + U_std U x_t / sqrt(n) + b_std b), h_0 = 0.

    Inputs are [batch, time, channels], outputs the hidden states at all times:
    `Index(Slice[:, -1])` takes the last, GlobalAvgPool the average.

    Args:
      width: number of hidden channels.
      activation: a nonlinearity of this package, such as `Relu()`.
      W_std: standard deviation of the recurrent weights.
      U_std: standard deviation of the input weights.
      b_std: standard deviation of the biases; None for none.
    """
    layer = getattr(activation[2], "layer", None)
    if not isinstance(layer, Activation):
        raise ValueError("RNN: activation must be a nonlinearity such as Relu() or Erf().")
    return as_network(RNNLayer(width, layer, W_std, U_std, b_std))
