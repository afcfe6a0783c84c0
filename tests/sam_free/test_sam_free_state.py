"""What objectives keep: the table's forms, the averages, a lost table, a weight of zero."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import sam_free

CLASSES, EXAMPLES = 5, 70


def apply_fn(params, model_state, inputs, *, train, key):
    return inputs @ params["w"] + (0.0 if train else 1.0) * model_state["mean"], {
        "mean": model_state["mean"] + 1,
        "count": model_state["count"] + 1,
    }


def saf(**options):
    return sam_free.saf(apply_fn, sam_free.cross_entropy, num_classes=CLASSES, **options)


def example(dtype=jnp.float32):
    rng = np.random.default_rng(0)
    params = {"w": jnp.asarray(rng.normal(size=(3, CLASSES)), dtype)}
    model_state = {"mean": jnp.zeros(()), "count": jnp.zeros((), jnp.int32)}
    batch = {
        "inputs": jnp.asarray(rng.normal(size=(4, 3)), dtype),
        "label": jnp.array([0, 1, 2, 3], jnp.int32),
        "index": jnp.array([9, 69, 0, 33], jnp.int32),
    }
    return params, model_state, batch


def write_and_read(logits, dtype):
    """The target that the trajectory loss sees one epoch after `logits` were recorded."""
    from sam_free._table import read

    objective = saf(lag_epochs=1, buffer_dtype=dtype)
    _, _, batch = example()
    table = objective.update(
        objective.init((), EXAMPLES), params=(), model_state=(), logits=logits, batch=batch, epoch=0
    )
    past, _ = read(
        table, batch["index"], jnp.int32(0),
        slots=2, dtype=jnp.float32, axis_name=None, gather=True,
    )  # fmt: skip
    return np.asarray(past), table


def up_to_a_constant(z):
    return z - z.max(axis=1, keepdims=True)


def test_the_table_gives_back_what_was_written_up_to_a_constant_of_the_row():
    rng = np.random.default_rng(1)
    logits = (100 + 20 * rng.normal(size=(4, CLASSES))).astype(np.float32)
    past, table = write_and_read(jnp.asarray(logits), "float32")
    np.testing.assert_array_equal(past, logits)
    assert table.values.shape == (2 * 128, CLASSES)  # padded to a multiple of 64 examples
    past, table = write_and_read(jnp.asarray(logits), "float16")
    centred = up_to_a_constant(logits)
    np.testing.assert_array_equal(past, centred.astype(np.float16).astype(np.float32))
    assert table.values.dtype == jnp.float16
    past, table = write_and_read(jnp.asarray(logits), "int8")
    step = (logits.max(1, keepdims=True) - logits.min(1, keepdims=True)) / 255
    assert np.all(np.abs(up_to_a_constant(past) - centred) <= step * 1.001)
    assert table.values.dtype == jnp.uint8


@pytest.mark.parametrize("dtype", ["float16", "int8"])
def test_rows_that_narrow_forms_cannot_hold_saturate(dtype):
    huge = jnp.array([[1e30, 0.0, -1e30, 3.0, 1e30]] * 4, jnp.float32)
    past, _ = write_and_read(huge, dtype)
    assert np.isfinite(past).all()
    p = np.asarray(jax.nn.softmax(past / 5.0))
    np.testing.assert_allclose(p[0], [0.5, 0, 0, 0, 0.5], atol=1e-6)
    flat, _ = write_and_read(jnp.full((4, CLASSES), 7.0), dtype)
    assert (flat == flat[:, :1]).all()


@pytest.mark.parametrize("dtype", ["float16", "float32", "int8"])
def test_a_row_with_nan_counts_as_never_written(dtype):
    logits = jnp.ones((4, CLASSES)).at[2, 1].set(jnp.nan)
    _, table = write_and_read(logits, dtype)
    assert np.flatnonzero(np.asarray(table.written)).tolist() == [18, 66, 138]


def test_without_weight_there_is_no_table_and_the_same_program():
    params, model_state, batch = example()
    plain = sam_free.plain(apply_fn, sam_free.cross_entropy)
    makers = {
        "saf": saf(weight=0.0),
        "mesa": sam_free.mesa(apply_fn, sam_free.cross_entropy, decay=0.9, weight=0.0),
        "uniform": sam_free.uniform_target(apply_fn, sam_free.cross_entropy, weight=0.0),
    }

    def compiled(objective):
        state = objective.init(params, EXAMPLES, model_state=model_state)
        assert state == ()
        function = jax.value_and_grad(objective.loss, has_aux=True)
        return jax.jit(function).lower(params, model_state, state, batch, 9, None).compile()

    base = compiled(plain)
    for objective in makers.values():
        own = compiled(objective)
        assert own.cost_analysis()["flops"] == base.cost_analysis()["flops"]
        a, b = (c(params, model_state, (), batch, 9, None) for c in (own, base))
        jax.tree.map(np.testing.assert_array_equal, a, b)


def test_the_teacher_evaluates_with_statistics_of_its_own():
    params, model_state, batch = example()
    objective = sam_free.mesa(
        apply_fn, sam_free.cross_entropy, decay=0.75, start_epoch=-1, weight=1.0
    )
    state = objective.init(params, EXAMPLES, model_state=model_state)
    new = {"mean": jnp.asarray(4.0), "count": jnp.asarray(7, jnp.int32)}
    state = objective.update(
        state,
        params=jax.tree.map(lambda w: w + 4, params),
        model_state=new,
        logits=None,
        batch=batch,
        epoch=0,
    )
    assert float(state.model_state["mean"]) == 1.0
    assert int(state.model_state["count"]) == 7
    np.testing.assert_allclose(state.params["w"], params["w"] + 1, rtol=1e-6)
    _, outputs = objective.loss(params, model_state, state, batch, 0, None)
    teacher = batch["inputs"] @ state.params["w"] + 1.0
    now = batch["inputs"] @ params["w"]
    expected = sam_free.trajectory_loss(now, teacher).mean()
    np.testing.assert_allclose(outputs.metrics["trajectory_loss"], expected, rtol=1e-6)
    assert float(outputs.model_state["mean"]) == 1.0  # of the student's own pass


def test_a_decay_too_slow_for_the_run_is_said():
    arguments = (apply_fn, sam_free.cross_entropy)
    with pytest.warns(UserWarning, match="averages over 5000 steps, but the run has 900"):
        sam_free.mesa(*arguments, decay=0.9998, num_steps=900)
    sam_free.mesa(*arguments, decay=0.9998, num_steps=900, warmup_decay=True)
    sam_free.mesa(*arguments, decay=0.9998, num_steps=9000)
    with pytest.warns(UserWarning, match="averaged_weights: decay"):
        sam_free.averaged_weights(*arguments, decay=0.9998, num_steps=900)


def test_averaged_weights_leave_training_alone():
    params, model_state, batch = example()
    objective = sam_free.averaged_weights(apply_fn, sam_free.cross_entropy, decay=0.5)
    plain = sam_free.plain(apply_fn, sam_free.cross_entropy)
    state = objective.init(params, EXAMPLES, model_state=model_state)
    a = objective.loss(params, model_state, state, batch, 3, None)[0]
    assert float(a) == float(plain.loss(params, model_state, (), batch, 3, None)[0])
    moved = {"w": params["w"] + 2}
    state = objective.update(
        state, params=moved, model_state=model_state, logits=None, batch=batch, epoch=0
    )
    np.testing.assert_allclose(state.params["w"], params["w"] + 1, rtol=1e-6)


def test_a_lost_table_is_refused_or_masked_by_name():
    fresh = saf().init((), EXAMPLES)
    with pytest.raises(ValueError, match=r"holds no state of the objective.*missing='mask'"):
        sam_free.restore_state((), fresh)
    with pytest.raises(ValueError, match=r"has \('.values', \(1024, 5\), .* is needed"):
        sam_free.restore_state(saf().init((), 200), fresh)
    assert sam_free.restore_state(None, fresh, missing="mask") is fresh
    kept = fresh._replace(written=fresh.written + 1)
    assert sam_free.restore_state(kept, fresh) is kept


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"temperature": 0.0}, "temperature must be a finite number > 0, got 0.0"),
        ({"lag_epochs": 0}, "lag_epochs must be a whole number >= 1, got 0"),
        ({"weight": -0.1}, "weight must be a finite number >= 0, got -0.1"),
        ({"weight": float("nan")}, "weight must be a finite number >= 0, got nan"),
        ({"ring": "lag_plus_two"}, "ring must be one of 'lag_plus_one', 'lag'"),
        ({"stale": "zeros"}, "stale must be one of 'mask', 'official'"),
        ({"buffer_dtype": "bfloat16"}, "buffer_dtype must be one of 'float16'"),
        ({"published_ranks": 4}, "needs stale='official'"),
        ({"start_epoch": 2.5}, "start_epoch must be a whole number"),
    ],
)
def test_bad_options_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        saf(**options)


def test_bad_batches_are_named():
    params, model_state, batch = example()
    objective = sam_free.saf(apply_fn, sam_free.cross_entropy, num_classes=CLASSES + 1)
    table = objective.init(params, EXAMPLES)
    with pytest.raises(ValueError, match="logits have 5 classes, but num_classes=6"):
        objective.loss(params, model_state, table, batch, 0, None)
    objective = saf()
    table = objective.init(params, EXAMPLES)
    without = {name: value for name, value in batch.items() if name != "index"}
    with pytest.raises(ValueError, match="must hold 'index'"):
        objective.loss(params, model_state, table, without, 0, None)
    fractions = batch | {"index": jnp.ones(4)}
    with pytest.raises(ValueError, match="must be whole numbers, got float32"):
        objective.loss(params, model_state, table, fractions, 0, None)
    with pytest.raises(ValueError, match=r"needs jax\.enable_x64"):
        saf(buffer_dtype="float64").init(params, EXAMPLES)


def test_label_smoothing_is_the_mixture():
    logits = jnp.array([[2.0, 0.0, -1.0]])
    batch = {"label": jnp.array([1])}
    log_q = np.log(np.exp([2.0, 0.0, -1.0]) / np.exp([2.0, 0.0, -1.0]).sum())
    found = sam_free.label_smoothing(0.3)(logits, batch)
    np.testing.assert_allclose(found, [-0.7 * log_q[1] - 0.1 * log_q.sum()], rtol=1e-6)
    with pytest.raises(ValueError, match=r"amount must be in \[0, 1\), got 1.0"):
        sam_free.label_smoothing(1.0)
