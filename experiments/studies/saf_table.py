"""SAF, MESA, SAM and their controls on the same data, network, order and schedule: one table.

Fast rather than general: every method is compiled once, its epochs run as scans over images that
lie on the device, and seeds share the program. `experiments.train` runs the same methods in the
full loop (`experiments/configs/saf_fashion.py`).
"""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

import sam_free
from sam_free import sharpness
from shared import data, models

Array = jax.Array
PyTree = Any


@dataclasses.dataclass(frozen=True)
class Setting:
    """Everything that the methods share."""

    dataset: str = "fashion_mnist"  # or "digits"
    train_size: int = 10_000
    # A fifth of the labels replaced by uniform draws over 10 classes; a tenth of those hit.
    wrong_labels: float = 0.18
    width: int = 256
    depth: int = 2
    batch_size: int = 128
    num_epochs: int = 20
    learning_rate: float = 0.05  # peak; one epoch of warm-up, then a cosine to 0
    momentum: float = 0.9
    weight_decay: float = 5e-4
    start_epoch: int = 5  # strict, from 0
    sharpness_size: int = 2_048  # training examples that sharpness is measured on
    sharpness_batch: int = 512
    lanczos_iters: int = 30
    trace_samples: int = 20


@dataclasses.dataclass(frozen=True)
class Method:
    """One row of the table."""

    label: str
    # (apply_fn, num_classes, setting) -> objective
    objective: Callable[[Any, int, Setting], Any]
    gradient: Callable[[Any], Any] | None = None
    averaged: bool = False  # judge the averaged weights of the objective's state


def _saf(**options: Any) -> Callable[[Any, int, Setting], Any]:
    def make(apply_fn: Any, num_classes: int, setting: Setting) -> Any:
        return sam_free.saf(
            apply_fn,
            sam_free.cross_entropy,
            num_classes=num_classes,
            start_epoch=setting.start_epoch,
            **options,
        )

    return make


def _mesa(**options: Any) -> Callable[[Any, int, Setting], Any]:
    def make(apply_fn: Any, num_classes: int, setting: Setting) -> Any:
        del num_classes
        return sam_free.mesa(
            apply_fn, sam_free.cross_entropy, start_epoch=setting.start_epoch, **options
        )

    return make


def _uniform(weight: float) -> Callable[[Any, int, Setting], Any]:
    def make(apply_fn: Any, num_classes: int, setting: Setting) -> Any:
        del num_classes
        return sam_free.uniform_target(
            apply_fn, sam_free.cross_entropy, start_epoch=setting.start_epoch, weight=weight
        )

    return make


def _plain(base_loss: Any = sam_free.cross_entropy) -> Callable[[Any, int, Setting], Any]:
    return lambda apply_fn, num_classes, setting: sam_free.plain(apply_fn, base_loss)


def _averaged(decay: float) -> Callable[[Any, int, Setting], Any]:
    return lambda apply_fn, num_classes, setting: sam_free.averaged_weights(
        apply_fn, sam_free.cross_entropy, decay=decay
    )


METHODS = {
    "sgd": Method("SGD", _plain()),
    "saf": Method("SAF 0.3", _saf(weight=0.3)),
    "saf_3": Method("SAF 3", _saf(weight=3.0)),
    "mesa": Method("MESA 0.8", _mesa(weight=0.8, decay=0.995)),
    "sam": Method("SAM 0.05", _plain(), functools.partial(sam_free.sam_gradient, rho=0.05)),
    "uniform": Method("uniform target 0.3", _uniform(0.3)),
    "uniform_1": Method("uniform target 1", _uniform(1.0)),
    "published": Method(
        "SAF 0.3, published, 4 ranks", _saf(weight=0.3, stale="official", published_ranks=4)
    ),
    "paper": Method("SAF 0.3 without tau²", _saf(weight=0.3, tau_squared=False)),
    "averaged": Method("averaged weights of SGD", _averaged(0.995), averaged=True),
    "smoothing": Method("label smoothing 0.1", _plain(sam_free.label_smoothing(0.1))),
}
MEASURES = ("accuracy", "nll", "lambda_max", "trace", "sam_sharpness", "m_sharpness")


def run(
    names: list[str],
    seeds: list[int],
    setting: Setting,
    *,
    say: Callable[[str], None] = lambda line: None,
) -> dict[str, Any]:
    """Trains each method from each seed and measures it.

    Args:
      names: of METHODS; "sgd" is what the others are compared with.
      seeds: of the subset, the wrong labels, the initial network and the order.
      setting: what the methods share.
      say: told of every run that is done.
    Returns:
      A JSON-able dict: `setting`, `seeds`, and `runs[name]`, a list of measurements by seed.
    """
    runs: dict[str, list[dict[str, float]]] = {name: [] for name in names}
    sources = {seed: load(setting, seed) for seed in seeds}
    for name in names:
        trainer = Trainer(METHODS[name], setting, sources[seeds[0]])
        for seed in seeds:
            found = trainer.run(sources[seed], seed)
            runs[name].append(found)
            say(f"{METHODS[name].label}, seed {seed}: accuracy {found['accuracy']:.4f}")
    return {"setting": dataclasses.asdict(setting), "seeds": seeds, "runs": runs}


def load(setting: Setting, seed: int) -> tuple[data.Arrays, data.Arrays]:
    """(training subset with wrong labels, clean test set), pixels of mean 0 and deviation 1."""
    train, test = data.digits() if setting.dataset == "digits" else data.fashion_mnist()
    num_classes = int(train.arrays["label"].max()) + 1
    if setting.train_size < train.num_examples:
        train = data.subset(train, setting.train_size, seed=seed)
    if setting.wrong_labels:
        train = data.with_label_noise(
            train, setting.wrong_labels, num_classes=num_classes, seed=seed
        )
    mean, std = train.arrays["image"].mean(), train.arrays["image"].std()

    def standardized(source: data.Arrays) -> data.Arrays:
        image = ((source.arrays["image"] - mean) / std).astype(np.float32)
        return data.Arrays(source.arrays | {"image": image}, name=source.name)

    return standardized(train), standardized(test)


class Trainer:
    """One method, compiled once, for any seed of one data set."""

    def __init__(self, method: Method, setting: Setting, example: tuple[data.Arrays, data.Arrays]):
        train = example[0]
        self._setting = setting
        self._averaged = method.averaged
        num_classes = int(example[1].arrays["label"].max()) + 1
        self._model = _network(num_classes, setting.width, setting.depth)
        self._objective = method.objective(self._model.apply, num_classes, setting)
        self._rule = method.gradient or (lambda loss: jax.value_and_grad(loss, has_aux=True))
        self._steps = train.num_examples // setting.batch_size
        num_steps = self._steps * setting.num_epochs
        schedule = optax.warmup_cosine_decay_schedule(
            0.0, setting.learning_rate, self._steps, num_steps
        )
        self._optimizer = optax.chain(
            optax.add_decayed_weights(setting.weight_decay),
            optax.sgd(schedule, momentum=setting.momentum),
        )
        self._epoch = jax.jit(self._scan_epoch, donate_argnums=0)
        self._judge = jax.jit(self._test)
        # The same function for every method, so that its measures are compiled once.
        self._eval_loss = _eval_loss(num_classes, setting.width, setting.depth)

    def run(self, sources: tuple[data.Arrays, data.Arrays], seed: int) -> dict[str, float]:
        """Trains from the seed and measures."""
        setting = self._setting
        train, test = (
            {name: jnp.asarray(source.arrays[name]) for name in ("image", "label")}
            for source in sources
        )
        key = jax.random.key(seed)
        params, model_state = self._model.init(key, train["image"][:1])
        table = self._objective.init(params, sources[0].num_examples, model_state=model_state)
        state = (params, model_state, self._optimizer.init(params), table)
        for epoch in range(setting.num_epochs):
            order = np.stack(
                [
                    data.batch_index(
                        seed,
                        epoch * self._steps + step,
                        num_examples=sources[0].num_examples,
                        batch_size=setting.batch_size,
                    )
                    for step in range(self._steps)
                ]
            )
            state = self._epoch(state, train, jnp.asarray(order), jnp.asarray(epoch, jnp.int32))
        params, model_state, _, table = state
        if self._averaged:
            params, model_state = table.params, table.model_state
        found = {name: float(x) for name, x in self._judge(params, model_state, test).items()}
        on_train = self._judge(params, model_state, train)
        found["train_accuracy"] = float(on_train["accuracy"])
        found["train_loss"] = float(on_train["nll"])
        return found | self._sharpness(params, train)

    def _scan_epoch(self, state: PyTree, train: Mapping[str, Array], order: Array, epoch: Array):
        def step(state: PyTree, index: Array) -> tuple[PyTree, None]:
            params, model_state, opt_state, table = state
            batch = {name: array[index] for name, array in train.items()} | {"index": index}

            def loss_fn(params: PyTree, batch: Mapping[str, Array]):
                return self._objective.loss(params, model_state, table, batch, epoch, None)

            (_, outputs), grads = self._rule(loss_fn)(params, batch)
            updates, opt_state = self._optimizer.update(grads, opt_state, params)
            params = optax.apply_updates(params, updates)
            table = self._objective.update(
                table,
                params=params,
                model_state=outputs.model_state,
                logits=outputs.logits,
                batch=batch,
                epoch=epoch,
            )
            return (params, outputs.model_state, opt_state, table), None

        return jax.lax.scan(step, state, order)[0]

    def _test(self, params: PyTree, model_state: PyTree, test: Mapping[str, Array]):
        logits, _ = self._model.apply(params, model_state, test["image"], train=False, key=None)
        hits = jnp.argmax(logits, axis=-1) == test["label"]
        return {
            "accuracy": jnp.mean(hits, dtype=jnp.float32),
            "nll": jnp.mean(sam_free.cross_entropy(logits, test)),
        }

    def _sharpness(self, params: PyTree, train: Mapping[str, Array]) -> dict[str, float]:
        """Of the cross-entropy on the given labels, at fixed start vectors for all methods."""
        setting = self._setting
        size = min(setting.sharpness_size, len(train["label"]))
        size -= size % setting.batch_size
        batches = [
            {
                name: array[i : min(i + setting.sharpness_batch, size)]
                for name, array in train.items()
            }
            for i in range(0, size, setting.sharpness_batch)
        ]
        key = jax.random.key(0)
        top = sharpness.top_eigenvalues(
            self._eval_loss, params, batches, num_iters=setting.lanczos_iters, key=key
        )
        total = sharpness.trace(
            self._eval_loss, params, batches, num_samples=setting.trace_samples, key=key
        )
        growth = sharpness.sam_sharpness(self._eval_loss, params, batches, rho=0.05)
        grouped = sharpness.sam_sharpness(
            self._eval_loss, params, batches, rho=0.05, group_size=setting.batch_size
        )
        return {
            "lambda_max": float(top.value[0]),
            "lambda_max_error": float(top.error[0]),
            "trace": float(total.value),
            "trace_error": float(total.error),
            "sam_sharpness": float(growth.value),
            "m_sharpness": float(grouped.value),
        }


@functools.cache
def _network(num_classes: int, width: int, depth: int) -> models.Model:
    return models.mlp(num_outputs=num_classes, width=width, depth=depth)


@functools.cache
def _eval_loss(num_classes: int, width: int, depth: int) -> Callable[[PyTree, Any], Array]:
    model = _network(num_classes, width, depth)

    def loss(params: PyTree, batch: Mapping[str, Array]) -> Array:
        logits, _ = model.apply(params, (), batch["image"], train=False, key=None)
        return jnp.mean(sam_free.cross_entropy(logits, batch))

    return loss


def compare(runs: Mapping[str, list[Mapping[str, float]]]) -> dict[str, dict[str, Any]]:
    """Each method beside SGD at equal seeds.

    Args:
      runs: measurements of each method by seed, as `run` gives them; "sgd" among them.
    Returns:
      For each method the mean and deviation of `accuracy` and the mean of `nll`, in per cent and
      nats; `gain` in points of accuracy, and the ratios to SGD of each measure of sharpness, each
      by seed.
    """
    base = runs["sgd"]
    table = {}
    for name, own in runs.items():
        accuracy = np.array([100 * found["accuracy"] for found in own])
        reference = np.array([100 * found["accuracy"] for found in base[: len(own)]])
        row: dict[str, Any] = {
            "label": METHODS[name].label,
            "accuracy": float(accuracy.mean()),
            "deviation": float(accuracy.std(ddof=1)) if len(own) > 1 else float("nan"),
            "train_accuracy": float(np.mean([100 * found["train_accuracy"] for found in own])),
            "nll": float(np.mean([found["nll"] for found in own])),
            "gain": (accuracy - reference).tolist(),
        }
        for measure in MEASURES[2:]:
            row[measure] = [found[measure] / other[measure] for found, other in zip(own, base)]
        table[name] = row
    return table


def format_table(table: Mapping[str, Mapping[str, Any]]) -> str:
    """The comparison as lines of text; a ratio stands with its range over seeds."""
    titles = ("gain", "lambda_max", "trace", "SAM sharpness", "m-sharpness")
    lines = [
        f"{'method':28s} {'accuracy %':>13s} {'NLL':>6s} {'train %':>8s}"
        + "".join(f"{title:>21s}" for title in titles)
    ]
    for row in table.values():
        cells = [
            f"{np.mean(row[name]):+7.2f} [{min(row[name]):+.2f},{max(row[name]):+.2f}]"
            if name == "gain"
            else f"{np.mean(row[name]):7.2f} [{min(row[name]):.2f},{max(row[name]):.2f}]"
            for name in ("gain", *MEASURES[2:])
        ]
        lines.append(
            f"{row['label']:28s} {row['accuracy']:6.2f} +-{row['deviation']:5.2f} "
            f"{row['nll']:6.3f} {row['train_accuracy']:8.1f}" + "".join(f"{c:>21s}" for c in cells)
        )
    return "\n".join(lines)
