"""SAF in the workspace's loop: bad input is named, a lost table is refused or masked by name."""

import json
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import optax
import pytest

import sam_free
from experiments.train import BAD_INPUT, CHECKPOINT, DONE, NOT_FINITE, main
from shared.data import Arrays
from shared.devices import AXIS, make_devices
from shared.models import Model
from shared.step import make_program, run_key
from shared.train import BadBatch, Study, default_config, train

CONFIG = Path(__file__).parents[2] / "experiments" / "configs" / "saf_digits.py"
EXAMPLES, CLASSES, BATCH, STEPS = 64, 4, 16, 4


def init(key, inputs):
    return {"w": jnp.linspace(-1.0, 1.0, 3 * CLASSES).reshape(3, CLASSES)}, ()


def apply(params, model_state, inputs, *, train, key):
    return inputs @ params["w"], model_state


class Spoiled(Arrays):
    """Data whose reader puts `value` in place of one entry of `name` from the third batch on."""

    def __init__(self, name: str, value: int | None):
        rng = np.random.default_rng(0)
        images = rng.normal(size=(EXAMPLES, 3)).astype(np.float32)
        super().__init__({"image": images, "label": np.arange(EXAMPLES) % CLASSES})
        self.entry, self.value = name, value
        self.clean = set()

    def batch(self, indices):
        rows = super().batch(indices)
        first = tuple(rows["index"])
        if len(indices) < BATCH or first in self.clean or len(self.clean) < 2:
            self.clean.add(first)
            return rows
        values = rows[self.entry].copy()
        values[5] = values[2] if self.value is None else self.value
        return rows | {self.entry: values}


def study(source, *, num_classes=CLASSES, **options):
    objective = sam_free.saf(
        apply, sam_free.cross_entropy, num_classes=num_classes, axis_name=AXIS, **options
    )
    return Study(Model(init, apply), source, objective, optax.sgd(0.1))


def config(**changes):
    made = default_config()
    made.update({"batch_size": BATCH, "num_epochs": 2, "log_every": 4, "num_devices": 1} | changes)
    return made


@pytest.mark.parametrize(
    ("entry", "value", "num_devices", "message"),
    [
        ("index", EXAMPLES, 1, r"batch\['index'\] holds 64, outside 0\.\.63"),
        ("index", -1, 2, r"batch\['index'\] holds -1, outside 0\.\.63"),
        ("index", None, 2, r"batch\['index'\] holds \d+ twice"),
        ("label", CLASSES, 1, r"batch\['label'\] holds 4, outside 0\.\.3"),
        ("label", -1, 1, r"batch\['label'\] holds -1, outside 0\.\.3"),
    ],
)
def test_a_bad_batch_is_named_with_its_step(tmp_path, entry, value, num_devices, message):
    with pytest.raises(BadBatch, match=message) as caught:
        train(study(Spoiled(entry, value)), config(num_devices=num_devices), tmp_path)
    assert "The loss is not finite at step 2 of 8; no checkpoint was saved" in str(caught.value)
    assert "learning_rate" not in str(caught.value)
    row = json.loads((tmp_path / "metrics.jsonl").read_text().splitlines()[-1])
    assert row["saf_bad_indices"] == (entry == "index")


def test_what_cannot_fit_is_named_before_the_first_step(tmp_path, capsys):
    clean = Spoiled("index", 0)
    with pytest.raises(ValueError, match="logits have 4 classes, but num_classes=7"):
        train(study(clean, num_classes=7), config(), tmp_path / "classes")
    halves = Arrays(clean.arrays | {"label": np.zeros(EXAMPLES, np.float32)})
    with pytest.raises(ValueError, match=r"batch\['label'\] must be whole numbers, got float32"):
        train(study(halves), config(), tmp_path / "labels")
    command = [f"--config={CONFIG}:smoke", f"--workdir={tmp_path / 'run'}", "--quiet"]
    for option, message in {
        "temperature=0": "saf: temperature must be a finite number > 0, got 0.0",
        "saf_buffer_dtype=int4": "saf: buffer_dtype must be one of 'float16', 'float32'",
        "missing_objective=zero": 'missing_objective must be "refuse" or "mask", got \'zero\'',
        "start_from=/nowhere": "start_from = '/nowhere' has no folder of checkpoints",
    }.items():
        assert main([*command, f"--config.{option}"]) == BAD_INPUT
        assert message in capsys.readouterr().err


def rows_of(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.slow
def test_a_checkpoint_without_the_table_is_refused_or_masked_by_the_option_it_names(
    tmp_path, capsys
):
    def run(folder, method, *more):
        return main(
            [
                f"--config={CONFIG}:smoke",
                f"--config.method={method}",
                "--config.saf_lag_epochs=2",
                "--config.log_every=11",  # an epoch
                f"--workdir={tmp_path / folder}",
                "--quiet",
                *more,
            ]
        )

    start = f"--config.start_from={tmp_path / 'sgd'}"
    longer = "--config.num_epochs=7"
    assert run("sgd", "sgd") == DONE
    capsys.readouterr()
    assert run("saf", "saf", start, longer) == CHECKPOINT
    told = capsys.readouterr().err
    assert "objective.values is absent" in told
    assert 'set missing_objective = "mask"' in told

    assert run("saf", "saf", start, longer, "--config.missing_objective=mask") == DONE
    rows = [row for row in rows_of(tmp_path / "saf") if "loss" in row]
    assert [row["step"] for row in rows] == [44, 55, 66, 77]  # on from step 33
    never = [row["saf_never"] for row in rows]
    assert never[:2] == [1.0, 1.0]  # nothing recorded: everything is masked
    assert [row["trajectory_loss"] for row in rows[:2]] == [0.0, 0.0]
    assert max(never[2:]) < 0.2  # the examples that an incomplete epoch left out
    assert min(row["trajectory_loss"] for row in rows[2:]) > 0

    # a run that finds its own table goes on with it; another lag is another table
    (tmp_path / "other").mkdir()
    more = (f"--config.start_from={tmp_path / 'saf'}", "--config.num_epochs=8")
    assert run("on", "saf", *more) == DONE
    assert [row["saf_never"] < 0.2 for row in rows_of(tmp_path / "on") if "loss" in row] == [True]
    assert run("other", "saf", *more, "--config.saf_lag_epochs=3") == CHECKPOINT
    assert "objective.values is ('float16', " in capsys.readouterr().err
    # MESA's teacher starts as the network of the checkpoint: no distance in the first step
    mesa = (start, longer, "--config.mesa_decay=0.9", "--config.log_every=1")
    assert run("mesa", "mesa", *mesa, "--config.missing_objective=mask") == DONE
    rows = [row for row in rows_of(tmp_path / "mesa") if "loss" in row]
    assert rows[0]["step"] == 34
    assert rows[0]["trajectory_loss"] < 1e-6 < 1e-4 < rows[10]["trajectory_loss"]
    assert run("mesa", "mesa", *mesa) == DONE  # now it finds its own


@pytest.mark.slow
def test_sharpness_is_a_probe_of_the_loop(tmp_path):
    command = [f"--config={CONFIG}:smoke", f"--workdir={tmp_path}", "--quiet"]
    assert main([*command, "--config.probe_every=11", "--config.num_devices=2"]) == DONE
    rows = [row for row in rows_of(tmp_path) if "sharpness/lambda_max" in row]
    assert [row["step"] for row in rows] == [0, 11, 22, 33]
    for row in rows:
        assert 0 <= row["sharpness/lambda_max_error"] < row["sharpness/lambda_max"]
        assert 0 < row["sharpness/sam_sharpness_error"] < row["sharpness/sam_sharpness"]


@pytest.mark.slow
@pytest.mark.parametrize("num_devices", [1, 8])
def test_the_loops_own_step_holds_no_copy_of_the_table(num_devices):
    sizes = []
    for num_examples in (10_048, 1_000_000):
        images = np.zeros((num_examples, 3), np.float32)
        source = Arrays({"image": images, "label": np.zeros(num_examples, np.int32)})
        devices = make_devices("shard_map", num_devices)
        made = config(num_devices=num_devices)
        program = make_program(study(source), made, devices, num_examples // BATCH)
        state = devices.from_global(program.init(run_key(0)), program.split)
        batch = devices.batch(source.batch(np.arange(BATCH)))
        memory = program.step.lower(state, batch, run_key(0)).compile().memory_analysis()
        sizes.append(memory.temp_size_in_bytes)
        assert memory.alias_size_in_bytes >= num_examples * 4 * (2 * CLASSES + 4) // num_devices
    assert sizes[1] - sizes[0] < 4096
    assert sizes[1] < 200_000


@pytest.mark.slow
def test_a_diverged_run_is_no_bad_batch(tmp_path, capsys):
    command = [f"--config={CONFIG}:smoke", "--config.learning_rate=1e30", "--quiet"]
    assert main([*command, f"--workdir={tmp_path}"]) == NOT_FINITE
    assert "Lower learning_rate" in capsys.readouterr().err
