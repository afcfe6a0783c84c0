"""Several processes on this machine, joined over loopback as the hosts of a pod would be.

python -m experiments.pods.local -n 2 -- --config=FILE --workdir=DIR [--config.key=value ...]

What follows `--` goes to `experiments.train` in each process. Output of process 0 goes to the
terminal, that of the others to a temporary folder that is named when one fails. When a process
fails the others are ended, since they would wait for it for ever. SIGTERM and Ctrl-C are passed on,
so that all save the same step. The exit code is that of the first process that failed.
"""

import argparse
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

GRACE_S = 30.0  # for the processes that are left, once one has failed


def free_port() -> int:
    """A port of loopback that nobody listens on at the moment."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def train_command(arguments: Sequence[str]) -> Callable[[int, int, str], list[str]]:
    """The command of process `i` of `n` under a coordinator, for `launch`."""

    def command(process_id: int, num_processes: int, coordinator: str) -> list[str]:
        return [
            *(sys.executable, "-m", "experiments.train", *arguments),
            f"--coordinator={coordinator}",
            f"--num_processes={num_processes}",
            f"--process_id={process_id}",
        ]

    return command


def launch(
    command: Callable[[int, int, str], list[str]],
    num_processes: int,
    *,
    devices_per_process: int = 1,
    grace_s: float = GRACE_S,
) -> int:
    """Starts the processes, waits for all, and returns the first exit code that is not zero.

    Args:
      command: (process_id, num_processes, "127.0.0.1:port") -> argv.
      num_processes: how many, at least 1.
      devices_per_process: simulated CPU devices in each; without effect on accelerators.
      grace_s: seconds from the first failure to the end of the others.
    """
    coordinator = f"127.0.0.1:{free_port()}"
    environment = os.environ | {"JAX_NUM_CPU_DEVICES": str(devices_per_process)}
    # Threads for collectives: simulated devices starve each other on machines with few cores.
    environment.setdefault("NPROC", "32")
    logs = Path(tempfile.mkdtemp(prefix="optgen-local-"))
    processes: list[subprocess.Popen[bytes]] = []

    def pass_on(number: int, frame: object) -> None:
        for process in processes:
            if process.poll() is None:
                process.send_signal(signal.SIGTERM)

    before = {s: signal.signal(s, pass_on) for s in (signal.SIGTERM, signal.SIGINT)}
    try:
        for i in range(num_processes):
            argv = command(i, num_processes, coordinator)
            if i == 0:
                processes.append(subprocess.Popen(argv, env=environment, start_new_session=True))
                continue
            with (logs / f"process_{i}.txt").open("wb") as log:
                processes.append(
                    subprocess.Popen(
                        argv, env=environment, stdout=log, stderr=log, start_new_session=True
                    )
                )
        code = _wait(processes, grace_s)
    finally:
        for process in processes:
            if process.poll() is None:
                process.kill()
                process.wait()
        for number, handler in before.items():
            signal.signal(number, handler)
    if code:
        print(f"local: exit code {code}; output of the others is in {logs}", file=sys.stderr)
    return code


def _wait(processes: Sequence[subprocess.Popen[bytes]], grace_s: float) -> int:
    first, deadline = 0, None
    while any(process.poll() is None for process in processes):
        codes = [process.poll() for process in processes]
        failed = [code for code in codes if code]
        if failed and deadline is None:
            first, deadline = failed[0], time.monotonic() + grace_s
        if deadline is not None and time.monotonic() > deadline:
            return first
        time.sleep(0.05)
    return first or next((p.returncode for p in processes if p.returncode), 0)


def main(argv: list[str] | None = None) -> int:
    """Returns the exit code of the run."""
    parser = argparse.ArgumentParser(
        prog="python -m experiments.pods.local",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("-n", "--processes", type=int, default=2)
    parser.add_argument("--devices", type=int, default=1, help="simulated devices per process")
    parser.add_argument("arguments", nargs="*", metavar="-- OPTION", help="of experiments.train")
    options = parser.parse_args(argv)
    if options.processes < 1 or options.devices < 1:
        parser.error("-n and --devices must be at least 1.")
    return launch(
        train_command(options.arguments),
        options.processes,
        devices_per_process=options.devices,
    )


if __name__ == "__main__":
    sys.exit(main())
