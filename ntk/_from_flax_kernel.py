"""Infinite-width kernels of flax modules, where every operation of the module is recognised."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ntk._from_flax import from_flax
from ntk._from_flax_reader import Param, Reader, Value
from ntk._kernel import Kernel
from ntk.stax._kernel_fn import KernelFn
from ntk.stax._layer import Layer, Need, position

Array = jax.Array


@dataclasses.dataclass(frozen=True, eq=False)
class GraphLayer(Layer):
    """Layers on a directed graph.

    Attributes:
      steps: layer, numbers of its inputs (value 0 is the input of all), in order.
      shapes: of the values, for the batch of the example.
    """

    steps: tuple[tuple[Layer, tuple[int, ...]], ...]
    shapes: tuple[tuple[int, ...], ...]

    @property
    def input_axes(self) -> tuple[int, int]:
        """flax puts the batch first and channels last."""
        return 0, -1

    def output_shape(self, shape: Any) -> Any:
        """The shape of the last value with another batch."""
        return (shape[0], *self.shapes[-1][1:])

    def need(self, need: Need) -> Need:
        """What the graph needs of its input."""
        needs = [Need() for _ in self.shapes]
        needs[-1] = need
        for index in reversed(range(len(self.steps))):
            layer, sources = self.steps[index]
            wanted = layer.need(needs[index + 1])
            for source in sources:
                needs[source] = needs[source].join(wanted)
        return needs[0]

    def kernel(self, kernel: Kernel, **kwargs: Any) -> Kernel:
        """The layers in order."""
        values: list[Any] = [kernel]
        for index, (layer, sources) in enumerate(self.steps):
            given = [values[s] for s in sources]
            with position(f"operation {index} ({layer.name})"):
                values.append(layer.kernel(given if len(given) > 1 else given[0], **kwargs))
        return values[-1]


def kernel_fn_from_flax(
    module: Any,
    variables: Any = None,
    *,
    inputs: Any,
    key: Array | None = None,
    W_std: Any = None,
    b_std: Any = None,
) -> KernelFn:
    """The infinite-width `kernel_fn(x1, x2, get)` of a flax linen or nnx module.

    Weights keep the scale that the module gave them (standard parameterization), so the tangent
    kernel grows with the widths as the empirical one of the module does.

    Args:
      module: MLP, CNN or residual network of Dense, Conv, activations, average pooling.
      variables: of a linen module, or None with a `key`.
      inputs: an example batch, for its shape; batch first, channels last.
      key: to initialize a linen module without variables.
      W_std: sqrt(fan-in) times the standard deviation of the weights at initialization, the same
        for all layers; None measures each layer's weights.
      b_std: of the biases; None measures them (flax starts them at 0).
    Raises:
      NotImplementedError: an operation is not recognised; the message names it.
    """
    function = from_flax(module, variables, key=key, inputs=inputs)
    inputs = jnp.asarray(inputs)
    leaves, tree = jax.tree.flatten(function.params)

    def flat(x, *leaves):
        return function.f(jax.tree.unflatten(tree, leaves), x)

    closed = jax.make_jaxpr(flat)(inputs, *leaves)
    reader = Reader(W_std, b_std, tuple(inputs.shape))
    params = [Param(np.asarray(leaf), frozenset({i})) for i, leaf in enumerate(leaves)]
    out = reader.run(closed.jaxpr, closed.consts, [reader.start, *params])
    if len(out) != 1 or not isinstance(out[0], Value):
        raise NotImplementedError("kernel_fn_from_flax: the module must return one array.")
    return KernelFn(GraphLayer(*reader.graph(out[0])))
