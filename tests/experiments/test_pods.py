"""Launching, as far as it can be checked on one machine without a cloud."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

from experiments.pods import jobset, local

PODS = Path(jobset.__file__).parent
ROOT = PODS.parent.parent
CONFIG = "experiments/configs/saf_digits.py:smoke"


def fake(folder, name):
    """A program that writes its arguments to a file, one line a call."""
    path = folder / name
    path.write_text('#!/bin/bash\nprintf "%s\\x1f" "$(basename "$0")" "$@" >> "$CALLS"\n'
                    'printf "\\n" >> "$CALLS"\nexit "${FAKE_CODE:-0}"\n')  # fmt: skip
    path.chmod(0o755)


def calls(path):
    return [line.split("\x1f")[:-1] for line in path.read_text().splitlines()]


@pytest.fixture
def programs(tmp_path):
    folder = tmp_path / "bin"
    folder.mkdir()
    for name in ("gcloud", "srun", "scontrol"):
        fake(folder, name)
    environment = os.environ | {
        "PATH": f"{folder}:{os.environ['PATH']}",
        "CALLS": str(tmp_path / "calls.txt"),
        "NAME": "slice",
        "ZONE": "us-west4-a",
    }
    (tmp_path / "calls.txt").touch()
    return environment


@pytest.mark.parametrize("name", ["tpu_vm.sh", "slurm.sbatch"])
def test_scripts_are_valid_shell(name):
    subprocess.run(["bash", "-n", str(PODS / name)], check=True)
    checker = shutil.which("shellcheck", path=f"{Path(sys.executable).parent}:{os.environ['PATH']}")
    if checker is None:
        pytest.skip("shellcheck is not installed: it comes with the extra 'dev'")
    done = subprocess.run([checker, str(PODS / name)], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


def tpu_vm(programs, *arguments, **more):
    return subprocess.run(
        ["bash", str(PODS / "tpu_vm.sh"), *arguments],
        env=programs | more,
        cwd=ROOT,
        capture_output=True,
        text=True,
    )


ZONE = "--zone=us-west4-a"


@pytest.mark.parametrize(
    ("arguments", "environment", "expected"),
    [
        (
            ["create"],
            {"SPOT": "1"},
            "compute tpus queued-resources create slice --node-id=slice --zone=us-west4-a "
            "--accelerator-type=v5litepod-16 --runtime-version=v2-alpha-tpuv5-lite --spot",
        ),
        (
            ["create"],
            {"TYPE": "v4-8", "RUNTIME": "tpu-ubuntu2204-base"},
            "compute tpus queued-resources create slice --node-id=slice --zone=us-west4-a "
            "--accelerator-type=v4-8 --runtime-version=tpu-ubuntu2204-base",
        ),
        (
            ["status"],
            {},
            "compute tpus queued-resources describe slice --zone=us-west4-a "
            "--format=value(state.state)",
        ),
        (
            ["delete"],
            {},
            "compute tpus queued-resources delete slice --zone=us-west4-a --force --quiet",
        ),
    ],
)
def test_gcloud_is_called_as_documented(programs, tmp_path, arguments, environment, expected):
    done = tpu_vm(programs, *arguments, **environment)
    assert done.returncode == 0, done.stderr
    assert calls(tmp_path / "calls.txt") == [["gcloud", *expected.split()]]


def test_options_reach_every_host_word_for_word(programs, tmp_path):
    options = ["--config=a.py", "--workdir=/mnt/my runs/x", "--config.note=it's $HOME; rm -rf ."]
    assert tpu_vm(programs, "run", *options).returncode == 0
    ((*call, command),) = calls(tmp_path / "calls.txt")
    assert call == ["gcloud", *["compute", "tpus", "tpu-vm", "ssh", "slice"], ZONE, "--worker=all"]
    # What the remote shell makes of the command, with its programs replaced by one that prints.
    remote = command.removeprefix("--command=").replace("cd optgen && .venv/bin/python", "args")
    shown = subprocess.run(
        ["bash", "-c", f'args() {{ printf "%s\\n" "$@"; }}; {remote}'],
        capture_output=True,
        text=True,
        check=True,
    ).stdout.splitlines()
    assert shown == ["-m", "experiments.train", "--distributed", *options]


def test_setup_copies_the_checkout_and_installs_it(programs, tmp_path):
    if not (ROOT / ".git").exists():
        pytest.skip("this is not a git checkout")
    assert tpu_vm(programs, "setup").returncode == 0
    copy, install = calls(tmp_path / "calls.txt")
    assert copy[:5] == ["gcloud", "compute", "tpus", "tpu-vm", "scp"]
    assert copy[6] == "slice:optgen.tar.gz"
    assert install[-1].endswith("make setup EXTRAS=tpu")


@pytest.mark.parametrize(
    ("arguments", "environment", "message"),
    [
        ([], {}, "experiments/pods/tpu_vm.sh create"),
        (["destroy"], {}, "experiments/pods/tpu_vm.sh create"),
        (["run"], {}, "experiments/pods/tpu_vm.sh create"),
        (["status"], {"NAME": ""}, "set NAME"),
        (["status"], {"ZONE": ""}, "set ZONE"),
    ],
)
def test_the_script_refuses_what_it_does_not_know(programs, arguments, environment, message):
    done = tpu_vm(programs, *arguments, **environment)
    assert done.returncode != 0
    assert message in done.stderr


def test_a_failing_gcloud_fails_the_script(programs):
    assert tpu_vm(programs, "status", FAKE_CODE="7").returncode == 7


@pytest.mark.parametrize(("code", "expected"), [(0, 0), (75, 0), (3, 3)])
def test_slurm_runs_one_process_a_node_and_requeues_an_interrupted_run(
    programs, tmp_path, code, expected
):
    (tmp_path / ".venv" / "bin").mkdir(parents=True)
    (tmp_path / ".venv" / "bin" / "python").symlink_to(sys.executable)
    srun = tmp_path / "bin" / "srun"
    srun.write_text(srun.read_text().replace("${FAKE_CODE:-0}", str(code)))
    done = subprocess.run(
        ["bash", str(PODS / "slurm.sbatch"), "--config=a.py", "--workdir=x y"],
        env=programs | {"SLURM_JOB_ID": "42"},
        cwd=tmp_path,
    )
    assert done.returncode == expected
    first, *rest = calls(tmp_path / "calls.txt")
    assert first == [
        "srun", "--kill-on-bad-exit=1", ".venv/bin/python", "-m", "experiments.train", "--quiet",
        "--distributed", "--config=a.py", "--workdir=x y",
    ]  # fmt: skip
    assert rest == ([["scontrol", "requeue", "42"]] if code == 75 else [])


def test_slurm_says_what_is_missing(programs, tmp_path):
    script = ["bash", str(PODS / "slurm.sbatch")]
    usage = subprocess.run(script, env=programs, cwd=tmp_path, capture_output=True, text=True)
    assert (usage.returncode, usage.stderr[:6]) == (2, "usage:")
    bare = subprocess.run(
        [*script, "--config=a"], env=programs, cwd=tmp_path, capture_output=True, text=True
    )
    assert bare.returncode == 2
    assert "make setup" in bare.stderr


JOB = {
    "name": "saf-digits",
    "image": "registry.example/optgen:1",
    "accelerator": "tpu-v5-lite-podslice",
    "topology": "4x4",
    "claim": "runs",
    "arguments": ["--config=a.py", '--config.note=say "hi": # it\'s', "--config.x=${y}"],
}


def schema():
    return json.loads((PODS / "jobset.schema.json").read_text())


def test_the_manifest_is_a_jobset_with_one_pod_for_each_host():
    jsonschema = pytest.importorskip("jsonschema", reason="needs the extra 'dev'")
    manifest = yaml.safe_load(jobset.render(**JOB))
    jsonschema.validate(manifest, schema())
    job = manifest["spec"]["replicatedJobs"][0]["template"]["spec"]
    assert job["parallelism"] == job["completions"] == 4
    (container,) = job["template"]["spec"]["containers"]
    assert container["resources"]["limits"] == {"google.com/tpu": 4}
    assert container["command"] == ["python", "-m", "experiments.train"]
    assert container["args"] == [
        *JOB["arguments"],
        "--workdir=/runs/saf-digits",
        "--coordinator=saf-digits-hosts-0-0.saf-digits:8476",
        "--num_processes=4",
        "--process_id=$(PROCESS_ID)",
    ]


def test_the_schema_catches_a_misspelt_field_and_a_wrong_type():
    jsonschema = pytest.importorskip("jsonschema", reason="needs the extra 'dev'")
    text = jobset.render(**JOB)
    for good, bad in (
        ("parallelism:", "paralellism:"),
        ("completions: 4", 'completions: "4"'),
        ("v1alpha2", "v1"),
        ("restartPolicy: Never", "restartPolicy: Always"),
    ):
        assert good in text
        with pytest.raises(jsonschema.ValidationError):
            jsonschema.validate(yaml.safe_load(text.replace(good, bad)), schema())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"name": "My_Run"}, "--name must be lower-case"),
        ({"name": "a" * 41}, "at most 40"),
        ({"claim": "x\ny: 1"}, "--claim"),
        ({"image": "a b"}, "--image"),
        ({"topology": "4by4"}, "--topology must be like"),
        ({"topology": "3x3"}, "has 9 chips"),
        ({"max_restarts": -1}, "--max_restarts"),
        ({"arguments": ["--workdir=x"]}, "leave it out"),
    ],
)
def test_values_that_cannot_work_are_named(change, message):
    with pytest.raises(ValueError, match=message):
        jobset.render(**JOB | change)


def test_the_command_prints_the_manifest_or_says_what_is_wrong(capsys):
    options = [f"--{key}={value}" for key, value in JOB.items() if key != "arguments"]
    assert jobset.main([*options, "--", *JOB["arguments"]]) == 0
    assert capsys.readouterr().out == jobset.render(**JOB)
    assert jobset.main([*options, "--topology=1"]) == 2
    assert "--topology" in capsys.readouterr().err


def script(tmp_path, body):
    """A command for `launch` that runs Python code with process_id, number and folder bound."""

    def command(process_id, num_processes, coordinator):
        head = (
            f"import os, sys, time; i, n = {process_id}, {num_processes}; "
            f"coordinator = {coordinator!r}; folder = {str(tmp_path)!r}\n"
        )
        return [sys.executable, "-c", head + body]

    return command


def test_all_processes_run_and_know_each_other(tmp_path):
    body = (
        "open(f'{folder}/{i}', 'w').write("
        "f\"{n} {coordinator} {os.environ['JAX_NUM_CPU_DEVICES']}\")"
    )
    assert local.launch(script(tmp_path, body), 3, devices_per_process=2) == 0
    told = {(tmp_path / str(i)).read_text() for i in range(3)}
    assert len(told) == 1
    number, coordinator, devices = told.pop().split()
    assert (number, devices) == ("3", "2")
    assert coordinator.startswith("127.0.0.1:")


def test_one_that_fails_ends_the_others_and_gives_the_code(tmp_path, capfd):
    start = time.monotonic()
    body = "sys.exit(3) if i == 1 else time.sleep(60)"
    assert local.launch(script(tmp_path, body), 3, grace_s=0.5) == 3
    assert time.monotonic() - start < 30
    assert "exit code 3" in capfd.readouterr().err


def test_sigterm_is_passed_on_to_all(tmp_path):
    body = (
        "import signal\n"
        "def leave(*_):\n    open(f'{folder}/left-{i}', 'w'); sys.exit(75)\n"
        "signal.signal(signal.SIGTERM, leave)\nopen(f'{folder}/ready-{i}', 'w')\n"
        "if i == 0:\n"
        "    while not all(os.path.exists(f'{folder}/ready-{j}') for j in range(n)):\n"
        "        time.sleep(0.05)\n"
        "    os.kill(os.getppid(), signal.SIGTERM)\n"
        "time.sleep(60)"
    )
    before = signal.getsignal(signal.SIGTERM)
    assert local.launch(script(tmp_path, body), 2) == 75
    assert {path.name for path in tmp_path.glob("left-*")} == {"left-0", "left-1"}
    assert signal.getsignal(signal.SIGTERM) is before


@pytest.mark.slow
def test_the_manifests_command_trains_as_two_processes_here(tmp_path):
    arguments = [f"--config={CONFIG}", "--config.num_epochs=1", "--config.warmup_epochs=0"]
    manifest = yaml.safe_load(jobset.render(**JOB | {"topology": "2x4", "arguments": arguments}))
    pod = manifest["spec"]["replicatedJobs"][0]["template"]["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    workdir = tmp_path / "run"

    def command(process_id, num_processes, coordinator):
        changes = {
            "--workdir=/runs/saf-digits": f"--workdir={workdir}",
            "--coordinator=saf-digits-hosts-0-0.saf-digits:8476": f"--coordinator={coordinator}",
            "--process_id=$(PROCESS_ID)": f"--process_id={process_id}",
        }
        assert f"--num_processes={num_processes}" in container["args"]
        assert set(changes) <= set(container["args"])
        args = [changes.get(argument, argument) for argument in container["args"]]
        return [sys.executable, *container["command"][1:], "--quiet", *args]

    assert local.launch(command, 2) == 0
    rows = (workdir / "metrics.jsonl").read_text().splitlines()
    assert json.loads(rows[-1])["step"] == 11


@pytest.mark.slow
def test_the_local_command_trains_as_two_processes(tmp_path):
    options = [f"--config={CONFIG}", f"--workdir={tmp_path / 'run'}"]
    assert local.main(["-n", "2", "--", "--quiet", *options]) == 0
    environment = json.loads((tmp_path / "run" / "environment.json").read_text())
    assert environment["num_processes"] == 2
