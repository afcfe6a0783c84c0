"""One side of a kernel: a function of the parameters and one input, mapped over examples or not."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.extend.core import ClosedJaxpr

from ntk.empirical._arguments import VmapAxes

Array = jax.Array
PyTree = Any


def broadcast_axes(axes: PyTree, tree: PyTree) -> list[int | None]:
    """One axis (or None) for every leaf of `tree`, from a tree prefix of axes."""
    spread = jax.tree.map(
        lambda axis, part: jax.tree.map(lambda _: -1 if axis is None else ("axis", axis), part),
        axes,
        tree,
        is_leaf=lambda node: node is None,
    )
    leaves = jax.tree.leaves(
        spread, is_leaf=lambda node: isinstance(node, tuple) and "axis" in node
    )
    return [leaf[1] if isinstance(leaf, tuple) else None for leaf in leaves]


@dataclasses.dataclass(frozen=True)
class Side:
    """A function of flat parameters and flat data, and the data it is called with.

    `one(params_leaves, data_leaves)` returns the list of output leaves of one example when the side
    is mapped (the mapped axis is absent), of the whole input otherwise.
    """

    one: Callable[[list[Array], list[Array]], list[Array]]
    data: list[Array]
    data_axes: list[int | None]  # mapped axis of every data leaf; all None when not mapped
    output_axes: list[int | None]  # mapped axis of every output leaf
    output_shapes: list[tuple[int, ...]]  # of the whole output
    output_tree: Any
    size: int | None  # number of examples, None when not mapped

    @property
    def mapped(self) -> bool:
        """Whether the side is a map over examples."""
        return self.size is not None

    def example_data(self) -> list[jax.ShapeDtypeStruct]:
        """Shapes of the data of one example."""
        shapes = []
        for leaf, axis in zip(self.data, self.data_axes):
            shape = list(leaf.shape)
            if axis is not None:
                del shape[axis % leaf.ndim]
            shapes.append(jax.ShapeDtypeStruct(tuple(shape), leaf.dtype))
        return shapes

    def jaxpr(self, params: list[Array]) -> ClosedJaxpr:
        """The jaxpr of one example, parameters first."""
        flat = [jax.ShapeDtypeStruct(p.shape, p.dtype) for p in params]
        return jax.make_jaxpr(self.one)(flat, self.example_data())

    def example_shapes(self) -> list[tuple[int, ...]]:
        """Shapes of the output leaves of one example."""
        return [
            tuple(s for k, s in enumerate(shape) if axis is None or k != axis % len(shape))
            for shape, axis in zip(self.output_shapes, self.output_axes)
        ]

    def map(self, function: Callable[[list[Array]], Any]) -> Any:
        """`function(data)` for every example, stacked in front; once when not mapped."""
        if not self.mapped:
            return function(self.data)
        return jax.vmap(function, in_axes=(self.data_axes,))(self.data)


def make_side(
    f: Callable[..., PyTree],
    params_tree: Any,
    x: PyTree,
    kwargs: dict[str, Any],
    params: list[Array],
    axes: VmapAxes | None,
    caller: str,
) -> Side:
    """A side from a function of the user.

    Args:
      f: `f(params, x, **kwargs)`.
      params_tree: structure of the parameters; `params` are its leaves.
      x: the input of this side, a pytree of arrays.
      kwargs: arrays and other values that go to `f`.
      axes: along which `f` is a map, or None.
      caller: named in errors.
    """
    arrays = {k: v for k, v in kwargs.items() if axes is not None and k in axes.kwargs}
    rest = {k: v for k, v in kwargs.items() if k not in arrays}
    data, data_tree = jax.tree.flatten((x, arrays))
    data = [jnp.asarray(leaf) for leaf in data]

    def whole(leaves: list[Array], data_leaves: list[Array]) -> PyTree:
        inputs, keywords = jax.tree.unflatten(data_tree, data_leaves)
        return f(jax.tree.unflatten(params_tree, leaves), inputs, **keywords, **rest)

    shapes = jax.eval_shape(whole, params, data)
    out_leaves, out_tree = jax.tree.flatten(shapes)
    if axes is None:
        return Side(
            one=lambda p, d: jax.tree.leaves(whole(p, d)),
            data=data,
            data_axes=[None] * len(data),
            output_axes=[None] * len(out_leaves),
            output_shapes=[leaf.shape for leaf in out_leaves],
            output_tree=out_tree,
            size=None,
        )
    kwargs_axes = {k: axes.kwargs[k] for k in arrays}
    data_axes = broadcast_axes((axes.inputs, kwargs_axes), (x, arrays))
    output_axes = broadcast_axes(axes.outputs, shapes)
    sizes = {leaf.shape[axis] for leaf, axis in zip(data, data_axes) if axis is not None}
    if len(sizes) != 1 or any(axis is None for axis in output_axes):
        raise ValueError(
            f"{caller}: vmap_axes must name one axis of equal size in every mapped input and an "
            f"axis of every output; the mapped sizes are {sorted(sizes)} and the output axes "
            f"{output_axes}."
        )
    return Side(
        one=functools.partial(_one_example, whole, data_axes, output_axes),
        data=data,
        data_axes=data_axes,
        output_axes=output_axes,
        output_shapes=[leaf.shape for leaf in out_leaves],
        output_tree=out_tree,
        size=sizes.pop(),
    )


def _one_example(
    whole: Callable[[list[Array], list[Array]], PyTree],
    data_axes: list[int | None],
    output_axes: list[int | None],
    params: list[Array],
    data: list[Array],
) -> list[Array]:
    """Calls a batched function with a batch of one."""
    batch = [
        leaf if axis is None else jnp.expand_dims(leaf, axis) for leaf, axis in zip(data, data_axes)
    ]
    outputs = jax.tree.leaves(whole(params, batch))
    return [jnp.squeeze(out, axis) for out, axis in zip(outputs, output_axes)]
