"""`from_flax`: the function of parameters and inputs inside a flax module."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax

PyTree = Any


class FlaxFunction(NamedTuple):
    """A pure function with the parameters it was taken with."""

    f: Callable[..., PyTree]  # f(params, x, **kwargs)
    params: PyTree


def from_flax(
    module: Any, variables: PyTree = None, *, key: jax.Array | None = None, inputs: Any = None
) -> FlaxFunction:
    """A flax module as `f(params, x, **kwargs)`, which every function of this package takes.

    Args:
      module: a linen module, or an nnx module with its parameters inside.
      variables: of a linen module, `{"params": ..., ...}`. Collections other than "params" (batch
        statistics) are held fixed.
      key, inputs: to initialize a linen module where there are no `variables`.
    Returns:
      FlaxFunction(f, params). Keyword arguments go to the module's call. State that a call would
      change (running statistics) is not kept.
    Raises:
      ValueError: a linen module comes without variables and without key and inputs.
      TypeError: `module` is of neither kind.
    """
    from flax import linen, nnx

    if isinstance(module, linen.Module):
        if variables is None:
            if key is None or inputs is None:
                raise ValueError(
                    "from_flax: a linen module holds no parameters; pass its variables, or key and "
                    "inputs to initialize them."
                )
            variables = module.init(key, inputs)
        return _from_linen(module, variables)
    if isinstance(module, nnx.Module):
        return _from_nnx(module)
    raise TypeError(
        f"from_flax: expected a flax.linen.Module or flax.nnx.Module, got {type(module).__name__}."
    )


def _from_linen(module: Any, variables: PyTree) -> FlaxFunction:
    if "params" not in variables:
        raise ValueError(
            f"from_flax: variables must hold 'params', got the collections {sorted(variables)}. "
            'Pass {"params": params}.'
        )
    fixed = {name: value for name, value in variables.items() if name != "params"}

    def f(params: PyTree, x: Any, **kwargs: Any) -> PyTree:
        """The module's call."""
        return module.apply({"params": params, **fixed}, x, **kwargs)

    return FlaxFunction(f, variables["params"])


def _from_nnx(module: Any) -> FlaxFunction:
    from flax import nnx

    graph, params, rest = nnx.split(module, nnx.Param, ...)

    def f(params: PyTree, x: Any, **kwargs: Any) -> PyTree:
        """The module's call."""
        return nnx.merge(graph, params, rest)(x, **kwargs)

    return FlaxFunction(f, params)
