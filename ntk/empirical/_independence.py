"""A proof, read off the trace, that a function treats the examples of a batch one by one.

The function and its tangent are traced with the batch as it is and with a batch of one, and the two
traces are walked side by side. Every value is either the same in both, or has an axis of the
batch's size in one and of size one in the other, along which nothing is mixed. An equation without
a rule, or a constant that differs, ends the proof; the function is then treated as a whole.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from jax.extend.core import ClosedJaxpr, Jaxpr, Literal

from ntk.empirical._scan import scan_counts

PyTree = Any
Axis = int | None  # where the batch is; None: the value does not know of it

ELEMENTWISE = set(
    """
    abs acos acosh add add_any and asin asinh atan atan2 atanh bessel_i0e bessel_i1e cbrt
    ceil clamp conj convert_element_type copy copy_p cos cosh digamma div eq erf erf_inv
    erfc exp exp2 expm1 floor ge gt igamma igammac imag integer_pow is_finite le lgamma
    log log1p log2 logistic lt max min mul ne neg nextafter not one_minus_square or
    polygamma pow real reduce_precision rem round rsqrt select_n sign sin sinh sqrt square
    stop_gradient sub tan tanh xor name optimization_barrier random_wrap
    """.split()  # noqa: SIM905
)
REDUCTIONS = set(
    """
    reduce_sum reduce_max reduce_min reduce_prod reduce_and reduce_or reduce_xor argmax
    argmin
    """.split()  # noqa: SIM905
)
ALONG_AXIS = {"cumsum", "cumprod", "cummax", "cummin", "cumlogsumexp"}
WINDOWS = {
    "reduce_window",
    "reduce_window_sum",
    "reduce_window_max",
    "reduce_window_min",
    "select_and_gather_add",
}
# A custom_jvp left in the trace of a tangent is not differentiated: a call like the others.
CALLS = {
    "jit",
    "pjit",
    "closed_call",
    "core_call",
    "remat",
    "checkpoint",
    "remat2",
    "custom_jvp_call",
}


class Mixed(Exception):
    """The proof failed; the message says at what."""


def is_independent(
    f: Callable[..., PyTree], params: PyTree, x: PyTree, kwargs: dict[str, Any]
) -> bool:
    """Whether `f(params, x, **kwargs)` maps over axis 0 of all inputs and outputs.

    Args:
      params, x, kwargs: arrays or their shapes; other values in kwargs go to `f` as they are.
    """
    leaves = jax.tree.leaves(x)
    shapes = [np.shape(leaf) for leaf in leaves]
    if not shapes or any(len(shape) == 0 for shape in shapes):
        return False
    if len({shape[0] for shape in shapes}) != 1:
        return False
    size = max(shapes[0][0], 2)
    traced = {k: v for k, v in kwargs.items() if isinstance(v, jax.Array | np.ndarray)}
    rest = {k: v for k, v in kwargs.items() if k not in traced}
    values, tree = jax.tree.flatten(params)
    live = [k for k, v in enumerate(values) if jax.numpy.issubdtype(v.dtype, np.inexact)]

    def tangent(ordinary, direction, inputs, keywords):
        def function(point):
            full = list(values_in)
            for k, leaf in zip(live, point):
                full[k] = leaf
            return f(jax.tree.unflatten(tree, full), inputs, **keywords, **rest)

        values_in = ordinary
        point = [ordinary[k] for k in live]
        return jax.jvp(function, (point,), (direction,))

    def trace(count: int) -> ClosedJaxpr:
        inputs = jax.tree.map(
            lambda leaf: jax.ShapeDtypeStruct((count, *np.shape(leaf)[1:]), leaf.dtype), x
        )
        shaped = [jax.ShapeDtypeStruct(v.shape, v.dtype) for v in values]
        keywords = {k: jax.ShapeDtypeStruct(v.shape, v.dtype) for k, v in traced.items()}
        return jax.make_jaxpr(tangent)(shaped, [shaped[k] for k in live], inputs, keywords)

    try:
        many, one = trace(size), trace(1)
    except Exception:  # whatever a function raises that does not run on a batch of one
        return False
    try:
        first = len(values) + len(live)
        axes: list[Axis] = [None] * len(many.jaxpr.invars)
        axes[first : first + len(leaves)] = [0] * len(leaves)
        outs = _walk(many.jaxpr, many.consts, one.jaxpr, one.consts, axes)
    except Mixed:
        return False
    return all(axis == 0 for axis in outs)


def _walk(
    many: Jaxpr, consts_many: Sequence[Any], one: Jaxpr, consts_one: Sequence[Any], axes: list[Axis]
) -> list[Axis]:
    """Batch axes of the results."""
    if len(many.eqns) != len(one.eqns) or len(many.constvars) != len(one.constvars):
        raise Mixed("the two traces differ in length")
    env: dict[Any, Axis] = {}
    for var, a, b in zip(many.constvars, consts_many, consts_one):
        if a is not b and not (np.shape(a) == np.shape(b) and np.array_equal(a, b)):
            raise Mixed("a constant depends on the batch size")
        env[var] = None
    env.update(zip(many.invars, axes))

    def read(a: Any, b: Any) -> Axis:
        if isinstance(a, Literal) != isinstance(b, Literal):
            raise Mixed("a literal in one trace only")
        if isinstance(a, Literal):
            same = np.array_equal(a.val, b.val) or (np.isnan(a.val) and np.isnan(b.val))
            if not same:
                raise Mixed("a number depends on the batch size")
            return None
        return env[a]

    for eqn, twin in zip(many.eqns, one.eqns):
        if eqn.primitive is not twin.primitive or len(eqn.invars) != len(twin.invars):
            raise Mixed("the two traces differ in an equation")
        inputs = [read(a, b) for a, b in zip(eqn.invars, twin.invars)]
        outs = _step(eqn, twin, inputs)
        for var, twin_var, axis in zip(eqn.outvars, twin.outvars, outs):
            _check_shape(var, twin_var, axis)
            env[var] = axis
    return [read(a, b) for a, b in zip(many.outvars, one.outvars)]


def _check_shape(var: Any, twin: Any, axis: Axis) -> None:
    shape, expected = getattr(var.aval, "shape", ()), list(getattr(twin.aval, "shape", ()))
    if axis is not None:
        if not 0 <= axis < len(expected) or expected[axis] != 1:
            raise Mixed("an axis that is not the batch's")
        expected[axis] = shape[axis]
    if tuple(expected) != tuple(shape):
        raise Mixed("a shape depends on the batch size elsewhere")


def _same_numbers(eqn: Any, twin: Any) -> None:
    for name, value in eqn.params.items():
        simple = isinstance(value, int | float | bool | str) or (
            isinstance(value, tuple) and all(isinstance(v, int | float) for v in value)
        )
        if simple and value != twin.params.get(name):
            raise Mixed(f"parameter {name} depends on the batch size")


def _step(eqn: Any, twin: Any, inputs: list[Axis]) -> list[Axis]:
    name, count = eqn.primitive.name, len(eqn.outvars)
    if name in CALLS:
        key = "jaxpr" if "jaxpr" in eqn.params else "call_jaxpr"
        inner, other = eqn.params[key], twin.params[key]
        if isinstance(inner, ClosedJaxpr):
            return _walk(inner.jaxpr, inner.consts, other.jaxpr, other.consts, inputs)
        return _walk(inner, (), other, (), inputs)
    if name == "scan":
        return _scan(eqn, twin, inputs)
    if name == "cond":
        if inputs[0] is not None:
            raise Mixed("a branch chosen by the batch")
        found = [
            _walk(a.jaxpr, a.consts, b.jaxpr, b.consts, inputs[1:])
            for a, b in zip(eqn.params["branches"], twin.params["branches"])
        ]
        if any(axes != found[0] for axes in found):
            raise Mixed("branches that differ")
        return found[0]
    if all(axis is None for axis in inputs):
        if name == "broadcast_in_dim":
            return [_new_axis(eqn, twin)]
        _same_numbers(eqn, twin)
        return [None] * count
    if name in ELEMENTWISE:
        _same_numbers(eqn, twin)
        return [_common(eqn, inputs)] * count
    return [_moved(name, eqn, inputs)] * count


def _new_axis(eqn: Any, twin: Any) -> Axis:
    """The batch axis that a broadcast makes: copies are a batch like any other."""
    if eqn.invars[0].aval.shape != twin.invars[0].aval.shape:
        raise Mixed("a constant's shape depends on the batch size")
    shape, other = eqn.params["shape"], twin.params["shape"]
    differ = [k for k, (a, b) in enumerate(zip(shape, other)) if a != b]
    if not differ:
        return None
    if len(differ) > 1:
        raise Mixed("two axes depend on the batch size")
    return differ[0]


def _common(eqn: Any, inputs: list[Axis]) -> Axis:
    axes = {axis for axis in inputs if axis is not None}
    if len(axes) != 1:
        raise Mixed(f"{eqn.primitive.name} of different batch axes")
    at = axes.pop()
    for var, axis in zip(eqn.invars, inputs):
        if axis is None and var.aval.ndim and var.aval.shape[at] != 1:
            raise Mixed(f"{eqn.primitive.name} with an array that has its own batch axis")
    return at


def _moved(name: str, eqn: Any, inputs: list[Axis]) -> Axis:
    """Where the batch axis goes; equations here act on other axes only."""
    params = eqn.params
    axis = next(k for k in inputs if k is not None)
    operand = next(v.aval for v, k in zip(eqn.invars, inputs) if k is not None)
    size = operand.shape[axis]
    if name == "dot_general":
        return _dot(params["dimension_numbers"], eqn, inputs)
    if name == "conv_general_dilated":
        lhs, _, out = params["dimension_numbers"]
        if inputs[1] is None and inputs[0] == lhs[0] and params["batch_group_count"] == 1:
            return out[0]
    elif name == "gather":
        return _gather(eqn, inputs)
    elif name in ("dynamic_slice", "dynamic_update_slice", "concatenate", "sort"):
        return _several(name, eqn, inputs)
    elif len([k for k in inputs if k is not None]) == len(inputs) == 1 or name in WINDOWS:
        return _single(name, params, axis, operand, size, eqn)
    elif name == "pad" and inputs[1] is None and params["padding_config"][axis] == (0, 0, 0):
        return axis
    raise Mixed(f"no rule for {name}")


def _single(name: str, params: Any, axis: int, operand: Any, size: int, eqn: Any) -> Axis:
    out_shape = eqn.outvars[0].aval.shape
    if name in REDUCTIONS and axis not in params["axes"]:
        return axis - sum(other < axis for other in params["axes"])
    if name == "broadcast_in_dim":
        return params["broadcast_dimensions"][axis]
    if name == "transpose":
        return params["permutation"].index(axis)
    if name == "reshape" and params.get("dimensions") is None:
        before = math.prod(operand.shape[:axis])
        for at, length in enumerate(out_shape):
            if length == size and math.prod(out_shape[:at]) == before:
                return at
    if name == "squeeze" and axis not in params["dimensions"]:
        return axis - sum(other < axis for other in params["dimensions"])
    if name in ALONG_AXIS and params["axis"] != axis:
        return axis
    if name == "rev" and axis not in params["dimensions"]:
        return axis
    if name == "slice":
        strides = params["strides"]
        whole = params["start_indices"][axis] == 0 and params["limit_indices"][axis] == size
        if whole and (strides is None or strides[axis] == 1):
            return axis
    if name == "split" and params["axis"] != axis:
        return axis
    if name == "top_k" and axis != operand.ndim - 1:
        return axis
    if name in WINDOWS and (
        params["window_dimensions"][axis] == 1
        and params["window_strides"][axis] == 1
        and tuple(params["padding"][axis]) == (0, 0)
    ):
        return axis
    raise Mixed(f"no rule for {name} here")


def _dot(dimension_numbers: Any, eqn: Any, inputs: list[Axis]) -> Axis:
    (contracting, batch), ndim = dimension_numbers, [v.aval.ndim for v in eqn.invars]
    free = [
        [k for k in range(ndim[side]) if k not in (*contracting[side], *batch[side])]
        for side in (0, 1)
    ]
    left, right = inputs
    if left is not None and right is not None:
        if left in batch[0] and batch[0].index(left) == list(batch[1]).index(right):
            return list(batch[0]).index(left)
    elif left is not None and left in free[0]:
        return len(batch[0]) + free[0].index(left)
    elif right is not None and right in free[1]:
        return len(batch[0]) + len(free[0]) + free[1].index(right)
    raise Mixed("a product over the batch")


def _gather(eqn: Any, inputs: list[Axis]) -> Axis:
    numbers = eqn.params["dimension_numbers"]
    operand, indices = inputs
    ndim = eqn.outvars[0].aval.ndim
    places = [k for k in range(ndim) if k not in numbers.offset_dims]
    if operand is None and indices is not None and indices < eqn.invars[1].aval.ndim - 1:
        return places[indices]
    if operand is not None and indices is not None:
        batching = list(zip(numbers.operand_batching_dims, numbers.start_indices_batching_dims))
        if (operand, indices) in batching:
            return places[indices]
    if operand is not None and indices is None:
        full = eqn.params["slice_sizes"][operand] == eqn.invars[0].aval.shape[operand]
        if full and operand not in (*numbers.start_index_map, *numbers.collapsed_slice_dims):
            kept = [
                k
                for k in range(eqn.invars[0].aval.ndim)
                if k not in (*numbers.collapsed_slice_dims, *numbers.operand_batching_dims)
            ]
            return numbers.offset_dims[kept.index(operand)]
    raise Mixed("a gather over the batch")


def _several(name: str, eqn: Any, inputs: list[Axis]) -> Axis:
    axis = next(k for k in inputs if k is not None)
    size = eqn.outvars[0].aval.shape[axis]
    if name == "concatenate" and eqn.params["dimension"] != axis and set(inputs) == {axis}:
        return axis
    if name == "sort" and eqn.params["dimension"] != axis and set(inputs) == {axis}:
        return axis
    fixed = all(k is None for k in inputs[1:])
    if name == "dynamic_slice" and fixed and size == eqn.invars[0].aval.shape[axis]:
        return axis
    if name == "dynamic_update_slice" and inputs[0] == inputs[1] == axis:
        whole = eqn.invars[1].aval.shape[axis] == size
        if whole and all(k is None for k in inputs[2:]):
            return axis
    raise Mixed(f"no rule for {name} here")


def _scan(eqn: Any, twin: Any, inputs: list[Axis]) -> list[Axis]:
    _same_numbers(eqn, twin)
    first, num_carry = scan_counts(eqn)
    second = first + num_carry
    if any(axis == 0 for axis in inputs[second:]):
        raise Mixed("a scan over the batch")
    sliced = [None if axis is None else axis - 1 for axis in inputs[second:]]
    inner, other = eqn.params["jaxpr"], twin.params["jaxpr"]
    carry = inputs[first:second]
    outs = _walk(
        inner.jaxpr, inner.consts, other.jaxpr, other.consts, [*inputs[:first], *carry, *sliced]
    )
    if outs[: len(carry)] != carry:
        raise Mixed("a carry whose batch axis moves")
    stacked = [None if axis is None else axis + 1 for axis in outs[len(carry) :]]
    return [*carry, *stacked]
