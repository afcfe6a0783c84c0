"""Reads a jaxpr as a graph of layers with known infinite-width kernels.

Each equation that touches the inputs is matched to a layer of `ntk.stax`: products with parameters
to Dense and Conv, additions of parameters to biases, known functions to their closed forms, sums
and means over positions to pooling. Equations that act entry by entry on one earlier value, such as
those of an inlined gelu, are gathered into one function of that value, whose kernel is computed by
quadrature. What is not recognised is refused by name.
"""

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend import core

from ntk import stax
from ntk._from_flax_layers import CLOSED_FORMS, ENTRYWISE, PRIMITIVES, BiasLayer, ScaleLayer
from ntk.stax._conv import ConvLayer
from ntk.stax._dense import DenseLayer
from ntk.stax._layer import Layer
from ntk.stax._window import Padding

Array = jax.Array
CALLS = ("jit", "pjit", "custom_jvp_call", "custom_vjp_call", "closed_call", "checkpoint")


def _itself(u: Any) -> Any:
    return u


@dataclasses.dataclass(frozen=True, eq=False)
class Value:
    """A value that depends on the inputs: a function, entry by entry, of an earlier value.

    Attributes:
      number: of the step that computes it; 0 for the inputs.
      shape: of the array.
      weights: steps with weights that lie behind it, the last ones on every path; values without a
        common one are independent.
      root: number of the earlier value.
      function: of one number.
      curved: whether `function` is more than a factor.
    """

    number: int
    shape: tuple[int, ...]
    weights: frozenset[int]
    root: int
    function: Callable[[Any], Any] = _itself
    curved: bool = False


@dataclasses.dataclass(frozen=True, eq=False)
class Param:
    """A value that depends on parameters only; `leaves` says on which."""

    array: Any
    leaves: frozenset[int]


class Reader:
    """Walks a jaxpr and collects steps: a layer, or a function that makes it, and its inputs."""

    def __init__(self, W_std: Any, b_std: Any, shape: tuple[int, ...]):
        self.W_std, self.b_std = W_std, b_std
        self.steps: list[tuple[Any, tuple[int, ...]]] = []
        self.start = Value(0, shape, frozenset({0}), 0)
        self.shapes: list[tuple[int, ...]] = [shape]
        self.used: set[int] = set()

    def graph(self, out: Value) -> tuple[Any, Any]:
        """Steps and shapes of what `out` depends on."""
        live = {out.number}
        for number in range(out.number, 0, -1):
            if number in live:
                live |= set(self.steps[number - 1][1])
        kept = [0, *sorted(live - {0})]
        names = {number: i for i, number in enumerate(kept)}
        steps = []
        for number in kept[1:]:
            make, sources = self.steps[number - 1]
            made = make if isinstance(make, Layer) else make().kernel_fn.layer
            steps.append((made, tuple(names[s] for s in sources)))
        return tuple(steps), tuple(self.shapes[number] for number in kept)

    def step(self, make: Any, sources: tuple[int, ...], shape: Any) -> int:
        """Enters a layer, or what makes one when it is needed; returns the number of its output."""
        self.steps.append((make, sources))
        self.shapes.append(tuple(shape))
        return len(self.steps)

    def mixed(self, make: Any, sources: list[Value], shape: Any) -> Value:
        """The output of a layer that is no function of single entries."""
        number = self.step(make, tuple(s.number for s in sources), shape)
        weights = frozenset().union(*(s.weights for s in sources))
        return Value(number, tuple(shape), weights, number)

    def weighted(self, layer: Layer, x: Value, shape: Any, weights: Param, equation: Any) -> Value:
        """The output of a layer with weights of its own."""
        if weights.leaves & self.used:
            self.refuse(equation, " with weights that an earlier operation uses as well")
        self.used |= weights.leaves
        number = self.step(layer, (x.number,), shape)
        return Value(number, tuple(shape), frozenset({number}), number)

    def mapped(self, make: Any, x: Value, function: Any, *, curved: bool = True) -> Value:
        """The output of a function of numbers, with a layer for it when x is Gaussian."""
        given = x.function

        def composed(u):
            return function(given(u))

        if x.curved and curved:
            number = self.step(lambda: stax.Elementwise(composed), (x.root,), x.shape)
        else:
            number = self.step(make, (x.number,), x.shape)
        return Value(number, x.shape, x.weights, x.root, composed, x.curved or curved)

    def gathered(self, equation: Any, values: list[Any], shape: Any) -> Value | None:
        """The equation as a function of the one value that its operands are functions of."""
        if equation.primitive.name not in ENTRYWISE:
            return None
        sources = [v for v in values if isinstance(v, Value)]
        if len({s.root for s in sources}) > 1 or any(s.shape != tuple(shape) for s in sources):
            return None
        numbers: list[Any] = [None if isinstance(v, Value) else _number(v) for v in values]
        if any(n is None and not isinstance(v, Value) for n, v in zip(numbers, values)):
            return None

        def function(u):
            dtype = jnp.result_type(u)
            given = [
                v.function(u) if isinstance(v, Value)
                else jnp.asarray(n, dtype if np.issubdtype(n.dtype, np.floating) else n.dtype)
                for v, n in zip(values, numbers)
            ]  # fmt: skip
            if equation.primitive.name in ("convert_element_type", "copy"):
                return given[0]
            return equation.primitive.bind(*given, **equation.params)

        root = sources[0].root
        number = self.step(lambda: stax.Elementwise(function), (root,), shape)
        return Value(number, tuple(shape), sources[0].weights, root, function, True)

    def run(self, jaxpr: Any, consts: Any, arguments: Any) -> list[Any]:
        """Values of the outputs of a jaxpr."""
        env: dict[Any, Any] = dict(zip(jaxpr.constvars, consts))
        env.update(zip(jaxpr.invars, arguments))

        def read(atom):
            return atom.val if isinstance(atom, core.Literal) else env[atom]

        for equation in jaxpr.eqns:
            values = [read(atom) for atom in equation.invars]
            if any(isinstance(v, Value) for v in values):
                out = self.equation(equation, values)
            elif any(isinstance(v, Param) for v in values):
                leaves = frozenset().union(*(v.leaves for v in values if isinstance(v, Param)))
                out = [Param(array, leaves) for array in _evaluate(equation, values)]
            else:
                out = _evaluate(equation, values)
            env.update(zip(equation.outvars, out))
        return [read(atom) for atom in jaxpr.outvars]

    def equation(self, equation: Any, values: list[Any]) -> list[Any]:
        """Outputs of one equation."""
        if equation.primitive.name in CALLS:
            return self.call(equation, values)
        shape = equation.outvars[0].aval.shape
        where = [i for i, v in enumerate(values) if isinstance(v, Value)]
        x = values[where[0]]
        if len(where) > 1:
            found = self.gathered(equation, values, shape) or self.joined(equation, values, shape)
        else:
            rest = [v for i, v in enumerate(values) if i not in where]
            found = self.affine(equation, x, rest, where[0], shape)
            found = found or self.single(equation, x, rest, where[0], shape)
            found = found or self.gathered(equation, values, shape)
        return [found or self.refuse(equation)]

    def joined(self, equation: Any, values: list[Any], shape: Any) -> Value | None:
        """Sums and products of independent values."""
        name = equation.primitive.name
        layers = {"add": stax.FanInSum, "sub": stax.FanInSum, "mul": stax.FanInProd}
        if name not in layers or len({v.shape for v in values} | {tuple(shape)}) > 1:
            return None
        if values[0].weights & values[1].weights:
            self.refuse(equation, " between values that depend on each other")
        return self.mixed(layers[name], values, shape)

    def affine(self, equation: Any, x: Value, rest: list[Any], slot: int, shape: Any) -> Any:
        """Products with weights, and biases."""
        name, params = equation.primitive.name, equation.params
        if not rest or not isinstance(rest[0], Param):
            return None
        if name == "dot_general":
            (left, right), batch = params["dimension_numbers"]
            last = len(x.shape) - 1
            if slot == 0 and left == (last,) and right == (0,) and batch == ((), ()):
                weights = rest[0].array
                layer = DenseLayer(weights.shape[1], self.weight_std(weights, weights.shape[0]),
                                   None, 0, -1, "standard", (1, 1))  # fmt: skip
                return self.weighted(layer, x, shape, rest[0], equation)
        elif name == "conv_general_dilated" and slot == 0:
            layer = self.conv(equation, x, rest[0].array)
            return self.weighted(layer, x, shape, rest[0], equation)
        elif name in ("add", "sub"):
            bias = np.broadcast_to(rest[0].array, shape)
            # One number per channel, the same for every input and position.
            if np.array_equal(bias, np.broadcast_to(bias[(0,) * (len(shape) - 1)], shape)):
                b_std = self.b_std
                b_std = float(np.sqrt(np.mean(np.square(bias)))) if b_std is None else b_std
                return self.mixed(BiasLayer(b_std), [x], shape)
        return None

    def single(self, equation: Any, x: Value, rest: list[Any], slot: int, shape: Any) -> Any:
        """Layers without weights on one value."""
        name, params = equation.primitive.name, equation.params
        same = tuple(x.shape) == tuple(shape)
        number = _number(rest[0]) if rest else None
        if same and name in ("convert_element_type", "copy", "squeeze", "reshape"):
            return x
        if name == "reshape" and len(shape) == 2 and shape[0] == x.shape[0]:
            return self.mixed(stax.Flatten, [x], shape)
        if name == "reduce_sum" and params["axes"] == tuple(range(1, len(x.shape) - 1)):
            return self.mixed(stax.GlobalSumPool, [x], shape)
        if name == "reduce_window_sum":
            return self.mixed(self.pool(equation, x).kernel_fn.layer, [x], shape)
        if name == "neg":
            return self.mapped(ScaleLayer(-1.0), x, lambda u: -u, curved=False)
        if number is not None and (name == "mul" or (name == "div" and slot == 0)):
            factor = float(number) if name == "mul" else 1 / float(number)
            return self.mapped(ScaleLayer(factor), x, lambda u: factor * u, curved=False)
        if name == "max" and number is not None and number == 0:
            return self.mapped(stax.Relu, x, jax.nn.relu)
        if name in PRIMITIVES:
            return self.mapped(
                PRIMITIVES[name], x, lambda u: equation.primitive.bind(u, **equation.params)
            )
        if name == "integer_pow" and params["y"] >= 0:
            return self.mapped(lambda: stax.Monomial(params["y"]), x, lambda u: u ** params["y"])
        return None

    def weight_std(self, weights: Array, fan_in: int) -> Any:
        """The given W_std, or what the weights show."""
        if self.W_std is not None:
            return self.W_std
        return float(np.sqrt(fan_in * np.mean(np.square(weights))))

    def conv(self, equation: Any, x: Value, weights: Array) -> ConvLayer:
        """The layer of a convolution."""
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

    def pool(self, equation: Any, x: Value) -> Any:
        """The layer of a sum over windows."""
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

    def call(self, equation: Any, values: list[Any]) -> list[Any]:
        """Outputs of a function that the jaxpr calls: a known one, or what its equations give."""
        inner = equation.params.get("jaxpr") or equation.params.get("call_jaxpr")
        closed = inner if hasattr(inner, "consts") else core.ClosedJaxpr(inner, ())
        name = str(equation.params.get("name", ""))
        where = [i for i, v in enumerate(values) if isinstance(v, Value)]
        x = values[where[0]]
        shape = tuple(equation.outvars[0].aval.shape)
        alone = len(where) == len(equation.outvars) == 1 and shape == x.shape
        if alone and name in CLOSED_FORMS and _usual(name, values):
            made = CLOSED_FORMS[name]()
            return [self.mapped(lambda: made, x, made.kernel_fn.layer.fn)]
        return self.run(closed.jaxpr, closed.consts, values)

    def refuse(self, equation: Any, why: str = "") -> Any:
        """Raises for an equation without a layer."""
        shapes = [getattr(a.aval, "shape", ()) for a in equation.invars]
        raise NotImplementedError(
            f"kernel_fn_from_flax: operation {equation.primitive.name!r} on shapes {shapes}{why} "
            "is no layer with a known infinite-width kernel. Known are Dense, Conv, functions of "
            "one number, average and global pooling, flattening, sums and products of independent "
            "branches. For anything else use empirical_ntk_fn or monte_carlo_kernel_fn on "
            "ntk.from_flax(module)."
        )


def _number(value: Any) -> Any:
    """The one number that an array of constants holds, or None."""
    if isinstance(value, (Value, Param)) or np.size(value) == 0:
        return None
    flat = np.asarray(value).reshape(-1)
    return flat[0] if (flat == flat[0]).all() else None


def _plain(value: Any) -> bool:
    return not isinstance(value, (Value, Param))


def _usual(name: str, values: list[Any]) -> bool:
    """Whether optional arguments have the value that the closed form assumes."""
    extra = [float(np.asarray(v)) for v in values if _plain(v) and np.size(v) == 1]
    usual = {"leaky_relu": 0.01, "elu": 1.0}
    return all(abs(v - usual.get(name, v)) < 1e-7 for v in extra)


def _evaluate(equation: Any, values: list[Any]) -> list[Any]:
    plain = [v.array if isinstance(v, Param) else v for v in values]
    out = equation.primitive.bind(*plain, **equation.params)
    return list(out) if equation.primitive.multiple_results else [out]


def _padding_name(pads: Any, lengths: Any, sizes: Any, strides: Any, dilation: Any) -> Any:
    pads = tuple(tuple(p) for p in pads)
    if all(p == (0, 0) for p in pads):
        return Padding.VALID
    wanted = []
    for length, size, stride, apart in zip(lengths, sizes, strides, dilation):
        total = max((-(-length // stride) - 1) * stride + (size - 1) * apart + 1 - length, 0)
        wanted.append((total // 2, total - total // 2))
    return Padding.SAME if pads == tuple(wanted) else None
