"""Logs as they are: every format, every kind of dirt, and a report of each repair."""

import json

import numpy as np
import pytest

from scaling_laws import curves

TOTAL = 1000
STEPS = np.arange(50, TOTAL, 10)
RATES = curves.cosine(TOTAL, peak=1e-3, end=1e-4, warmup=50)
LOSSES = 2.5 + 3.0 * np.cumsum(RATES)[STEPS] ** -0.4 / 20


def write_csv(path, columns):
    names = list(columns)
    lines = [",".join(names)]
    lines += [",".join(str(v) for v in row) for row in zip(*columns.values())]
    path.write_text("\n".join(lines) + "\n")
    return path


def clean():
    return {"step": STEPS, "lr": RATES[STEPS], "loss": LOSSES}


def test_csv_jsonl_parquet_and_tensorboard_hold_the_same_curve(tmp_path):
    columns = clean()
    paths = [write_csv(tmp_path / "run.csv", columns)]
    lines = [json.dumps({k: float(v[i]) for k, v in columns.items()}) for i in range(len(STEPS))]
    paths.append(tmp_path / "run.jsonl")
    paths[-1].write_text("\n".join(lines) + "\n")
    arrow = pytest.importorskip("pyarrow", reason="Parquet needs the optional pyarrow")
    import pyarrow.parquet

    paths.append(tmp_path / "run.parquet")
    pyarrow.parquet.write_table(
        arrow.table({k: np.asarray(v) for k, v in columns.items()}), paths[-1]
    )
    board = pytest.importorskip("tensorboardX", reason="events need the optional tensorboardX")
    with board.SummaryWriter(str(tmp_path / "events")) as writer:
        for i, step in enumerate(STEPS):
            writer.add_scalar("train/loss", LOSSES[i], step)
            writer.add_scalar("lr", RATES[step], step)
    paths.append(tmp_path / "events")
    for path in paths:
        curve = curves.read(path, schedule=RATES)
        np.testing.assert_array_equal(curve.steps, STEPS)
        np.testing.assert_allclose(curve.losses, LOSSES, rtol=1e-6)  # events hold float32
        np.testing.assert_array_equal(curve.learning_rates, RATES)


def test_every_repair_is_made_and_reported():
    steps = STEPS.astype(float)
    losses = LOSSES.copy()
    losses[20], losses[30], losses[40] = np.nan, np.inf, 3 * losses[40]
    order = np.random.default_rng(0).permutation(len(steps))
    rows = np.concatenate([order, order[:3]])
    curve = curves.repair(steps[rows], losses[rows], schedule=RATES)
    report = "; ".join(curve.repairs)
    for word in ("1 empty or NaN losses", "infinite", "sorted", "3 repeated steps", "1 spikes"):
        assert word in report, (word, report)
    gone = {int(STEPS[i]) for i in (20, 30, 40)}
    assert set(curve.steps) == set(STEPS.tolist()) - gone
    np.testing.assert_allclose(curve.losses, LOSSES[~np.isin(STEPS, list(gone))])


def test_a_restart_replaces_what_it_repeats():
    first = STEPS <= 600
    again = STEPS >= 400
    steps = np.concatenate([STEPS[first], STEPS[again]])
    losses = np.concatenate([LOSSES[first] + 1.0 * (STEPS[first] >= 400), LOSSES[again]])
    curve = curves.repair(steps, losses, schedule=RATES)
    np.testing.assert_array_equal(curve.steps, STEPS)
    np.testing.assert_array_equal(curve.losses, LOSSES)
    assert any("restarted from step 400: 21 rows" in note for note in curve.repairs)


@pytest.mark.parametrize(("policy", "wanted"), [("first", 2.0), ("last", 3.0), ("mean", 2.5)])
def test_duplicates_are_merged_by_policy(policy, wanted):
    curve = curves.repair([1, 2, 2, 3], [4.0, 2.0, 3.0, 1.9], schedule=np.ones(4),
                          duplicates=policy, spikes="keep")  # fmt: skip
    assert curve.losses[1] == wanted


def test_logged_rates_are_interpolated_over_gaps_and_cliffs():
    rates = curves.two_stage(TOTAL, peak=1e-3, switch=500, end=2e-4)
    logged = rates[STEPS].copy()
    logged[5], logged[-1] = np.nan, 0.0
    curve = curves.repair(STEPS, LOSSES, logged, warmup=20)
    report = "; ".join(curve.repairs)
    assert "1 empty learning rates" in report
    assert "1 zero learning rates after the end" in report
    assert "jumps from 0.001 to 0.0002 between steps 490 and 500" in report
    assert "linear warm-up" in report
    np.testing.assert_array_equal(curve.learning_rates[20:491], 1e-3)
    np.testing.assert_array_equal(curve.learning_rates[491:], 2e-4)
    smooth = curves.repair(STEPS, LOSSES, RATES[STEPS], warmup=50)
    np.testing.assert_allclose(smooth.learning_rates[50:], RATES[50 : STEPS[-1] + 1], rtol=2e-3)
    assert not any("jump" in note for note in smooth.repairs)


def test_schedules_that_disagree_with_the_log_are_reported():
    curve = curves.repair(STEPS, LOSSES, 2 * RATES[STEPS], schedule=RATES)
    assert any("logged rates differ from the given schedule" in note for note in curve.repairs)


def test_columns_are_found_and_chosen(tmp_path):
    columns = {
        "run-7 - _step": STEPS, "run-7 - train/loss": LOSSES + 1, "run-7 - val/loss": LOSSES,
        "run-7 - train/loss__MIN": LOSSES, "run-7 - train/lr": RATES[STEPS],
    }  # fmt: skip
    path = write_csv(tmp_path / "wandb.csv", columns)
    np.testing.assert_allclose(curves.read(path).losses, LOSSES)
    np.testing.assert_allclose(curves.read(path, split="train").losses, LOSSES + 1)
    with pytest.raises(ValueError, match="has no column 'perplexity'"):
        curves.read(path, loss="perplexity")


def test_step_zero_and_counting_from_one(tmp_path):
    rates = curves.cosine(100, peak=1.0, warmup=10)
    curve = curves.repair(np.arange(100), np.linspace(3, 2, 100), schedule=rates)
    assert curve.steps[0] == 1
    assert any("before any training" in note for note in curve.repairs)
    path = write_csv(tmp_path / "one.csv", {"step": STEPS + 1, "loss": LOSSES, "lr": RATES[STEPS]})
    np.testing.assert_array_equal(curves.read(path, first_step=1).steps, STEPS)


def test_what_cannot_be_repaired_is_refused_with_its_row(tmp_path):
    with pytest.raises(ValueError, match=r"row 1 has step 2\.5"):
        curves.repair([1, 2.5], [1.0, 1.0], schedule=np.ones(9))
    with pytest.raises(ValueError, match="no row has both a step and a positive finite loss"):
        curves.repair([1, 2], [np.nan, -1.0], schedule=np.ones(9))
    with pytest.raises(ValueError, match="no learning rates; give schedule="):
        curves.repair([1, 2], [1.0, 1.0])
    with pytest.raises(ValueError, match="no logged learning rate is above 0"):
        curves.repair([1, 2], [1.0, 1.0], [0.0, 0.0])
    with pytest.raises(ValueError, match="learning rate at step 2 is negative"):
        curves.repair([1, 2], [1.0, 1.0], [0.1, -0.1])
    with pytest.raises(ValueError, match="a loss was logged at step 2"):
        curves.repair([1, 2], [1.0, 1.0], schedule=np.ones(2))
    broken = tmp_path / "broken.jsonl"
    broken.write_text('{"step": 1}\n{"step": \n')
    with pytest.raises(ValueError, match="line 2 is not JSON"):
        curves.read(broken)
    with pytest.raises(FileNotFoundError):
        curves.read(tmp_path / "absent.csv")
    (tmp_path / "a.txt").write_text("x")
    with pytest.raises(ValueError, match=r"ends in '\.txt'"):
        curves.read(tmp_path / "a.txt")
