"""One update of a run as a function of one device's share, and the functions around it."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax

from shared.config import Config
from shared.data import on_device
from shared.devices import AXIS, Devices
from shared.errors import NonFiniteLoss, RunError
from shared.protocol import Batch, GradientRule, Outputs, Probe, Study, TrainState, model_inputs

Array = jax.Array
PyTree = Any
Expand = Callable[[Array, Batch], Batch]

# The streams of random numbers of a run: fold_in(run's key, ...).
INIT, DATA, LOSS = range(3)


@dataclasses.dataclass(frozen=True)
class Program:
    """The functions of a run, each compiled once. A key is the data of the run's key, uint32."""

    init: Callable[[Array], TrainState]  # (key): the state before the first step, in global form
    # (state, batch, key) -> (state, metrics [len(metric_names)]); takes over the state's memory
    step: Callable[[TrainState, Batch, Array], tuple[TrainState, Array]]
    prepare: Callable[[PyTree, Batch], PyTree] | None  # (objective's state, batch)
    check: Callable[[TrainState], Array]  # (state): bool [1 + leaves], what `complaint` reads
    probes: Mapping[str, Callable[[TrainState, Batch, Array], Mapping[str, Array]]]
    metric_names: tuple[str, ...]
    split: TrainState  # of bool: which leaves are split over devices
    shapes: TrainState  # of ShapeDtypeStruct, in global form


def make_program(study: Study, config: Config, devices: Devices, steps_per_epoch: int) -> Program:
    """Builds the functions of a run and traces the step, so that shapes that do not meet show now.

    Raises:
      ValueError, TypeError: the study's parts do not fit each other.
    """
    expand = on_device(study.train_data)
    example = study.train_data.batch(np.arange(1))

    def init(key_data: Array) -> TrainState:
        key = jax.random.wrap_key_data(key_data)
        batch = expand(example_keys(key, example["index"]), example)
        params, model_state = study.model.init(jax.random.fold_in(key, INIT), model_inputs(batch))
        rule = _rule(study)(_no_loss)
        return TrainState(
            step=jnp.zeros((), jnp.int32),
            params=params,
            model_state=model_state,
            opt_state=study.optimizer.init(params),
            objective=study.objective.init(
                params, study.train_data.num_examples, model_state=model_state
            ),
            gradient=rule.init(params) if hasattr(rule, "init") else (),
        )

    key = run_key(config.seed)
    shapes = jax.eval_shape(init, key)
    split = _split(study, shapes)
    _check_rows(shapes, split, devices)

    names: list[str] = []
    step = devices.map(
        _device_step(study, config, devices.size, steps_per_epoch, expand, names),
        (split, True, False),
        (split, False),
        donate=(0,),
    )
    prepare = getattr(study.objective, "prepare", None)
    if prepare is not None:
        prepare = devices.map(prepare, (split.objective, True), True)
    probes = {name: jax.jit(_expanded_probe(probe, expand)) for name, probe in study.probes.items()}
    program = Program(
        init=jax.jit(init, out_shardings=devices.shardings(split)),
        step=step,
        prepare=prepare,
        check=devices.map(_device_check(split), (split,), False),
        probes=probes,
        metric_names=(),
        split=split,
        shapes=shapes,
    )
    _trace(program, study, config, devices, key)
    return dataclasses.replace(program, metric_names=tuple(names))


def complaint(program: Program, state: TrainState) -> tuple[type[RunError], str] | None:
    """What is wrong with a state (in the layout of the mapped functions), or None."""
    finite, *same = np.asarray(program.check(state)).tolist()
    if not finite:
        return NonFiniteLoss, "the parameters are not finite"
    if all(same):
        return None
    paths, _ = jax.tree.flatten_with_path(program.shapes)
    name = jax.tree_util.keystr(paths[same.index(False)][0])
    return RunError, (
        f"the state{name} is not the same on every device: average it over {AXIS!r} where it is "
        "made, or name it in the objective's `sharded`"
    )


def run_key(seed: int) -> np.ndarray:
    """The data of a run's key, which compiled functions take without the cost of a typed key."""
    return np.asarray(jax.random.key_data(jax.random.key(seed)))


def example_keys(key: Array, index: Array) -> Array:
    """One key per example, [batch]; an example's key does not depend on its place in the batch."""
    return jax.vmap(jax.random.fold_in, (None, 0))(key, jnp.asarray(index))


def part_major(index: np.ndarray, parts: int, num_devices: int) -> np.ndarray:
    """Reorders a batch so that each part of it is the same examples for any device count.

    Devices take contiguous blocks of the batch and split their block into parts for gradient
    accumulation. Part j of all devices together is then the j-th contiguous piece of `index`.
    """
    return index.reshape(parts, num_devices, -1).swapaxes(0, 1).reshape(-1)


def compute_in(model: Any, dtype: str) -> Any:
    """The model with parameters and activations cast to `dtype` and logits back to float32.

    Gradients and batch statistics keep the dtype of the parameters. "float32" leaves the model,
    and so float64 parameters, as they are.

    Raises:
      ValueError: `dtype` is neither "float32" nor "bfloat16".
    """
    if dtype not in ("float32", "bfloat16"):
        raise ValueError(f'compute_dtype must be "float32" or "bfloat16", got {dtype!r}.')
    if dtype == "float32":
        return model

    def apply(params: PyTree, model_state: PyTree, inputs: PyTree, *, train: bool, key: Any):
        low = optax.tree.cast(params, jnp.dtype(dtype))
        logits, new_state = model.apply(low, model_state, inputs, train=train, key=key)
        new_state = jax.tree.map(lambda new, old: new.astype(old.dtype), new_state, model_state)
        return jax.tree.map(lambda x: x.astype(jnp.float32), logits), new_state

    return model._replace(apply=apply)


def _device_step(
    study: Study,
    config: Config,
    num_devices: int,
    steps_per_epoch: int,
    expand: Expand,
    names: list[str],
) -> Callable[[TrainState, Batch, Array], tuple[TrainState, Array]]:
    parts = config.grad_accumulation
    rule = _rule(study)
    if parts > 1 and hasattr(rule(_no_loss), "init"):
        raise ValueError(
            f"grad_accumulation = {parts} cannot be combined with a gradient rule that has a "
            "state of its own; use grad_accumulation = 1."
        )

    def step(state: TrainState, batch: Batch, key_data: Array) -> tuple[TrainState, Array]:
        key = jax.random.wrap_key_data(key_data)
        data_key, loss_key = (
            jax.random.fold_in(jax.random.fold_in(key, stream), state.step)
            for stream in (DATA, LOSS)
        )
        epoch = state.step // steps_per_epoch
        batch = expand(example_keys(data_key, batch["index"]), batch)

        def differentiate(model_state: PyTree, gradient: PyTree, batch: Batch):
            def loss_fn(params: PyTree, batch: Batch) -> tuple[Array, Outputs]:
                keys = example_keys(loss_key, batch["index"])
                return study.objective.loss(
                    params, model_state, state.objective, batch, epoch, keys
                )

            function = rule(loss_fn)
            if hasattr(function, "init"):
                value, grads, gradient = function(state.params, batch, gradient)
            else:
                value, grads = function(state.params, batch)
            return value, grads, gradient

        if parts == 1:
            (loss, outputs), grads, gradient = differentiate(
                state.model_state, state.gradient, batch
            )
            logits, model_state, metrics = outputs.logits, outputs.model_state, outputs.metrics
        else:
            loss, logits, model_state, metrics, grads = _accumulate(
                differentiate, parts, state.model_state, batch
            )
            gradient = state.gradient

        metrics = _accuracy(logits, batch) | dict(metrics)
        if num_devices > 1:  # over one device XLA copies what it averages
            grads, loss, metrics = jax.lax.pmean((grads, loss, metrics), AXIS)
            model_state, gradient = _same_everywhere((model_state, gradient))
        metrics = {"loss": loss} | metrics
        if config.log_grad_norm or config.clip_norm > 0:
            metrics["grad_norm"] = optax.tree.norm(grads)
        if config.clip_norm > 0:
            scale = config.clip_norm / jnp.maximum(metrics["grad_norm"], config.clip_norm)
            grads = jax.tree.map(lambda g: g * scale.astype(g.dtype), grads)
        updates, opt_state = study.optimizer.update(grads, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        objective = study.objective.update(
            state.objective,
            params=params,
            model_state=model_state,
            logits=logits,
            batch=batch,
            epoch=epoch,
        )
        names[:] = metrics  # known once traced
        packed = jnp.stack([jnp.asarray(value, loss.dtype) for value in metrics.values()])
        new = TrainState(state.step + 1, params, model_state, opt_state, objective, gradient)
        _check_same_kind(new, state)
        return new, packed

    return step


def _check_same_kind(new: TrainState, old: TrainState) -> None:
    """Refuses, while the step is traced, a part of a study that changes what the state is."""
    try:
        chex.assert_trees_all_equal_shapes_and_dtypes(new, old)
    except AssertionError as error:
        told = " ".join(str(error).split())
        raise ValueError(
            "a step must return a state of the structure, shapes and dtypes that it was given; the "
            f"optimizer, objective, model or gradient rule of this study does not: {told}"
        ) from error


def _accumulate(differentiate: Callable, parts: int, model_state: PyTree, batch: Batch):
    """Runs the parts of a device's share one after the other and averages their gradients."""
    pieces = jax.tree.map(lambda x: x.reshape(parts, x.shape[0] // parts, *x.shape[1:]), batch)

    def part(carry: tuple, piece: Batch):
        model_state, total = carry
        (loss, outputs), grads, _ = differentiate(model_state, (), piece)
        total = jax.tree.map(jnp.add, total, (loss, dict(outputs.metrics), grads))
        return (outputs.model_state, total), outputs.logits

    first = jax.tree.map(lambda x: x[0], pieces)
    (loss, outputs), grads, _ = jax.eval_shape(differentiate, model_state, (), first)
    zeros = jax.tree.map(
        lambda x: jnp.zeros(x.shape, x.dtype), (loss, dict(outputs.metrics), grads)
    )
    (model_state, total), logits = jax.lax.scan(part, (model_state, zeros), pieces)
    loss, metrics, grads = jax.tree.map(lambda x: x / parts, total)
    logits = jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), logits)
    return loss, logits, model_state, metrics, grads


def _accuracy(logits: PyTree, batch: Batch) -> dict[str, Array]:
    """Share of right classes, where the batch has classes and the logits fit them."""
    for name, labels in (("label", batch.get("label")), ("tokens", batch.get("tokens"))):
        if labels is None or not isinstance(logits, jax.Array):
            continue
        labels = labels[:, 1:] if name == "tokens" else labels
        if logits.shape[:-1] == labels.shape:
            return {"accuracy": jnp.mean(logits.argmax(-1) == labels, dtype=jnp.float32)}
    return {}


def _device_check(split: TrainState) -> Callable[[TrainState], Array]:
    """Are parameters finite, and is what every device holds whole the same, bit for bit?"""

    def check(state: TrainState) -> Array:
        leaves = jax.tree.leaves((state.params, state.model_state))
        finite = jnp.array([jnp.isfinite(x).all() for x in leaves]).all()
        same = [
            jnp.array(True) if is_split else _same(x)
            for x, is_split in zip(jax.tree.leaves(state), jax.tree.leaves(split))
        ]
        return jax.lax.pmin(jnp.stack([finite, *same]).astype(jnp.int32), AXIS) > 0

    return check


def _same(x: Array) -> Array:
    if jnp.issubdtype(x.dtype, jnp.inexact):  # as bits: NaN is the same as NaN
        x = jax.lax.bitcast_convert_type(x, f"uint{8 * x.dtype.itemsize}")
    return (jax.lax.pmax(x, AXIS) == jax.lax.pmin(x, AXIS)).all()


def _same_everywhere(tree: PyTree) -> PyTree:
    """Averages what devices may have computed each from its own share."""

    def average(x: Array) -> Array:
        inexact = jnp.issubdtype(x.dtype, jnp.inexact)
        return jax.lax.pmean(x, AXIS) if inexact else jax.lax.pmax(x, AXIS)

    return jax.tree.map(average, tree)


def _expanded_probe(probe: Probe, expand: Expand):
    def run(state: TrainState, batch: Batch, key_data: Array) -> Mapping[str, Array]:
        key = jax.random.fold_in(jax.random.wrap_key_data(key_data), DATA)
        key = jax.random.fold_in(key, state.step)
        return probe(state, expand(example_keys(key, batch["index"]), batch))

    return run


def _rule(study: Study) -> GradientRule:
    return study.gradient or (lambda loss_fn: jax.value_and_grad(loss_fn, has_aux=True))


def _no_loss(params: PyTree, batch: Batch) -> tuple[Array, Outputs]:
    raise AssertionError("a gradient rule's init must not call the loss")


def _split(study: Study, shapes: TrainState) -> TrainState:
    whole = jax.tree.map(lambda _: False, shapes)
    sharded = getattr(study.objective, "sharded", None)
    if sharded is None:
        return whole
    flags = jax.tree.map(bool, sharded(shapes.objective))
    flags = jax.tree.broadcast(flags, shapes.objective)  # one bool may stand for a whole branch
    return dataclasses.replace(whole, objective=flags)


def _check_rows(shapes: TrainState, split: TrainState, devices: Devices) -> None:
    for leaf, is_split in zip(jax.tree.leaves(shapes), jax.tree.leaves(split)):
        if is_split and leaf.shape[0] % devices.size:
            raise ValueError(
                f"a table of {leaf.shape[0]} rows cannot be split over {devices.size} devices; "
                "pad it to a multiple of 64 rows or use a number of devices that divides it."
            )


def _trace(
    program: Program,
    study: Study,
    config: Config,
    devices: Devices,
    key: np.ndarray,
) -> None:
    def abstract(x: Any) -> jax.ShapeDtypeStruct:
        rows = (config.batch_size, *x.shape[1:])
        if devices.parallelism == "pmap":
            rows = (devices.size, config.batch_size // devices.size, *x.shape[1:])
        # As the compiled step takes it: 64-bit NumPy labels arrive as 32 bits without x64.
        return jax.ShapeDtypeStruct(rows, jax.dtypes.canonicalize_dtype(x.dtype))

    def layout(x: jax.ShapeDtypeStruct, split: bool) -> jax.ShapeDtypeStruct:
        if devices.parallelism != "pmap" or not split:
            return x
        return jax.ShapeDtypeStruct(
            (devices.size, x.shape[0] // devices.size, *x.shape[1:]), x.dtype
        )

    state = jax.tree.map(layout, program.shapes, program.split)
    batch = jax.tree.map(abstract, study.train_data.batch(np.arange(1)))
    if program.prepare is not None:
        batch["prepared"] = jax.eval_shape(program.prepare, state.objective, batch)
    jax.eval_shape(program.step, state, batch, key)
