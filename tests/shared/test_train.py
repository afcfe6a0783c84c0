"""One device, one process: what the loop does, step by step."""

import dataclasses
import json
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from shared.checkpoint import digest
from shared.data import Arrays, batch_index
from shared.metrics import read
from shared.models import Model, mlp
from shared.train import (
    NonFiniteLoss,
    Outputs,
    Result,
    RunError,
    Study,
    Training,
    compute_in,
    default_config,
    train,
)

EXAMPLES, BATCH = 40, 8  # 5 steps an epoch


class Regression:
    """Half the squared error; remembers nothing."""

    def __init__(self, model: Model):
        self.model = model

    def init(self, params: Any, num_examples: int, *, model_state: Any = ()) -> Any:
        return ()

    def loss(self, params, model_state, state, batch, epoch, key):
        logits, model_state = self.model.apply(
            params, model_state, batch["inputs"], train=True, key=key
        )
        loss = jnp.mean((logits - batch["targets"]) ** 2) / 2
        return loss, Outputs(logits, model_state, {"epoch": epoch + 0.0})

    def update(self, state, **changes):
        return state


def task(scale: float = 1.0) -> Arrays:
    rng = np.random.default_rng(0)
    inputs = rng.standard_normal((EXAMPLES, 3)).astype(np.float32)
    targets = (inputs @ [[1.0], [-2.0], [0.5]] * scale).astype(np.float32)
    return Arrays({"inputs": inputs, "targets": targets})


def tiny() -> Model:
    """One hidden layer from fixed numbers: compiles in a fraction of a second."""

    def init(key, inputs):
        return {
            "w": jnp.linspace(-1, 1, 12).reshape(3, 4),
            "v": jnp.linspace(1, -1, 4)[:, None],
        }, ()

    def apply(params, model_state, inputs, *, train, key):
        return jnp.tanh(inputs.astype(params["w"].dtype) @ params["w"]) @ params["v"], model_state

    return Model(init, apply)


def make_study(model: Model | None = None, objective: Any = None, **changes: Any) -> Study:
    model = model or tiny()
    study = Study(
        model=model,
        train_data=task(),
        objective=(objective or Regression)(model),
        optimizer=optax.sgd(0.05, momentum=0.9),
        eval_data={"test": task()},
    )
    return dataclasses.replace(study, **changes)


def make_config(**changes: Any):
    config = default_config()
    config.update({"batch_size": BATCH, "num_epochs": 3, "log_every": 4, "num_devices": 1})
    config.update(changes)
    return config


def record(folder) -> bytes:
    return (folder / "metrics.jsonl").read_bytes()


class Whole(NamedTuple):
    folder: Path
    result: Result


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Whole:
    """The plain run, start to end, that others are compared with."""
    folder = tmp_path_factory.mktemp("whole")
    return Whole(folder, train(make_study(), make_config(), folder))


def check_same(result: Result, folder: Path, whole: Whole) -> None:
    assert digest(result.state) == digest(whole.result.state)
    assert record(folder) == record(whole.folder)


def check_close(result: Result, other: Result, rtol: float = 1e-4, atol: float = 1e-6) -> None:
    for a, b in zip(jax.tree.leaves(result.state.params), jax.tree.leaves(other.state.params)):
        np.testing.assert_allclose(a, b, rtol=rtol, atol=atol)


def test_the_first_steps_are_those_of_a_loop_by_hand(tmp_path):
    model = mlp(num_outputs=1, width=8, depth=1)
    study = make_study(model)
    result = train(study, make_config(num_steps=7), tmp_path)
    key = jax.random.fold_in(jax.random.key(0), 0)  # the stream of initial parameters
    data = study.train_data.arrays
    params, _ = model.init(key, data["inputs"][:1])
    opt_state = study.optimizer.init(params)
    losses = []

    @jax.jit
    def value_and_grad(params, inputs, targets):
        def loss_fn(params):
            out, _ = model.apply(params, (), inputs, train=True, key=None)
            return jnp.mean((out - targets) ** 2) / 2

        return jax.value_and_grad(loss_fn)(params)

    for step in range(7):
        rows = batch_index(0, step, num_examples=EXAMPLES, batch_size=BATCH)
        loss, grads = value_and_grad(params, data["inputs"][rows], data["targets"][rows])
        updates, opt_state = study.optimizer.update(grads, opt_state, params)
        params = optax.apply_updates(params, updates)
        losses.append(float(loss))
    for ours, hand in zip(jax.tree.leaves(result.state.params), jax.tree.leaves(params)):
        np.testing.assert_allclose(ours, hand, rtol=1e-5, atol=1e-6)
    rows = [row for row in read(tmp_path / "metrics.jsonl") if "loss" in row]
    assert [row["step"] for row in rows] == [4, 7]
    assert [row["loss"] for row in rows] == pytest.approx(
        [np.mean(losses[:4]), np.mean(losses[4:])], rel=1e-5
    )
    assert [row["epoch"] for row in rows] == [0.0, pytest.approx(2 / 3)]


def test_the_record_holds_means_evaluations_and_no_clock(whole):
    rows = read(whole.folder / "metrics.jsonl")
    assert [row["step"] for row in rows] == [4, 5, 8, 10, 12, 15, 15]
    assert rows[-1] == {"step": 15, "test/loss": whole.result.metrics["test/loss"]}
    assert {name for row in rows for name in row} == {"step", "loss", "epoch", "test/loss"}
    timings = [
        json.loads(line) for line in (whole.folder / "timings.jsonl").read_text().splitlines()
    ]
    assert {row["kind"] for row in timings} == {"compilation", "train", "evaluation", "checkpoint"}
    assert json.loads((whole.folder / "config.json").read_text())["batch_size"] == BATCH
    environment = json.loads((whole.folder / "environment.json").read_text())
    assert "jax" in environment["packages"]


def stop_at(*steps: int):
    return lambda step: step in steps


def test_a_run_that_was_stopped_four_times_ends_with_the_same_bits(tmp_path, whole):
    study, config = make_study(), make_config()
    for stop in (1, 6, 7, 13):
        part = train(study, config, tmp_path, interrupted=stop_at(stop))
        assert (part.step, part.finished) == (stop, False)
        with (tmp_path / "metrics.jsonl").open("a") as file:
            file.write('{"step": 14, "loss": 123.0}\n{"step": 15, "lo')  # a kill, later on
    rest = train(study, config, tmp_path)
    assert rest.finished
    check_same(rest, tmp_path, whole)


def test_dropout_draws_the_same_masks_after_a_stop(tmp_path):
    study = make_study(mlp(num_outputs=1, width=8, depth=1, dropout=0.3))
    config = make_config(num_epochs=2)
    straight = train(study, config, tmp_path / "straight")
    train(study, config, tmp_path / "parts", interrupted=stop_at(7))
    assert digest(train(study, config, tmp_path / "parts").state) == digest(straight.state)
    assert record(tmp_path / "parts") == record(tmp_path / "straight")


def test_a_record_without_a_checkpoint_is_started_anew(tmp_path, whole):
    (tmp_path / "metrics.jsonl").write_text('{"step": 4, "loss": 123.0}\n')
    check_same(train(make_study(), make_config(), tmp_path), tmp_path, whole)


def test_a_finished_run_started_again_changes_nothing(whole):
    before = record(whole.folder)
    again = train(make_study(), make_config(), whole.folder)
    assert again.metrics == whole.result.metrics
    assert digest(again.state) == digest(whole.result.state)
    assert record(whole.folder) == before


def test_steps_are_compiled_once_over_resume_and_last_partial_evaluation(tmp_path):
    study, config = make_study(), make_config(eval_batch_size=16)  # 40 = 16 + 16 + 8
    for stop in (7, 15):
        with Training(study, config, tmp_path) as training:
            training.run(stop_at(stop))
            assert training._program.step._cache_size() == 1
            assert training._evaluators["test"]._step._cache_size() == 1
            assert training._program.check._cache_size() == 1


def test_accumulated_gradients_are_those_of_the_whole_batch(tmp_path, whole):
    check_close(train(make_study(), make_config(grad_accumulation=4), tmp_path), whole.result)


def test_clipping_bounds_the_gradient_and_logs_it_unclipped(tmp_path):
    study = make_study(optimizer=optax.sgd(1.0), train_data=task(scale=50.0))
    config = make_config(num_steps=1, clip_norm=0.25)
    with Training(study, config, tmp_path) as training:
        before = jax.tree.map(np.array, training._state.params)
        after = training.run().state.params
    moved = optax.tree.norm(jax.tree.map(lambda a, b: a - b, after, before))
    assert moved == pytest.approx(0.25, rel=1e-5)
    assert read(tmp_path / "metrics.jsonl")[0]["grad_norm"] > 1


def test_the_gradient_norm_is_recorded_where_it_is_asked_for(tmp_path):
    study = make_study(optimizer=optax.sgd(1.0))
    config = make_config(num_steps=1, log_grad_norm=True)
    with Training(study, config, tmp_path) as training:
        before = jax.tree.map(np.array, training._state.params)
        after = training.run().state.params
    moved = float(optax.tree.norm(jax.tree.map(lambda a, b: a - b, after, before)))
    assert read(tmp_path / "metrics.jsonl")[0]["grad_norm"] == pytest.approx(moved, rel=1e-5)


class Slots(NamedTuple):
    ring: tuple[jax.Array, jax.Array]
    seen: jax.Array


class Ring(Regression):
    """Writes each example's epoch into the first of two slots, and turns them every epoch."""

    def init(self, params, num_examples, *, model_state=()):
        rows = -(-num_examples // 64) * 64
        empty = jnp.full(rows, -1.0)
        return Slots((empty, empty), jnp.zeros(rows))

    def start_epoch(self, state, epoch):
        return state._replace(ring=state.ring[::-1])

    def prepare(self, state, batch):
        return state.ring[1][batch["index"]]

    def loss(self, params, model_state, state, batch, epoch, key):
        loss, outputs = super().loss(params, model_state, state, batch, epoch, key)
        last = jnp.mean(batch["prepared"])
        return loss, outputs._replace(metrics={"last": last})

    def update(self, state, *, batch, epoch, **changes):
        index = batch["index"]
        first = state.ring[0].at[index].set(epoch.astype(jnp.float32))
        return Slots((first, state.ring[1]), state.seen.at[index].add(1.0))


def test_an_objective_prepares_and_turns_its_ring_each_epoch(tmp_path):
    study = make_study(objective=Ring)
    config = make_config(log_every=5, num_epochs=4)
    straight = train(study, config, tmp_path / "straight")
    rows = [row for row in read(tmp_path / "straight" / "metrics.jsonl") if "last" in row]
    # What an epoch finds in the other slot is what the epoch before wrote there.
    assert [row["last"] for row in rows] == [-1.0, 0.0, 1.0, 2.0]
    np.testing.assert_array_equal(straight.state.objective.seen[:EXAMPLES], 4.0)
    for stop in (5, 11):
        train(study, config, tmp_path / "parts", interrupted=stop_at(stop))
    rest = train(study, config, tmp_path / "parts")
    assert digest(rest.state) == digest(straight.state)
    assert record(tmp_path / "parts") == record(tmp_path / "straight")


def test_a_table_that_devices_fill_each_for_itself_is_an_error(tmp_path):
    message = r"state\.objective\.ring\[0\] is not the same on every device"
    with pytest.raises(RunError, match=message):
        train(make_study(objective=Ring), make_config(num_devices=4), tmp_path)
    assert not list((tmp_path / "checkpoints").iterdir())


class Momentum:
    """A gradient rule with a state: the gradient plus half of the last direction."""

    def __init__(self, loss_fn):
        self.value_and_grad = jax.value_and_grad(loss_fn, has_aux=True)

    def init(self, params):
        return jax.tree.map(jnp.zeros_like, params)

    def __call__(self, params, batch, state):
        value, grads = self.value_and_grad(params, batch)
        grads = jax.tree.map(lambda g, m: g + 0.5 * m, grads, state)
        return value, grads, grads


def test_a_gradient_rule_may_have_a_state(tmp_path):
    config = make_config()
    ours = train(
        make_study(gradient=Momentum, optimizer=optax.sgd(0.05)), config, tmp_path / "rule"
    )
    same = train(make_study(optimizer=optax.sgd(0.05, momentum=0.5)), config, tmp_path / "sgd")
    check_close(ours, same)
    with pytest.raises(ValueError, match="grad_accumulation = 2 cannot be combined"):
        train(make_study(gradient=Momentum), make_config(grad_accumulation=2), tmp_path / "no")


def test_probes_see_the_state_and_the_batch(tmp_path):
    def probe(state, batch):
        return {"step": state.step, "first": batch["index"][0]}

    train(make_study(probes={"seen": probe}), make_config(probe_every=5), tmp_path)
    rows = [row for row in read(tmp_path / "metrics.jsonl") if "seen/step" in row]
    assert [row["step"] for row in rows] == [0, 5, 10, 15] == [row["seen/step"] for row in rows]
    steps = [0, 4, 9, 14]  # the batch of the step that was just done
    first = [batch_index(0, s, num_examples=EXAMPLES, batch_size=BATCH)[0] for s in steps]
    assert [row["seen/first"] for row in rows] == first


def blow_up_at(step: int) -> optax.GradientTransformation:
    """SGD that breaks the parameters in update `step` (counted from 1)."""

    def update(updates, state, params=None):
        state = state + 1
        return jax.tree.map(lambda g: jnp.where(state == step, jnp.inf, -0.05 * g), updates), state

    return optax.GradientTransformation(lambda params: jnp.zeros((), jnp.int32), update)


@pytest.mark.parametrize(
    ("broken", "message"),
    [
        # The loss of step 8 sees the parameters that step 7 broke; the checkpoint of step 5 stays.
        (
            7,
            r"the loss is nan at step 8 of 15; the last good checkpoint is .*checkpoints/5\. Lower",
        ),
        # Found by the look at the parameters, before they would have been saved.
        (10, r"the parameters are not finite; seen after step 10 of 15; .*checkpoints/5\."),
        (2, r"the loss is nan at step 3 of 15; no checkpoint was saved before it"),
    ],
)
def test_a_run_that_diverges_stops_and_keeps_the_last_good_checkpoint(tmp_path, broken, message):
    study = make_study(optimizer=blow_up_at(broken))
    with pytest.raises(NonFiniteLoss, match=message):
        train(study, make_config(), tmp_path)
    kept = sorted(path.name for path in (tmp_path / "checkpoints").iterdir())
    assert kept == (["5"] if broken > 5 else [])
    if kept:
        with Training(study, make_config(), tmp_path) as training:
            assert training.step == 5
            assert all(np.isfinite(x).all() for x in jax.tree.leaves(training._state.params))


def test_an_error_in_the_middle_keeps_the_last_checkpoint_and_its_lines(tmp_path, whole):
    class Broken(Arrays):
        def batch(self, indices):
            if self.left == 0:
                raise OSError("the disk is gone")
            self.left -= 1
            return super().batch(indices)

    source = Broken(task().arrays)
    source.left = 10
    with pytest.raises(OSError, match="the disk is gone"):
        train(make_study(train_data=source), make_config(), tmp_path)
    source.left = 100
    check_same(train(make_study(train_data=source), make_config(), tmp_path), tmp_path, whole)


def test_batches_read_ahead_are_the_same(tmp_path, whole):
    check_same(train(make_study(), make_config(prefetch=2), tmp_path), tmp_path, whole)


def test_a_trace_is_written_where_it_was_asked_for(tmp_path):
    train(make_study(), make_config(profile_start=2, profile_steps=2), tmp_path)
    assert list((tmp_path / "profile").rglob("*.xplane.pb"))


def test_bfloat16_rounds_the_model_and_nothing_else():
    study = make_study(mlp(num_outputs=1, width=8, depth=1))
    model = compute_in(study.model, "bfloat16")
    params, state = model.init(jax.random.key(0), jnp.ones((2, 3)))
    inputs = jax.random.normal(jax.random.key(1), (4, 3))
    low, _ = model.apply(params, state, inputs, train=True, key=None)
    high, _ = study.model.apply(params, state, inputs, train=True, key=None)
    assert low.dtype == jnp.float32
    assert 0 < np.abs(low - high).max() < 0.05
    grads = jax.grad(lambda p: model.apply(p, state, inputs, train=True, key=None)[0].sum())(params)
    assert {leaf.dtype for leaf in jax.tree.leaves(grads)} == {jnp.dtype("float32")}
    assert compute_in(study.model, "float32") is study.model
    with pytest.raises(ValueError, match="compute_dtype must be"):
        compute_in(study.model, "float16")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"batch_size": 0}, "batch_size must be at least 1, got 0"),
        ({"batch_size": 41}, "batch_size = 41 is larger than the data set of 40 examples"),
        (
            {"batch_size": 9, "grad_accumulation": 2},
            "batch_size = 9 does not divide over 1 devices",
        ),
        ({"batch_size": 6, "num_devices": 4}, "batch_size = 6 does not divide over 4 devices"),
        ({"log_every": 0}, "log_every must be at least 1, got 0"),
        ({"num_steps": -1}, "num_steps must be at least 0, got -1"),
        ({"clip_norm": float("nan")}, "clip_norm must be finite"),
        ({"parallelism": "xmap"}, 'parallelism must be "shard_map" or "pmap"'),
        ({"order": "owner_local", "order_shards": 2, "num_devices": 4}, "order_shards = 2 must be"),
        (
            {"eval_batch_size": 3, "num_devices": 2},
            "eval_batch_size = 3 must be a positive multiple",
        ),
        ({"keep_checkpoints": 1}, "keep_checkpoints must be at least 2, got 1"),
    ],
)
def test_values_that_cannot_work_are_refused_before_anything_is_written(tmp_path, changes, message):
    with pytest.raises(ValueError, match=message):
        train(make_study(), make_config(**changes), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_shapes_that_do_not_meet_are_refused_before_anything_is_written(tmp_path):
    data = task().arrays | {"targets": np.zeros((EXAMPLES, 2, 2), np.float32)}
    with pytest.raises((ValueError, TypeError)):
        train(make_study(train_data=Arrays(data)), make_config(), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_folder_of_another_config_is_refused_and_left_alone(whole):
    def files():
        return {path: path.read_bytes() for path in whole.folder.rglob("*") if path.is_file()}

    before = files()
    message = r"another config: num_epochs is 3 there and 2 here; seed is 0 there and 1 here\."
    with pytest.raises(ValueError, match=message):
        train(make_study(), make_config(num_epochs=2, seed=1), whole.folder)
    assert files() == before


def test_a_run_moves_to_other_devices_and_layouts(tmp_path, whole):
    train(make_study(), make_config(), tmp_path, interrupted=stop_at(4))
    elsewhere = make_config(parallelism="pmap", num_devices=4)
    train(make_study(), elsewhere, tmp_path, interrupted=stop_at(9))
    check_close(train(make_study(), make_config(num_devices=2), tmp_path), whole.result)


def test_other_versions_are_told(tmp_path, monkeypatch):
    import shared.train

    old = {"packages": {"jax": "0.0.1"}}
    monkeypatch.setattr(shared.train, "describe_environment", lambda: old)
    train(make_study(), make_config(), tmp_path, interrupted=stop_at(7))
    monkeypatch.undo()
    with pytest.warns(UserWarning, match=r"jax 0\.0\.1 then, .* now"):
        train(make_study(), make_config(), tmp_path)


class Widening(Regression):
    """An objective whose state grows in precision with the first update."""

    def init(self, params, num_examples, *, model_state=()):
        return jnp.zeros(3, jnp.int32)

    def update(self, state, **changes):
        return state + 0.5


def test_an_objective_that_changes_the_kind_of_its_state_is_refused(tmp_path):
    message = r"structure, shapes and dtypes.*objective.*float32 != int32"
    with pytest.raises(ValueError, match=message):
        train(make_study(objective=Widening), make_config(), tmp_path / "run")
    assert not (tmp_path / "run").exists()
