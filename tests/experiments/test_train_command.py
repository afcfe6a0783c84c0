"""The command as its users run it: in processes of its own, stopped, killed and started again."""

import json
import os
import random
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from experiments.train import BAD_INPUT, DONE, INTERRUPTED, NOT_FINITE, main

ROOT = Path(__file__).parents[2]
CONFIG = ROOT / "experiments" / "configs" / "saf_digits.py"
# Dropout, SAF's table, and a checkpoint every few steps: 44 steps of an epoch of 11.
OPTIONS = [
    f"--config={CONFIG}:smoke",
    "--config.dropout=0.1",
    "--config.num_epochs=4",
    "--config.checkpoint_every=6",
    "--config.log_every=4",
    "--compilation_cache=",
    "--quiet",
]


def start(folder: Path, num_devices: int, *more: str) -> subprocess.Popen:
    environment = os.environ | {"JAX_NUM_CPU_DEVICES": str(num_devices), "NPROC": "32"}
    return subprocess.Popen(
        [sys.executable, "-m", "experiments.train", *OPTIONS, f"--workdir={folder}", *more],
        cwd=ROOT,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def finish(process: subprocess.Popen, expected: int = DONE) -> str:
    try:
        output, _ = process.communicate(timeout=900)
    finally:
        process.kill()
    assert process.returncode == expected, output
    return output


def outcome(folder: Path) -> tuple[dict, bytes]:
    """(SHA-256 of every leaf of the last state, the record)."""
    steps = [int(path.name) for path in (folder / "checkpoints").iterdir() if path.name.isdigit()]
    sealed = folder / "checkpoints" / str(max(steps)) / "record" / "metadata"
    leaves = json.loads(json.loads(sealed.read_text())["text"])["leaves"]
    assert any("objective" in name for name in leaves)  # the table
    return leaves, (folder / "metrics.jsonl").read_bytes()


def wait_for(condition, process: subprocess.Popen) -> None:
    deadline = time.monotonic() + 600
    while not condition():
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < deadline, "nothing happened for minutes"
        time.sleep(0.01)


def test_sigterm_saves_the_last_finished_step_and_the_run_goes_on(tmp_path):
    # A long way to go, so that the signal lands in the middle.
    more = ["--config.num_epochs=4000", "--config.checkpoint_every=1000000"]
    process = start(tmp_path / "run", 1, *more)
    wait_for(lambda: (tmp_path / "run" / "timings.jsonl").exists(), process)
    process.send_signal(signal.SIGTERM)
    output = finish(process, INTERRUPTED)
    assert "stopped and saved; start the same command again" in output
    (saved,) = (tmp_path / "run" / "checkpoints").iterdir()
    told = int(output.split("step ")[1].split("/")[0])
    assert int(saved.name) == told >= 1
    process = start(tmp_path / "run", 1, *more)
    later = f'"step": {told // 4 * 4 + 40},'
    wait_for(lambda: later in record(tmp_path / "run"), process)
    process.send_signal(signal.SIGTERM)
    finish(process, INTERRUPTED)
    # The record of both parts: a line every 4 steps, none lost, none twice.
    rows = [json.loads(line) for line in record(tmp_path / "run").splitlines()]
    steps = [row["step"] for row in rows if "loss" in row]
    assert steps == list(range(4, steps[-1] + 1, 4))


def record(folder: Path) -> str:
    file = folder / "metrics.jsonl"
    return file.read_text() if file.exists() else ""


@pytest.mark.slow
@pytest.mark.timeout(1800)  # a dozen processes, each of which compiles
@pytest.mark.parametrize("num_devices", [1, 4])
def test_killed_at_random_moments_it_ends_with_the_same_bits(tmp_path, num_devices):
    finish(start(tmp_path / "whole", num_devices))
    moments = random.Random(num_devices)
    timings = tmp_path / "killed" / "timings.jsonl"
    kills = 0
    for target in sorted(moments.sample(range(1, 43), 5)):
        seen = timings.stat().st_size if timings.exists() else 0
        process = start(tmp_path / "killed", num_devices)
        while process.poll() is None and not reached(timings, seen, target):
            time.sleep(0.002)
        time.sleep(moments.uniform(0, 0.02))
        process.kill()
        process.communicate()
        kills += process.returncode == -signal.SIGKILL
    finish(start(tmp_path / "killed", num_devices))
    assert kills >= 4
    assert outcome(tmp_path / "killed") == outcome(tmp_path / "whole")


def reached(timings: Path, seen: int, step: int) -> bool:
    """Whether a row after the first `seen` bytes says that so many steps are done."""
    if not timings.exists():
        return False
    new = timings.read_bytes()[seen:].splitlines(keepends=True)
    return any(json.loads(row)["step"] >= step for row in new if row.endswith(b"\n"))


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def start_two(folder: Path, *more: str) -> list[subprocess.Popen]:
    port = free_port()
    return [
        start(
            folder,
            1,
            f"--coordinator=127.0.0.1:{port}",
            "--num_processes=2",
            f"--process_id={process}",
            *more,
        )
        for process in range(2)
    ]


@pytest.mark.slow
@pytest.mark.timeout(1800)  # a dozen processes, each of which compiles
def test_two_processes_equal_one_with_two_devices_and_move_to_four(tmp_path):
    for process in start_two(tmp_path / "two"):
        finish(process)
    finish(start(tmp_path / "one", 2))
    assert outcome(tmp_path / "two") == outcome(tmp_path / "one")

    # Stopped together by a signal to one of them, then finished by one process with four devices.
    long = ["--config.num_epochs=300", "--config.checkpoint_every=1000000"]
    processes = start_two(tmp_path / "moved", *long)
    wait_for(lambda: (tmp_path / "moved" / "timings.jsonl").exists(), processes[0])
    processes[1].send_signal(signal.SIGTERM)
    for process in processes:
        finish(process, INTERRUPTED)
    (saved,) = (tmp_path / "moved" / "checkpoints").iterdir()
    output = finish(start(tmp_path / "moved", 4, *long))
    assert "done step 3300/3300" in output
    rows = [json.loads(line) for line in record(tmp_path / "moved").splitlines()]
    steps = [row["step"] for row in rows if "loss" in row]
    assert steps == list(range(4, 3301, 4))
    assert int(saved.name) < 3300


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("command") / "run"
    arguments = [*OPTIONS, "--config.method=sgd", "--config.num_devices=1", f"--workdir={folder}"]
    assert main(arguments) == DONE
    return folder


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--config.learnin_rate=1"], "no key 'learnin_rate'; did you mean \"learning_rate\""),
        (["--config.learning_rate=much"], "learning_rate=much: could not convert string to float"),
        (["--wordir=x"], "Unknown command line flag 'wordir'. Did you mean: workdir"),
        (["--config=nowhere.py"], "config file 'nowhere.py' does not exist"),
        (["extra"], "unexpected argument 'extra'"),
        (["--config.study=clasification"], "did you mean 'classification'?"),
        (["--config.method=adam"], "method must be one of sgd, saf, mesa, sam"),
        (["--config.model=mpl"], 'model must be "mlp", "convnet" or "resnet", got \'mpl\''),
        (["--config.dataset=/nowhere"], "/nowhere is no folder"),
        (["--config.batch_size=100000"], "larger than the data set of 1437 examples"),
        (["--config.num_devices=5"], "batch_size = 128 does not divide over 5 devices"),
        (["--config.num_devices=99"], "num_devices must be 0 to 8, got 99"),
        (["--config.learning_rate=0.2"], "another config: learning_rate is 0.1 there and 0.2 here"),
        (["--config.keep_checkpoints=0"], "keep_checkpoints must be at least 2, got 0"),
        (["--config.seed=-1"], "seed must be in [0, 2**64), got -1"),
        (["--num_processes=2"], "num_processes and process_id must be given together"),
    ],
)
def test_bad_input_is_one_clear_line_and_overwrites_nothing(finished, capsys, arguments, message):
    def files():
        return {path: path.read_bytes() for path in finished.rglob("*") if path.is_file()}

    before = files()
    base = [*OPTIONS, "--config.method=sgd", "--config.num_devices=1", f"--workdir={finished}"]
    assert main([*base, *arguments]) == BAD_INPUT
    told = capsys.readouterr()
    assert told.out == ""
    assert told.err.startswith("error: ")
    assert told.err.count("\n") == 1
    assert message in told.err
    assert files() == before


def test_bad_data_files_are_one_clear_line(tmp_path, capsys):
    folder = tmp_path / "data"
    folder.mkdir()
    for part in ("train", "t10k"):
        header = bytes([0, 0, 8, 3, 0, 0, 0, 4, 0, 0, 0, 2, 0, 0, 0, 2])
        (folder / f"{part}-images-idx3-ubyte").write_bytes(header + bytes(16))
        (folder / f"{part}-labels-idx1-ubyte").write_bytes(
            bytes([0, 0, 8, 1, 0, 0, 0, 4, 0, 1, 0, 1])
        )
    base = [*OPTIONS, "--config.method=sgd", "--config.num_devices=1", f"--config.dataset={folder}"]
    base += ["--config.batch_size=2", "--config.label_noise=0.0"]
    images = folder / "train-images-idx3-ubyte"
    whole = images.read_bytes()
    for content, message in (
        (whole[:-3], "is cut short: shape (4, 2, 2) needs 16 bytes of data and there are 13"),
        (bytes([0, 0, 8, 3]) + bytes(4) + whole[8:16], "holds 0 images and"),
        (None, "does not exist"),
    ):
        images.unlink(missing_ok=True)
        if content is not None:
            images.write_bytes(content)
        assert main([*base, f"--workdir={tmp_path / 'run'}"]) == BAD_INPUT
        told = capsys.readouterr().err
        assert message in told
        assert told.count("\n") == 1
        assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("place", ["/proc/no/such/run", "file/run"])
def test_a_folder_that_cannot_be_written_is_one_clear_line(tmp_path, capsys, monkeypatch, place):
    monkeypatch.chdir(tmp_path)
    Path("file").write_text("kept")
    assert main([*OPTIONS, "--config.num_devices=1", f"--workdir={place}"]) == BAD_INPUT
    told = capsys.readouterr().err
    assert told.startswith(f"error: workdir {place!r} cannot be used: ")
    assert told.count("\n") == 1
    assert Path("file").read_text() == "kept"


def test_a_run_without_a_folder_is_refused(capsys):
    assert main(OPTIONS) == BAD_INPUT
    assert "--workdir is missing" in capsys.readouterr().err


def test_divergence_has_an_exit_code_of_its_own(tmp_path, capsys):
    arguments = ["--config.method=sgd", "--config.learning_rate=1e30", "--config.num_devices=1"]
    assert main([*OPTIONS, *arguments, f"--workdir={tmp_path}"]) == NOT_FINITE
    told = capsys.readouterr().err
    assert told.startswith("error: the ")
    assert told.count("\n") == 1


def test_help_names_every_option(capsys):
    assert main(["--help"]) == DONE
    told = capsys.readouterr().out
    for option in ("--config", "--workdir", "--coordinator", "--compilation_cache", "75"):
        assert option in told
