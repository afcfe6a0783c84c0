"""Layers without a closed form, by Monte Carlo: `MaxPool` and `BatchNorm`.

A field of one channel is drawn from the Gaussian law that the kernel describes, on all inputs of
x1 and x2 jointly, and put through the layer; covariances are averages over draws, tangent kernels
averages of J1 Theta J2' with the Jacobians of the draws. The error falls as num_samples^(-1/2): the
results are estimates, which is why the number of samples and the key must be given.
"""

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from ntk._kernel import Kernel
from ntk.stax._covariance import spatial_shape
from ntk.stax._kernel_fn import as_network
from ntk.stax._layer import Layer, Need, Network, axes_of, check_axes
from ntk.stax._window import Padding, forward_window, parse_padding

Array = jax.Array


@dataclasses.dataclass(frozen=True, eq=False)
class SampledLayer(Layer):
    """A layer that maps each channel of a batch, [N, H, W], by a function.

    Attributes:
      label: name in messages.
      field: function of one channel of a batch, [N, H, W] -> [N, H', W'].
      num_samples: draws.
      key: random key of the draws.
      batch_axis: of the inputs.
      channel_axis: of the inputs.
    """

    label: str
    field: Callable[[Array], Array]
    num_samples: int
    key: Array
    batch_axis: int
    channel_axis: int
    repeatable = False
    mixes_batch = True

    @property
    def name(self) -> str:
        """The name in messages."""
        return self.label

    @property
    def input_axes(self) -> tuple[int, int]:
        """Batch and channel axis of the inputs."""
        return self.batch_axis, self.channel_axis

    def output_shape(self, shape: Any) -> Any:
        """What the function gives."""
        batch, channel, spatial = axes_of(len(shape), self.batch_axis, self.channel_axis)
        number = shape[batch] if shape[batch] > 0 else 2
        one = jax.ShapeDtypeStruct((number, *(shape[a] for a in spatial)), jnp.float32)
        out = jax.eval_shape(self.field, one).shape[1:]
        sizes = dict(zip(spatial, out)) | {batch: shape[batch], channel: shape[channel]}
        return tuple(sizes[a] for a in range(len(shape)))

    def apply(self, params: Any, inputs: Any, **kwargs: Any) -> Any:
        """The function, channel by channel."""
        del params, kwargs
        batch, channel, spatial = axes_of(inputs.ndim, self.batch_axis, self.channel_axis)
        order = (batch, *spatial, channel)
        x = inputs.transpose(order)
        out = jax.vmap(self.field, in_axes=-1, out_axes=-1)(x)
        return out.transpose([order.index(a) for a in range(inputs.ndim)])

    def need(self, need: Need) -> Need:
        """The joint law of everything."""
        del need
        return Need(pairs=True, own=True, own_pairs=True)

    def kernel(self, kernel: Kernel, **kwargs: Any) -> Kernel:
        """Averages over draws."""
        del kwargs
        check_axes(kernel, self.batch_axis, self.channel_axis)
        if not kernel.is_gaussian:
            raise NotImplementedError(
                f"{self.label} needs Gaussian inputs: put Dense or Conv in front of it."
            )
        if kernel.diagonal_batch or kernel.diagonal_spatial or kernel.diagonal_cov:
            raise ValueError(
                "the joint law of all inputs and positions is needed; call with "
                "diagonal_batch=False and diagonal_spatial=False."
            )
        if kernel.mask1 is not None or kernel.mask2 is not None:
            raise NotImplementedError(f"{self.label} has no masked kernel.")
        spatial = spatial_shape(kernel)
        count, total = len(spatial), math.prod(spatial)

        def flat(array):
            rows, columns = array.shape[:2]
            one = [2 + 2 * i for i in range(count)]
            two = [3 + 2 * i for i in range(count)]
            array = array.transpose([0, *one, 1, *two])
            return array.reshape(rows * total, columns * total)

        single = kernel.cov2 is None
        n1, n2 = kernel.nngp.shape[:2]
        own = flat(kernel.cov1)
        if single:
            joint = own
        else:
            cross = flat(kernel.nngp)
            joint = jnp.block([[own, cross], [cross.T, flat(kernel.cov2)]])
        # A root by eigenvalues exists for singular laws, such as those of repeated inputs.
        values, vectors = jnp.linalg.eigh(joint)
        root = vectors * jnp.sqrt(jnp.maximum(values, 0))[None, :]
        has_tangent = kernel.ntk is not None and kernel.ntk.ndim > 0
        theta = flat(kernel.ntk) if has_tangent else None

        def one(key):
            draw = root @ jax.random.normal(key, (joint.shape[0],), joint.dtype)
            u1 = draw[: n1 * total].reshape((n1, *spatial))
            u2 = u1 if single else draw[n1 * total :].reshape((n2, *spatial))
            f1, push1 = jax.linearize(self.field, u1)
            f2, push2 = (f1, push1) if single else jax.linearize(self.field, u2)
            a, b = f1.reshape(-1), f2.reshape(-1)
            sums = [jnp.outer(a, b), jnp.outer(a, a), jnp.outer(b, b)]
            if theta is not None:

                def push(linear, matrix, shape):
                    columns = matrix.T.reshape((matrix.shape[1], *shape))
                    return jax.vmap(linear)(columns).reshape(matrix.shape[1], -1).T

                half = push(push1, theta, u1.shape)
                sums.append(push(push2, half.T, u2.shape).T)
            return sums

        def update(means, numbered):
            # Running means: a sum of many draws would lose digits in single precision.
            count, key = numbered
            return [m + (new - m) / count for m, new in zip(means, one(key))], None

        shapes = jax.eval_shape(one, self.key)
        start = [jnp.zeros(s.shape, s.dtype) for s in shapes]
        keys = jax.random.split(self.key, self.num_samples)
        counts = jnp.arange(1, self.num_samples + 1).astype(joint.dtype)
        means, _ = jax.lax.scan(update, start, (counts, keys))
        shape1, shape2 = self.output_shape(kernel.shape1), self.output_shape(kernel.shape2)
        _, _, axes = axes_of(len(shape1), self.batch_axis, self.channel_axis)
        new = tuple(shape1[a] for a in axes)

        def back(matrix, rows, columns):
            array = matrix.reshape((rows, *new, columns, *new))
            order = [0, count + 1]
            order += [axis for i in range(count) for axis in (1 + i, count + 2 + i)]
            return array.transpose(order)

        tangent = kernel.ntk
        if theta is not None:
            tangent = back(means[3], n1, n2)
        return kernel.replace(
            nngp=back(means[0], n1, n2),
            ntk=tangent,
            cov1=back(means[1], n1, n1),
            cov2=None if single else back(means[2], n2, n2),
            residual=None,
            same=None,
            is_gaussian=False,
            is_input=False,
            shape1=shape1,
            shape2=shape2,
        )


def _check(name: str, num_samples: int) -> None:
    if num_samples < 1:
        raise ValueError(f"{name}: num_samples must be at least 1, got {num_samples}.")


def MaxPool(
    window_shape: Sequence[int],
    strides: Sequence[int] | None = None,
    padding: Any = "VALID",
    *,
    num_samples: int,
    key: Array,
    batch_axis: int = 0,
    channel_axis: int = -1,
) -> Network:
    """Maximum over windows; its kernel is a Monte Carlo estimate.

    Args:
      window_shape: along each spatial axis.
      strides: along each spatial axis; None for 1.
      padding: "VALID", "SAME" (minus infinity beyond the edges) or "CIRCULAR".
      num_samples: draws of the estimate.
      key: random key of the draws.
      batch_axis: of the inputs.
      channel_axis: of the inputs.
    """
    _check("MaxPool", num_samples)
    window_shape = tuple(window_shape)
    strides = (1,) * len(window_shape) if strides is None else tuple(strides)
    padding = parse_padding("MaxPool", padding)

    def field(x):
        if x.ndim - 1 != len(window_shape):
            raise ValueError(
                f"window_shape {window_shape} has {len(window_shape)} axes, the inputs have "
                f"{x.ndim - 1} spatial axes."
            )
        pads = [(0, 0)]
        for axis, (size, stride) in enumerate(zip(window_shape, strides), start=1):
            window = forward_window(x.shape[axis], size, stride, 1, padding)
            high = (window.out - 1) * stride + size - window.low - x.shape[axis]
            if padding is Padding.CIRCULAR:
                where = jnp.arange(-window.low, x.shape[axis] + max(high, 0)) % x.shape[axis]
                x = jnp.take(x, where, axis=axis)
                pads.append((0, 0))
            else:
                pads.append((window.low, max(high, 0)))
        return jax.lax.reduce_window(
            x, -jnp.inf, jax.lax.max, (1, *window_shape), (1, *strides), pads
        )

    return as_network(SampledLayer("MaxPool", field, num_samples, key, batch_axis, channel_axis))


def BatchNorm(
    fn: Callable[[Array], Array] = lambda x: x,
    *,
    num_samples: int,
    key: Array,
    eps: float = 1e-5,
    batch_axis: int = 0,
    channel_axis: int = -1,
) -> Network:
    """Normalization over the batch and all positions, then `fn`; its kernel is an estimate.

    The outputs of normalization are not Gaussian, so the nonlinearity that follows is part of the
    layer. x1 and x2 are normalized as batches of their own.

    Args:
      fn: the nonlinearity.
      num_samples: draws of the estimate.
      key: random key of the draws.
      eps: added to the variance.
      batch_axis: of the inputs.
      channel_axis: of the inputs.
    """
    _check("BatchNorm", num_samples)

    def field(x):
        centred = x - jnp.mean(x)
        return fn(centred / jnp.sqrt(jnp.mean(centred * centred) + eps))

    return as_network(SampledLayer("BatchNorm", field, num_samples, key, batch_axis, channel_axis))
