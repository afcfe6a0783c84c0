"""Infinite-width kernels of flax modules, where every operation of the module is recognised.

The module is traced to a jaxpr on example inputs, and each equation that touches the inputs is
matched to a layer of `ntk.stax`: products with parameters to Dense and Conv, additions of
parameters to biases, known functions to their closed forms, any other function of one number to
quadrature, sums and means over positions to pooling. What is not recognised is refused by name.
"""

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend import core

from ntk import stax
from ntk._from_flax import from_flax
from ntk._kernel import Kernel
from ntk.stax._conv import ConvLayer
from ntk.stax._dense import DenseLayer
from ntk.stax._kernel_fn import KernelFn
from ntk.stax._layer import Layer, Need, position
from ntk.stax._window import Padding

Array = jax.Array
CLOSED_FORMS = {
    "relu": lambda: stax.Relu(),
    "gelu": lambda: stax.Gelu(),
    "leaky_relu": lambda: stax.LeakyRelu(0.01),
    "silu": lambda: stax.Silu(),
    "softplus": lambda: stax.Softplus(),
    "elu": lambda: stax.Elu(),
    "sigmoid": lambda: stax.Sigmoid(),
}
PRIMITIVES = {
    "erf": lambda: stax.Erf(),
    "sin": lambda: stax.Sin(),
    "cos": lambda: stax.Cos(),
    "exp": lambda: stax.Exp(),
    "abs": lambda: stax.Abs(),
    "tanh": lambda: stax.Tanh(),
    "logistic": lambda: stax.Sigmoid(),
}
CALLS = ("jit", "pjit", "custom_jvp_call", "custom_vjp_call", "closed_call", "checkpoint")


@dataclasses.dataclass(frozen=True)
class BiasLayer(Layer):
    """A bias alone, with an initial standard deviation and a unit tangent kernel."""

    b_std: Any

    def kernel(self, kernel: Kernel, **kwargs: Any) -> Kernel:
        """Covariances gain b_std^2, the tangent kernel 1."""
        del kwargs
        square = self.b_std**2
        tangent = kernel.ntk
        return kernel.replace(
            nngp=kernel.nngp + square,
            ntk=None if tangent is None else tangent + 1,
            cov1=None if kernel.cov1 is None else kernel.cov1 + square,
            cov2=None if kernel.cov2 is None else kernel.cov2 + square,
            residual=kernel.residual if square == 0 else None,
        )


@dataclasses.dataclass(frozen=True)
class ScaleLayer(Layer):
    """Multiplication by a constant."""

    factor: float

    def kernel(self, kernel: Kernel, **kwargs: Any) -> Kernel:
        """Covariances take its square."""
        del kwargs
        return kernel.scale(self.factor**2)


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


class _Reader:
    """Walks a jaxpr and collects steps. Values are ("x", number), ("p", array) or constants."""

    def __init__(self, W_std: Any, b_std: Any):
        self.W_std, self.b_std = W_std, b_std
        self.steps: list[tuple[Layer, tuple[int, ...]]] = []
        self.shapes: list[tuple[int, ...]] = []

    def add(self, network: Any, sources: tuple[int, ...], shape: tuple[int, ...]) -> int:
        layer = network if isinstance(network, Layer) else network.kernel_fn.layer
        self.steps.append((layer, sources))
        self.shapes.append(tuple(shape))
        return len(self.shapes) - 1

    def run(self, jaxpr: Any, consts: Any, arguments: Any) -> list[Any]:
        env: dict[Any, Any] = dict(zip(jaxpr.constvars, consts))
        env.update(zip(jaxpr.invars, arguments))

        def read(atom):
            return atom.val if isinstance(atom, core.Literal) else env[atom]

        for equation in jaxpr.eqns:
            values = [read(atom) for atom in equation.invars]
            if any(isinstance(v, _Value) for v in values):
                out = self.equation(equation, values)
            elif any(isinstance(v, _Param) for v in values):
                out = [_Param(_evaluate(equation, values)[0])]
            else:
                out = _evaluate(equation, values)
            env.update(zip(equation.outvars, out))
        return [read(atom) for atom in jaxpr.outvars]

    def equation(self, equation: Any, values: list[Any]) -> list[Any]:
        name, params = equation.primitive.name, equation.params
        shape = equation.outvars[0].aval.shape
        where = [i for i, v in enumerate(values) if isinstance(v, _Value)]
        if name in CALLS:
            return self.call(equation, values, where, shape)
        x = values[where[0]]
        rest = [v for i, v in enumerate(values) if i not in where]
        if name in ("convert_element_type", "stop_gradient", "copy", "squeeze", "reduce_precision"):
            if tuple(x.shape) != tuple(shape):
                return [self.refuse(equation)]
            return [x]
        if len(where) == 2:
            if name == "add" and values[0].shape == values[1].shape:
                sources = (values[0].number, values[1].number)
                return [self.value(stax.FanInSum(), sources, shape)]
            if name == "mul" and values[0].shape == values[1].shape:
                sources = (values[0].number, values[1].number)
                if sources[0] != sources[1]:
                    return [self.value(stax.FanInProd(), sources, shape)]
            return [self.refuse(equation)]
        source = (x.number,)
        if name == "dot_general" and isinstance(rest[0], _Param):
            (left, right), batch = params["dimension_numbers"]
            ndim = len(x.shape)
            if where == [0] and left == (ndim - 1,) and right == (0,) and batch == ((), ()):
                weights = rest[0].array
                layer = DenseLayer(weights.shape[1], self.weight_std(weights, weights.shape[0]),
                                   None, 0, -1, "standard", (1, 1))  # fmt: skip
                return [self.value(layer, source, shape)]
        elif name == "conv_general_dilated" and where == [0] and isinstance(rest[0], _Param):
            return [self.value(self.conv(equation, x, rest[0].array), source, shape)]
        elif name in ("add", "sub") and rest and isinstance(rest[0], _Param):
            bias = np.broadcast_to(rest[0].array, shape)
            # One number per channel, the same for every input and position.
            if np.array_equal(bias, np.broadcast_to(bias[(0,) * (len(shape) - 1)], shape)):
                b_std = self.b_std
                b_std = float(np.sqrt(np.mean(np.square(bias)))) if b_std is None else b_std
                return [self.value(BiasLayer(b_std), source, shape)]
        elif name in ("mul", "div") and rest and np.size(rest[0]) == 1 and _plain(rest[0]):
            factor = float(np.asarray(rest[0]).reshape(()))
            if name == "mul" or where == [0]:
                factor = factor if name == "mul" else 1 / factor
                return [self.value(ScaleLayer(factor), source, shape)]
        elif name == "neg":
            return [x]
        elif name == "reshape" and len(shape) == 2 and shape[0] == x.shape[0]:
            return [self.value(stax.Flatten(), source, shape)]
        elif name == "reshape" and tuple(shape) == tuple(x.shape):
            return [x]
        elif name == "reduce_sum" and params["axes"] == tuple(range(1, len(x.shape) - 1)):
            return [self.value(stax.GlobalSumPool(), source, shape)]
        elif name == "reduce_window_sum":
            return [self.value(self.pool(equation, x), source, shape)]
        elif name == "max" and rest and _plain(rest[0]) and np.all(np.asarray(rest[0]) == 0):
            return [self.value(stax.Relu(), source, shape)]
        elif name in PRIMITIVES:
            return [self.value(PRIMITIVES[name](), source, shape)]
        elif name == "integer_pow":
            return [self.value(stax.Monomial(params["y"]), source, shape)]
        return [self.refuse(equation)]

    def value(self, network: Any, sources: tuple[int, ...], shape: Any) -> "_Value":
        return _Value(self.add(network, sources, shape), tuple(shape))

    def weight_std(self, weights: Array, fan_in: int) -> Any:
        if self.W_std is not None:
            return self.W_std
        return float(np.sqrt(fan_in * np.mean(np.square(weights))))

    def conv(self, equation: Any, x: "_Value", weights: Array) -> ConvLayer:
        params = equation.params
        spec = params["dimension_numbers"]
        count = len(x.shape) - 2
        size = tuple(weights.shape[a] for a in spec.rhs_spec[2:])
        if (
            spec.lhs_spec != (0, count + 1, *range(1, count + 1))
            or spec.out_spec != spec.lhs_spec
            or set(params["lhs_dilation"]) - {1}
            or params["batch_group_count"] != 1
        ):
            self.refuse(equation)
        dilation = params["rhs_dilation"]
        groups = params["feature_group_count"]
        fan_in = weights.shape[spec.rhs_spec[1]] * math.prod(size)
        strides = params["window_strides"]
        padding = _padding_name(params["padding"], x.shape[1:-1], size, strides, dilation)
        network = stax.Conv(
            weights.shape[spec.rhs_spec[0]], size, strides, padding or self.refuse(equation),
            self.weight_std(weights, fan_in), None, parameterization="standard", dilation=dilation,
            groups=groups,
        )  # fmt: skip
        return network.kernel_fn.layer

    def pool(self, equation: Any, x: "_Value") -> Any:
        params = equation.params
        window, strides = params["window_dimensions"], params["window_strides"]
        ends = (window[0], window[-1], strides[0], strides[-1])
        one = (1,) * len(x.shape)
        if (
            ends != (1, 1, 1, 1)
            or params["base_dilation"] != one
            or params["window_dilation"] != one
        ):
            self.refuse(equation)
        name = _padding_name(params["padding"][1:-1], x.shape[1:-1], window[1:-1], strides[1:-1],
                             one[1:-1])  # fmt: skip
        return stax.SumPool(window[1:-1], strides[1:-1], name or self.refuse(equation))

    def call(self, equation: Any, values: list[Any], where: list[int], shape: Any) -> list[Any]:
        inner = equation.params.get("jaxpr") or equation.params.get("call_jaxpr")
        closed = inner if hasattr(inner, "consts") else core.ClosedJaxpr(inner, ())
        name = str(equation.params.get("name", ""))
        alone = len(where) == 1 and len(equation.outvars) == 1
        x = values[where[0]]
        if alone and name in CLOSED_FORMS and tuple(shape) == x.shape and _usual(name, values):
            return [self.value(CLOSED_FORMS[name](), (x.number,), shape)]
        saved = len(self.steps), len(self.shapes)
        try:
            return self.run(closed.jaxpr, closed.consts, values)
        except NotImplementedError:
            del self.steps[saved[0] :], self.shapes[saved[1] :]
            if alone and tuple(shape) == x.shape and all(_plain(v) or v is x for v in values):
                function = _function_of_one(closed, values, where[0])
                if function is not None:
                    return [self.value(stax.Elementwise(function), (x.number,), shape)]
            raise

    def refuse(self, equation: Any) -> Any:
        shapes = [getattr(a.aval, "shape", ()) for a in equation.invars]
        raise NotImplementedError(
            f"kernel_fn_from_flax: operation {equation.primitive.name!r} on shapes {shapes} is no "
            "layer with a known infinite-width kernel. Known are Dense, Conv, functions of one "
            "number, average and global pooling, flattening, sums of branches. For anything else "
            "use empirical_ntk_fn or monte_carlo_kernel_fn on ntk.from_flax(module)."
        )


@dataclasses.dataclass(frozen=True, eq=False)
class _Value:
    """A value that depends on the inputs."""

    number: int
    shape: tuple[int, ...]


@dataclasses.dataclass(frozen=True, eq=False)
class _Param:
    """A value that depends on parameters only."""

    array: Any


def _plain(value: Any) -> bool:
    return not isinstance(value, (_Value, _Param))


def _usual(name: str, values: list[Any]) -> bool:
    """Whether optional arguments have the value that the closed form assumes."""
    extra = [float(np.asarray(v)) for v in values if _plain(v) and np.size(v) == 1]
    usual = {"leaky_relu": 0.01, "elu": 1.0}
    return all(abs(v - usual.get(name, v)) < 1e-7 for v in extra)


def _evaluate(equation: Any, values: list[Any]) -> list[Any]:
    plain = [v.array if isinstance(v, _Param) else v for v in values]
    out = equation.primitive.bind(*plain, **equation.params)
    return list(out) if equation.primitive.multiple_results else [out]


def _function_of_one(closed: Any, values: list[Any], slot: int) -> Any:
    """The call as a function of one number, when it acts entry by entry; None otherwise."""

    def function(x):
        given = [x if i == slot else v for i, v in enumerate(values)]
        return core.jaxpr_as_fun(closed)(*given)[0]

    shape = values[slot].shape
    rng = np.random.default_rng(0)
    # Entry by entry means: constant inputs give constant outputs, and permuting commutes.
    x = jnp.asarray(rng.normal(size=shape), jnp.float32)
    order = rng.permutation(math.prod(shape))
    mixed = x.reshape(-1)[order].reshape(shape)
    same = function(x).reshape(-1)[order].reshape(shape)
    if not np.allclose(function(mixed), same, rtol=1e-6, atol=1e-6):
        return None
    return lambda x: jnp.vectorize(lambda one: function(jnp.full(shape, one)).reshape(-1)[0])(x)


def _padding_name(pads: Any, lengths: Any, sizes: Any, strides: Any, dilation: Any) -> Any:
    pads = tuple(tuple(p) for p in pads)
    if all(p == (0, 0) for p in pads):
        return Padding.VALID
    wanted = []
    for length, size, stride, apart in zip(lengths, sizes, strides, dilation):
        total = max((-(-length // stride) - 1) * stride + (size - 1) * apart + 1 - length, 0)
        wanted.append((total // 2, total - total // 2))
    return Padding.SAME if pads == tuple(wanted) else None


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
    reader = _Reader(W_std, b_std)
    reader.shapes.append(tuple(inputs.shape))
    arguments = [_Value(0, tuple(inputs.shape)), *(_Param(np.asarray(leaf)) for leaf in leaves)]
    out = reader.run(closed.jaxpr, closed.consts, arguments)
    if len(out) != 1 or not isinstance(out[0], _Value):
        raise NotImplementedError("kernel_fn_from_flax: the module must return one array.")
    steps = tuple(reader.steps[: out[0].number])
    return KernelFn(GraphLayer(steps, tuple(reader.shapes[: out[0].number + 1])))
