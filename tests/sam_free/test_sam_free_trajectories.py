"""Whole training runs beside a NumPy program with gradients by hand, in float64 to 1e-10.

The reference keeps every output ever made in a dictionary by (example, epoch), so it knows nothing
of rings, slots or stamps.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import sam_free

CLASSES, FEATURES, UNITS = 4, 5, 6
EXAMPLES, BATCH, EPOCHS = 22, 4, 7  # five batches an epoch, two examples left out of each
RATE, MOMENTUM = 0.3, 0.9

RNG = np.random.default_rng(7)
IMAGES = RNG.normal(size=(EXAMPLES, FEATURES))
LABELS = RNG.integers(0, CLASSES, EXAMPLES)
START = {"a": RNG.normal(size=(FEATURES, UNITS)), "b": RNG.normal(size=(UNITS, CLASSES))}


def batches(epoch):
    order = np.random.default_rng(epoch).permutation(EXAMPLES)
    return [order[i : i + BATCH] for i in range(0, EXAMPLES - BATCH + 1, BATCH)]


def softmax(z):
    powers = np.exp(z - z.max(axis=1, keepdims=True))
    return powers / powers.sum(axis=1, keepdims=True)


def forward(w, x):
    hidden = np.tanh(x @ w["a"])
    return hidden, hidden @ w["b"]


def backward(w, x, hidden, slope):
    inner = (slope @ w["b"].T) * (1 - hidden**2)
    return {"a": x.T @ inner, "b": hidden.T @ slope}


def loss_and_gradient(w, index, targets, weight, temperature, scale):
    """Cross-entropy and weighted distance from targets (None: no term), means over the batch."""
    x, y = IMAGES[index], LABELS[index]
    hidden, z = forward(w, x)
    q = softmax(z)
    loss = -np.log(q[np.arange(len(y)), y]).mean()
    slope = (q - np.eye(CLASSES)[y]) / len(y)
    soft = softmax(z / temperature)
    for row, target in enumerate(targets):
        if target is not None:
            p = softmax(target[None] / temperature)[0]
            loss += weight * scale * np.sum(p * np.log(p / soft[row])) / len(y)
            slope[row] += weight * scale / temperature * (soft[row] - p) / len(y)
    return loss, backward(w, x, hidden, slope), z


@dataclasses.dataclass(frozen=True)
class Memory:
    """What SAF looks back at."""

    lag: int
    slots: int
    start: int
    official: bool

    def targets(self, history, index, epoch):
        if epoch <= self.start:
            return [None] * len(index)
        found = []
        for i in index:
            exact = history.get((i, epoch - self.lag))
            if not self.official:
                found.append(exact)
                continue
            # The published ring hands out whatever was last put in the slot of epoch - lag.
            same = [
                e
                for (j, e) in history
                if j == i and e < epoch and (e - epoch + self.lag) % self.slots == 0
            ]
            found.append(history[i, max(same)] if same else np.zeros(CLASSES))
        return found


def descend(w, velocity, gradient):
    velocity = {k: MOMENTUM * velocity[k] + gradient[k] for k in w}
    return {k: w[k] - RATE * velocity[k] for k in w}, velocity


def reference_saf(memory, weight, temperature, scale, rho=0.0):
    w, velocity, history, losses = START, {k: 0 * v for k, v in START.items()}, {}, []
    for epoch in range(EPOCHS):
        for index in batches(epoch):
            targets = memory.targets(history, index, epoch)
            arguments = (index, targets, weight, temperature, scale)
            loss, gradient, z = loss_and_gradient(w, *arguments)
            if rho:
                length = np.sqrt(sum(np.sum(g**2) for g in gradient.values()))
                there = {k: w[k] + rho * gradient[k] / length for k in w}
                gradient = loss_and_gradient(there, *arguments)[1]
            w, velocity = descend(w, velocity, gradient)
            losses.append(loss)
            for i, row in zip(index, z):
                history[i, epoch] = row
    return w, losses


def reference_mesa(decay, start, weight, temperature, scale, warmup):
    """The order of the paper: the teacher takes in the weights, then teaches at them."""
    w, velocity, teacher, losses = START, {k: 0 * v for k, v in START.items()}, START, []
    step = 0
    for epoch in range(EPOCHS):
        for index in batches(epoch):
            if step:
                rate = min(decay, step / (step + 9)) if warmup else decay
                teacher = {k: rate * teacher[k] + (1 - rate) * w[k] for k in w}
            step += 1
            on = epoch > start
            targets = forward(teacher, IMAGES[index])[1] if on else [None] * len(index)
            loss, gradient, _ = loss_and_gradient(w, index, targets, weight, temperature, scale)
            w, velocity = descend(w, velocity, gradient)
            losses.append(loss)
    return w, losses


def apply_fn(params, model_state, inputs, *, train, key):
    return jnp.tanh(inputs @ params["a"]) @ params["b"], model_state


def run(objective, dtype=np.float64, **sam):
    """The package in a loop written out, one compiled step."""

    @jax.jit
    def step(params, velocity, state, batch, epoch):
        def loss_fn(params, batch):
            return objective.loss(params, (), state, batch, epoch, None)

        rule = jax.value_and_grad(loss_fn, has_aux=True)
        if sam:
            rule = sam_free.sam_gradient(loss_fn, **sam)
        (loss, outputs), grads = rule(params, batch)
        velocity = jax.tree.map(lambda v, g: MOMENTUM * v + g, velocity, grads)
        params = jax.tree.map(lambda w, v: w - RATE * v, params, velocity)
        state = objective.update(
            state, params=params, model_state=(), logits=outputs.logits, batch=batch, epoch=epoch
        )
        return params, velocity, state, loss, outputs.metrics

    params = {k: jnp.asarray(v, dtype) for k, v in START.items()}
    velocity = jax.tree.map(jnp.zeros_like, params)
    state, losses, metrics = objective.init(params, EXAMPLES), [], []
    for epoch in range(EPOCHS):
        for index in batches(epoch):
            batch = {
                "image": jnp.asarray(IMAGES[index], dtype),
                "label": jnp.asarray(LABELS[index], jnp.int32),
                "index": jnp.asarray(index, jnp.int32),
            }
            params, velocity, state, loss, found = step(
                params, velocity, state, batch, jnp.int32(epoch)
            )
            losses.append(float(loss))
            metrics.append({k: float(v) for k, v in found.items()})
    return jax.tree.map(np.asarray, params), losses, metrics


def saf(dtype="float64", **options):
    return sam_free.saf(
        apply_fn,
        sam_free.cross_entropy,
        num_classes=CLASSES,
        buffer_dtype=dtype,
        **options,
    )


def check(found, expected, tolerance=1e-10):
    for name in START:
        np.testing.assert_allclose(found[0][name], expected[0][name], rtol=0, atol=tolerance)
    np.testing.assert_allclose(found[1], expected[1], rtol=0, atol=tolerance)


CASES = [  # lag, ring, start, weight, temperature, tau_squared, stale
    (1, "lag_plus_one", 0, 0.5, 5.0, True, "mask"),
    (2, "lag", 1, 2.0, 2.0, True, "mask"),
    (3, "lag_plus_one", 2, 2.0, 2.0, True, "official"),
    (2, "lag", -1, 5.0, 3.0, False, "official"),
]
MORE_CASES = [
    (lag, ring, start, 1.5, 2.0, scaled, stale)
    for lag in (1, 2, 3)
    for ring in ("lag", "lag_plus_one")
    for start in (-1, 2, 4)
    for scaled in (True, False)
    for stale in ("mask", "official")
]


def compare_saf(lag, ring, start, weight, temperature, tau_squared, stale):
    memory = Memory(lag, lag + (ring == "lag_plus_one"), start, stale == "official")
    scale = temperature**2 if tau_squared else 1.0
    expected = reference_saf(memory, weight, temperature, scale)
    with jax.enable_x64(True):
        objective = saf(
            lag_epochs=lag,
            ring=ring,
            start_epoch=start,
            weight=weight,
            temperature=temperature,
            tau_squared=tau_squared,
            stale=stale,
        )
        check(run(objective), expected)


@pytest.mark.parametrize("case", CASES)
def test_saf_trajectories(case):
    compare_saf(*case)


@pytest.mark.slow
@pytest.mark.parametrize("case", MORE_CASES)
def test_saf_trajectories_over_the_grid(case):
    compare_saf(*case)


def test_saf_in_float32_follows_the_float64_reference():
    expected = reference_saf(Memory(1, 2, 0, False), 0.5, 5.0, 25.0)
    found = run(saf("float32", lag_epochs=1, start_epoch=0, weight=0.5), np.float32)
    check(found, expected, tolerance=2e-5)


def test_saf_with_sam():
    expected = reference_saf(Memory(1, 2, 0, False), 0.5, 5.0, 25.0, rho=0.5)
    with jax.enable_x64(True):
        found = run(saf(lag_epochs=1, start_epoch=0, weight=0.5), rho=0.5)
        check(found, expected)


@pytest.mark.parametrize("weight", [0.0, pytest.param(0.5, marks=pytest.mark.slow)])
def test_sam_of_the_plain_loss(weight):
    # start beyond the run: the term is never on, whatever its weight
    expected = reference_saf(Memory(1, 2, EPOCHS, False), 0.5, 5.0, 25.0, rho=0.5)
    with jax.enable_x64(True):
        objective = saf(lag_epochs=1, start_epoch=EPOCHS, weight=weight)
        check(run(objective, rho=0.5), expected)


@pytest.mark.parametrize(
    ("start", "tau_squared", "warmup"), [(1, True, False), (-1, False, True), (2, True, True)]
)
def test_mesa_trajectories(start, tau_squared, warmup):
    expected = reference_mesa(0.8, start, 0.9, 3.0, 9.0 if tau_squared else 1.0, warmup)
    with jax.enable_x64(True):
        objective = sam_free.mesa(
            apply_fn,
            sam_free.cross_entropy,
            decay=0.8,
            start_epoch=start,
            weight=0.9,
            temperature=3.0,
            tau_squared=tau_squared,
            warmup_decay=warmup,
        )
        check(run(objective), expected)


def test_the_uniform_target_is_saf_without_memory():
    expected = reference_saf(Memory(9, 10, 1, True), 0.5, 5.0, 25.0)  # zeros in every row
    with jax.enable_x64(True):
        objective = sam_free.uniform_target(
            apply_fn, sam_free.cross_entropy, start_epoch=1, weight=0.5
        )
        check(run(objective), expected)


def test_the_metrics_count_what_was_masked():
    _, _, metrics = run(saf("float32", lag_epochs=2, start_epoch=0), np.float32)
    steps = len(batches(0))
    history, expected = {}, []
    for epoch in range(EPOCHS):
        for index in batches(epoch):
            fresh = [(i, epoch - 2) in history for i in index]
            older = [any((i, e) in history for e in range(epoch - 5, -1, -3)) for i in index]
            never = [not a and not b for a, b in zip(fresh, older)]
            expected.append((np.mean(fresh), np.mean(never)))
            for i in index:
                history[i, epoch] = True
    found = [(m["saf_fresh"], m["saf_never"]) for m in metrics]
    np.testing.assert_allclose(found, expected)
    stale = np.array([m["saf_stale"] for m in metrics])
    np.testing.assert_allclose(stale, 1 - np.sum(expected, axis=1), atol=1e-7)
    assert stale[3 * steps :].max() > 0  # a row that an incomplete epoch left behind
    assert all(m["saf_bad_indices"] == 0 for m in metrics)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["float16", "int8"])
def test_narrow_tables_are_close(dtype):
    exact, *_ = run(saf("float32", lag_epochs=1, start_epoch=0), np.float32)
    found, *_ = run(saf(dtype, lag_epochs=1, start_epoch=0), np.float32)
    distance = np.sqrt(sum(np.sum((found[k] - exact[k]) ** 2) for k in exact))
    moved = np.sqrt(sum(np.sum((exact[k] - START[k]) ** 2) for k in exact))
    assert 0 < distance < (1e-3 if dtype == "float16" else 3e-2) * moved
