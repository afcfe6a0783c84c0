"""What SAF, MESA and SAM add to a step of SGD, and whether SAF's table costs more as it grows.

CPU seconds of one process, medians over interleaved rounds; the bars are those of the package page.
"""

import itertools
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from optax.contrib import normalize
from optax.contrib import sam as optax_sam

import sam_free
from benchmarks.interleave import interleave

BATCH, CLASSES, PIXELS, EPOCH = 128, 10, 784, 9


def run(fast: bool) -> list[dict[str, Any]]:
    """Rows of the benchmark; `fast` has fewer rounds and a smaller network and table."""
    rounds = 5 if fast else 31
    rows = []
    sizes = {"small": 256} if fast else {"small": 256, "large": 1024}
    for size, width in sizes.items():
        rows += _methods(size, width, rounds=rounds, calls=100 if size == "small" else 12)
    return rows + _growth(2_000 if fast else 10_000, 100_000 if fast else 1_000_000, rounds)


def _methods(size: str, width: int, *, rounds: int, calls: int) -> list[dict[str, Any]]:
    """Steps of each method beside SGD's, on a multilayer perceptron with 60,000 examples."""
    steps = {
        "sgd": _Step(width, 60_000, sam_free.plain(_apply, sam_free.cross_entropy)),
        "saf": _Step(width, 60_000, _saf()),
        "mesa": _Step(width, 60_000, sam_free.mesa(_apply, sam_free.cross_entropy, decay=0.995)),
        "sam": _Step(
            width,
            60_000,
            sam_free.plain(_apply, sam_free.cross_entropy),
            lambda loss_fn: sam_free.sam_gradient(loss_fn, rho=0.05),
        ),
        "optax": _OptaxSam(width),
    }
    timings = interleave(steps, baseline="sgd", rounds=rounds, calls=calls, clock=time.process_time)
    base = timings["sgd"].median_s
    bars = {"saf": 1.02 if base >= 8e-3 else 1.10, "mesa": 1.45, "sam": 2.05}
    rows = [
        _row(
            f"{name}, {size} network ({1e3 * base:.2f} ms)",
            timing.median_s,
            base,
            bar,
            timing.ratio,
        )
        for name, bar in bars.items()
        for timing in [timings[name]]
    ]
    ours, peer = timings["sam"], timings["optax"]
    ratio = ours.ratio / peer.ratio
    rows.append(_row(f"sam beside optax, {size} network", ours.median_s, peer.median_s, 1.1, ratio))
    return rows


def _growth(small: int, large: int, rounds: int) -> list[dict[str, Any]]:
    """The step of SAF with a large table beside the same with a small one: time and memory."""
    steps = {str(n): _Step(256, n, _saf()) for n in (small, large)}
    timings = interleave(
        steps, baseline=str(small), rounds=rounds, calls=60, clock=time.process_time
    )
    few, many = (steps[str(n)].temporary_bytes for n in (small, large))
    names = f"{large:,} beside {small:,} examples"
    return [
        _row(
            f"step time, {names}",
            timings[str(large)].median_s,
            timings[str(small)].median_s,
            1.05,
            timings[str(large)].ratio,
        ),
        _row(f"temporary memory, {names}", many, few, 1.01, many / few),
    ]


def _row(name: str, ours: float, peer: float, bar: float, ratio: float) -> dict[str, Any]:
    return {
        "name": name,
        "ours": ours,
        "peer": peer,
        "ratio": ratio,
        "bar": f"<= {bar}",
        "holds": ratio <= bar,
    }


def _saf() -> Any:
    return sam_free.saf(_apply, sam_free.cross_entropy, num_classes=CLASSES)


def _apply(params: Any, model_state: Any, inputs: Any, *, train: bool, key: Any):
    del train, key
    hidden = inputs
    for layer in params[:-1]:
        hidden = jax.nn.relu(hidden @ layer["w"] + layer["b"][None])
    return hidden @ params[-1]["w"] + params[-1]["b"][None], model_state


def _network(width: int) -> list[dict[str, jax.Array]]:
    rng = np.random.default_rng(0)
    sizes = [PIXELS, width, width, CLASSES]
    return [
        {"w": jnp.asarray(rng.normal(size=(a, b)) / a**0.5, jnp.float32), "b": jnp.zeros(b)}
        for a, b in itertools.pairwise(sizes)
    ]


def _batch(num_examples: int) -> dict[str, jax.Array]:
    rng = np.random.default_rng(1)
    return {
        "image": jnp.asarray(rng.normal(size=(BATCH, PIXELS)), jnp.float32),
        "label": jnp.asarray(rng.integers(0, CLASSES, BATCH), jnp.int32),
        "index": jnp.asarray(rng.choice(num_examples, BATCH, replace=False), jnp.int32),
    }


class _Step:
    """One compiled training step that keeps its own state and takes over its memory."""

    def __init__(
        self,
        width: int,
        num_examples: int,
        objective: Any,
        rule: Callable[[Any], Any] = lambda loss: jax.value_and_grad(loss, has_aux=True),
    ):
        optimizer = optax.sgd(0.01, momentum=0.9)
        params = _network(width)
        self._state = (params, optimizer.init(params), objective.init(params, num_examples))
        self._batch = _batch(num_examples)

        def step(state: Any, batch: Any, epoch: Any) -> Any:
            params, opt_state, table = state

            def loss_fn(params: Any, batch: Any) -> Any:
                return objective.loss(params, (), table, batch, epoch, None)

            (_, outputs), grads = rule(loss_fn)(params, batch)
            updates, opt_state = optimizer.update(grads, opt_state, params)
            params = optax.apply_updates(params, updates)
            table = objective.update(
                table,
                params=params,
                model_state=(),
                logits=outputs.logits,
                batch=batch,
                epoch=epoch,
            )
            return params, opt_state, table

        self._epoch = jnp.asarray(EPOCH, jnp.int32)
        lowered = jax.jit(step, donate_argnums=0).lower(self._state, self._batch, self._epoch)
        self._compiled = lowered.compile()
        memory = self._compiled.memory_analysis()
        assert memory is not None
        self.temporary_bytes = memory.temp_size_in_bytes

    def __call__(self) -> Any:
        self._state = self._compiled(self._state, self._batch, self._epoch)
        return self._state[0]


class _OptaxSam:
    """The same step with optax's own SAM, in its opaque mode."""

    def __init__(self, width: int):
        adversary = optax.chain(normalize(), optax.sgd(0.05))
        optimizer = optax_sam(
            optax.sgd(0.01, momentum=0.9), adversary, sync_period=2, opaque_mode=True
        )
        params = _network(width)
        self._state = (params, optimizer.init(params))
        self._batch = _batch(60_000)

        def step(state: Any, batch: Any) -> Any:
            params, opt_state = state

            def loss(params: Any) -> jax.Array:
                logits, _ = _apply(params, (), batch["image"], train=True, key=None)
                return jnp.mean(sam_free.cross_entropy(logits, batch))

            grads = jax.grad(loss)(params)
            updates, opt_state = optimizer.update(
                grads, opt_state, params, grad_fn=lambda params, _: jax.grad(loss)(params)
            )
            return optax.apply_updates(params, updates), opt_state

        self._compiled = jax.jit(step, donate_argnums=0).lower(self._state, self._batch).compile()

    def __call__(self) -> Any:
        self._state = self._compiled(self._state, self._batch)
        return self._state[0]
