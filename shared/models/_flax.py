"""Flax modules, linen and nnx, as models of the loop."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from shared.models._model import Array, Model, PyTree, example_keys


def from_linen(module: Any, *, train_argument: str | None = "train") -> Model:
    """A `flax.linen` module as a `Model`.

    Collections other than "params" (batch statistics) become the model state; a "dropout" stream is
    fed from the step's keys. A module without model state is mapped over the examples, each with a
    key of its own, so that dropout does not depend on how devices share the batch. One with batch
    statistics sees the whole batch and one key, that of its first example: its dropout masks then
    depend on the number of devices.

    Args:
      module: called as `module(inputs, train=train)`.
      train_argument: name of that argument, or None for a module without one.
    Returns:
      A `Model`; parameters are the module's own nested dict.
    """

    def flag(train: bool) -> dict[str, bool]:
        return {} if train_argument is None else {train_argument: train}

    def init(key: Array, inputs: Array) -> tuple[PyTree, PyTree]:
        params_key, dropout_key = jax.random.split(key)
        variables = dict(
            module.init({"params": params_key, "dropout": dropout_key}, inputs, **flag(False))
        )
        return variables.pop("params", {}), variables or ()

    def apply(
        params: PyTree, model_state: PyTree, inputs: Array, *, train: bool, key: Array | None
    ) -> tuple[Array, PyTree]:
        variables = {"params": params, **dict(model_state)}
        if not train:
            return module.apply(variables, inputs, **flag(False)), model_state
        if model_state:
            rngs = {} if key is None else {"dropout": example_keys(key, len(inputs))[0]}
            return module.apply(
                variables, inputs, **flag(True), rngs=rngs, mutable=list(model_state)
            )
        if key is None:
            return module.apply(variables, inputs, **flag(True)), model_state

        def one(own_key: Array, example: Array) -> Array:
            rngs = {"dropout": own_key}
            return module.apply(variables, example[None], **flag(True), rngs=rngs)[0]

        return jax.vmap(one)(example_keys(key, len(inputs)), inputs), model_state

    return Model(init, apply)


def from_nnx(make: Callable[[Any], Any]) -> Model:
    """A `flax.nnx` module as a `Model`.

    Variables other than `nnx.Param` (batch statistics) become the model state. Dropout keys are
    treated as in `from_linen`.

    Args:
      make: `nnx.Rngs` -> module, called as `module(inputs)`; `module.train()` and `module.eval()`
        set what dropout and batch normalization do.
    Returns:
      A `Model`; parameters and model state are plain nested dicts.
    """
    from flax import nnx

    def graph(train: bool) -> Any:
        """The static part of the module, which holds its mode, and its variables as shapes."""
        module = nnx.eval_shape(lambda: make(nnx.Rngs(0)))
        module.train() if train else module.eval()
        return nnx.split(module, nnx.Param, nnx.RngKey, nnx.RngCount, ...)

    graphs = {train: graph(train) for train in (True, False)}

    def init(key: Array, inputs: Array) -> tuple[PyTree, PyTree]:
        del inputs  # nnx modules know their sizes
        _, params, _, state = nnx.split(make(nnx.Rngs(key)), nnx.Param, nnx.RngState, ...)
        state = nnx.to_pure_dict(state)
        return nnx.to_pure_dict(params), state or ()

    def run(
        params: PyTree, model_state: PyTree, inputs: Array, *, train: bool, key: Array | None
    ) -> tuple[Array, PyTree]:
        structure, param_shapes, key_shapes, count_shapes, state_shapes = graphs[train]
        stream_keys = [
            jax.random.fold_in(jax.random.key(0) if key is None else key, number)
            for number in range(len(jax.tree.leaves(key_shapes)))
        ]
        module = nnx.merge(
            structure,
            _like(param_shapes, jax.tree.leaves(params)),
            _like(key_shapes, stream_keys),
            _like(
                count_shapes, [jnp.zeros(c.shape, c.dtype) for c in jax.tree.leaves(count_shapes)]
            ),
            _like(state_shapes, jax.tree.leaves(model_state)),
        )
        logits = module(inputs)
        new = nnx.to_pure_dict(nnx.split(module, nnx.Param, nnx.RngState, ...)[3])
        return logits, new or ()

    def apply(
        params: PyTree, model_state: PyTree, inputs: Array, *, train: bool, key: Array | None
    ) -> tuple[Array, PyTree]:
        if not train:
            return run(params, model_state, inputs, train=False, key=None)[0], model_state
        if key is None or model_state != ():
            single = None if key is None else example_keys(key, len(inputs))[0]
            return run(params, model_state, inputs, train=True, key=single)

        def one(own_key: Array, example: Array) -> Array:
            return run(params, (), example[None], train=True, key=own_key)[0][0]

        return jax.vmap(one)(example_keys(key, len(inputs)), inputs), model_state

    return Model(init, apply)


def _like(tree: PyTree, leaves: list[Any]) -> PyTree:
    return jax.tree.unflatten(jax.tree.structure(tree), leaves)
