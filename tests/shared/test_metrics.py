"""The record of truth: same run, same bytes; cut back to a step; nothing lost, nothing torn."""

import json
import math
import os

import jax.numpy as jnp
import numpy as np
import pytest

from shared import metrics


def test_a_record_holds_what_was_written_with_all_digits(tmp_path):
    path = tmp_path / "run" / "metrics.jsonl"
    sink = metrics.JsonLines(path)
    third = np.float32(1) / np.float32(3)
    sink.write(10, {"loss": jnp.float32(third), "epoch": np.int32(2), "done": False})
    sink.write(10, {"test/accuracy": 0.1 + 0.2})
    sink.close()
    lines = path.read_text().splitlines()
    assert lines[0] == f'{{"step": 10, "loss": {float(third)!r}, "epoch": 2, "done": false}}'
    assert metrics.read(path) == [
        {"step": 10, "loss": float(third), "epoch": 2, "done": False},
        {"step": 10, "test/accuracy": 0.1 + 0.2},
    ]
    assert np.float32(metrics.read(path)[0]["loss"]) == third


def test_lines_wait_for_flush(tmp_path):
    path = tmp_path / "metrics.jsonl"
    sink = metrics.JsonLines(path)
    sink.write(1, {"loss": 1.0})
    assert path.read_text() == ""
    sink.flush()
    assert metrics.read(path) == [{"step": 1, "loss": 1.0}]
    sink.close()
    sink.close()


def test_numbers_that_are_not_finite_are_kept_and_the_file_stays_json(tmp_path):
    path = tmp_path / "metrics.jsonl"
    sink = metrics.JsonLines(path)
    sink.write(1, {"a": math.nan, "b": np.float32("inf"), "c": -jnp.inf})
    sink.close()

    def refuse(name):
        raise AssertionError(name)

    json.loads(path.read_text(), parse_constant=refuse)
    (row,) = metrics.read(path)
    assert math.isnan(row["a"])
    assert (row["b"], row["c"]) == (math.inf, -math.inf)


def write_run(path, steps):
    sink = metrics.JsonLines(path)
    for step in steps:
        sink.write(step, {"loss": 1 / (step + 1), "rate": np.float32(0.1) * step})
    sink.close()


@pytest.mark.parametrize("torn", [b"", b'{"step": 17, "lo', b'{"step": 3}'])
def test_a_run_cut_back_and_continued_has_the_same_bytes(tmp_path, torn):
    whole, killed = tmp_path / "whole.jsonl", tmp_path / "killed.jsonl"
    write_run(whole, range(20))
    write_run(killed, range(17))
    with killed.open("ab") as file:
        file.write(torn)  # a kill in the middle of a write
    assert metrics.truncate(killed, 12) == 4
    assert metrics.read(killed)[-1]["step"] == 12
    write_run(killed, range(13, 20))
    assert killed.read_bytes() == whole.read_bytes()
    assert metrics.truncate(killed, 19) == 0
    assert killed.read_bytes() == whole.read_bytes()


def test_every_cut_of_a_record_can_be_read_and_continued(tmp_path):
    whole = tmp_path / "whole.jsonl"
    write_run(whole, range(4))
    raw = whole.read_bytes()
    path = tmp_path / "cut.jsonl"
    for length in range(len(raw)):
        path.write_bytes(raw[:length])
        complete = raw[:length].count(b"\n")
        assert [row["step"] for row in metrics.read(path)] == list(range(complete))
        write_run(path, range(complete, 4))
        assert path.read_bytes() == raw


def test_truncation_is_one_atomic_move(tmp_path, monkeypatch):
    path = tmp_path / "metrics.jsonl"
    write_run(path, range(5))
    before = path.read_bytes()

    def crash(descriptor):
        raise OSError("no space left on device")

    monkeypatch.setattr(os, "fsync", crash)
    with pytest.raises(OSError, match="no space"):
        metrics.truncate(path, 2)
    assert path.read_bytes() == before


def test_a_record_that_is_not_there_and_one_that_is_damaged(tmp_path):
    assert metrics.truncate(tmp_path / "nothing.jsonl", 3) == 0
    assert not (tmp_path / "nothing.jsonl").exists()
    with pytest.raises(FileNotFoundError):
        metrics.read(tmp_path / "nothing.jsonl")
    path = tmp_path / "metrics.jsonl"
    for bad in ("not json", "[1]", '{"loss": 1}', '{"step": "one"}'):
        path.write_text(f'{{"step": 1}}\n{bad}\n{{"step": 2}}\n')
        with pytest.raises(ValueError, match=r"metrics\.jsonl, line 2"):
            metrics.read(path)


def test_steps_that_go_back_reserved_names_and_arrays_are_refused(tmp_path):
    sink = metrics.JsonLines(tmp_path / "metrics.jsonl")
    sink.write(5, {})
    with pytest.raises(ValueError, match="step 4 comes after step 5"):
        sink.write(4, {})
    with pytest.raises(ValueError, match='"step" is taken'):
        sink.write(6, {"step": 1})
    with pytest.raises(ValueError, match=r"'loss' must be a scalar, got shape \(2,\)"):
        sink.write(6, {"loss": np.zeros(2)})
    sink.close()
    again = metrics.JsonLines(tmp_path / "metrics.jsonl")
    with pytest.raises(ValueError, match="step 4 comes after step 5"):
        again.write(4, {})
    again.close()


def test_a_tee_writes_to_all(tmp_path):
    files = [metrics.JsonLines(tmp_path / f"{i}.jsonl") for i in range(2)]
    tee = metrics.Tee(files)
    tee.write(1, {"loss": 2.0})
    tee.flush()
    tee.close()
    assert (tmp_path / "0.jsonl").read_bytes() == (tmp_path / "1.jsonl").read_bytes() != b""


def test_tensorboard_events_hold_the_numbers(tmp_path):
    pytest.importorskip("tensorboardX", reason="needs the extra 'tensorboard'")
    from tensorboardX.proto.event_pb2 import Event

    sink = metrics.TensorBoard(tmp_path, purge_step=3)
    sink.write(3, {"loss": np.float32(0.5), "label": "text", "bad": math.inf})
    sink.flush()
    sink.close()
    (path,) = tmp_path.glob("events.out.tfevents.*")
    raw, position, found = path.read_bytes(), 0, {}
    while position < len(raw):  # length (8 bytes), its checksum (4), the event, its checksum (4)
        length = int.from_bytes(raw[position : position + 8], "little")
        event = Event.FromString(raw[position + 12 : position + 12 + length])
        found |= {value.tag: (event.step, value.simple_value) for value in event.summary.value}
        position += 16 + length
    assert found == {"loss": (3, 0.5), "bad": (3, math.inf)}


def test_viewers_that_are_not_installed_are_named(tmp_path, monkeypatch):
    import sys

    for module in ("tensorboardX", "wandb"):
        monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(ImportError, match=r"optgen\[tensorboard\]"):
        metrics.TensorBoard(tmp_path)
    with pytest.raises(ImportError, match=r"optgen\[wandb\]"):
        metrics.Wandb(tmp_path, project="x")


def test_wandb_gets_the_rows(tmp_path, monkeypatch):
    # A stand-in with wandb's three calls: the real one starts a service of its own.
    import sys
    import types

    calls = []

    class Run:
        def log(self, row, step):
            calls.append((step, row))

        def finish(self):
            calls.append("finish")

    def init(**settings):
        calls.append(settings)
        return Run()

    monkeypatch.setitem(sys.modules, "wandb", types.SimpleNamespace(init=init))
    sink = metrics.Wandb(tmp_path / "w", project="p", config={"seed": 1}, run_id="abc")
    sink.write(2, {"loss": np.float32(0.25), "bad": math.inf})
    sink.flush()
    sink.close()
    assert calls[0]["project"] == "p"
    assert calls[0]["config"] == {"seed": 1}
    assert (calls[0]["id"], calls[0]["resume"]) == ("abc", "allow")
    assert calls[1:] == [(2, {"loss": 0.25, "bad": math.inf}), "finish"]
