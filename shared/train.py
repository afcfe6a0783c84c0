"""The one data-parallel training loop.

`train(study, config, workdir)` runs a study and leaves everything in one folder: `config.json`,
`environment.json`, `metrics.jsonl` (the record, the same to the byte however often the run was
killed), `timings.jsonl` (what depends on the clock) and `checkpoints/`. Started again with the same
arguments it goes on from the last checkpoint and ends with the same bits.

After step s, in this order: line of the record, evaluation, probes, checkpoint. What a checkpoint
covers is in the record before it is written, so nothing is done twice or left out on resume.
"""

import dataclasses
import functools
import json
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any

import jax
import numpy as np

from shared.checkpoint import Checkpoints
from shared.config import Config as Config
from shared.config import default_config as default_config
from shared.data import Prefetch, batch_index, steps_per_epoch
from shared.devices import Devices, make_devices
from shared.environment import describe_environment
from shared.errors import BadBatch as BadBatch
from shared.errors import NonFiniteLoss as NonFiniteLoss
from shared.errors import RunError as RunError
from shared.evaluate import Evaluator
from shared.folder import open_folder, to_json
from shared.metrics import JsonLines, Sink, Tee, TensorBoard, Wandb, truncate
from shared.progress import Progress
from shared.protocol import Array as Array
from shared.protocol import Batch as Batch
from shared.protocol import ExampleMetrics as ExampleMetrics
from shared.protocol import GradientRule as GradientRule
from shared.protocol import LossFn as LossFn
from shared.protocol import Objective as Objective
from shared.protocol import Outputs as Outputs
from shared.protocol import Probe as Probe
from shared.protocol import PyTree as PyTree
from shared.protocol import Study as Study
from shared.protocol import TrainState as TrainState
from shared.protocol import model_inputs as model_inputs
from shared.start import CHOICES, find_start
from shared.step import complaint, make_program, part_major, run_key
from shared.step import compute_in as compute_in

IN_FLIGHT = 2  # steps that were started and not waited for; many can deadlock simulated devices


@dataclasses.dataclass(frozen=True)
class Result:
    """How a run ended."""

    state: TrainState  # in global form
    step: int
    finished: bool  # False: interrupted, and saved
    metrics: dict[str, float]  # the last evaluation, "test/accuracy" and the like


def train(
    study: Study,
    config: Config,
    workdir: str | Path,
    *,
    show: bool = False,
    interrupted: Callable[[int], bool] | None = None,
) -> Result:
    """Runs a study, or goes on with it, to its last step.

    Args:
      study: what is trained on what.
      config: holds every key of `default_config()`, and whatever the study reads.
      workdir: folder of the run; made where it is not there.
      show: draws progress on standard error.
      interrupted: asked after every step, with the number of steps done; True saves and returns.
    Raises:
      ValueError, TypeError: the arguments do not fit each other; nothing was overwritten.
      NonFiniteLoss: the loss or the parameters stopped being finite.
      RunError: devices hold different values of a leaf that should be the same on all.
      CheckpointError: no checkpoint of the folder can be used, or one cannot be written.
    """
    with Training(study, config, workdir, show=show) as training:
        return training.run(interrupted)


class Training:
    """A run that is ready to go: everything is checked, made or restored. See `train`."""

    def __init__(
        self,
        study: Study,
        config: Config,
        workdir: str | Path,
        *,
        show: bool = False,
    ):
        self._study = study
        self._config = config
        self._devices = make_devices(config.parallelism, config.num_devices)
        check_config(config, self._devices)
        order: dict[str, Any] = {
            "num_examples": study.train_data.num_examples,
            "batch_size": config.batch_size,
            "order": config.order,
            "num_shards": config.order_shards,
        }
        self.steps_per_epoch = steps_per_epoch(**order)
        self._index = functools.partial(batch_index, config.seed, **order)
        self.num_steps = config.num_steps or config.num_epochs * self.steps_per_epoch
        self._parts, self._prefetch = config.grad_accumulation, config.prefetch
        self._trace_of = (config.profile_start, config.profile_steps)
        self._key = run_key(config.seed)
        self._program = make_program(study, config, self._devices, self.steps_per_epoch)
        self._evaluators = {
            name: Evaluator(
                study.model,
                source,
                self._devices,
                config.eval_batch_size or config.batch_size,
                study.eval_metrics,
            )
            for name, source in study.eval_data.items()
        }
        self._folder = open_folder(workdir, config)
        self._checkpoints = Checkpoints(self._folder / "checkpoints", keep=config.keep_checkpoints)
        self._pending: list[Any] = []  # metrics of the steps since the last line of the record
        self._ahead: Prefetch | None = None
        self._compiled = False
        self._evaluation: dict[str, float] = {}
        self._state = self._start()
        self._sink = self._open_sink()
        self._progress = Progress(self.step, self.num_steps, show=show)
        self._since = (time.perf_counter(), self.step)

    def run(self, interrupted: Callable[[int], bool] | None = None) -> Result:
        """Trains to the last step, or until `interrupted(steps done)` says so."""
        config = self._config  # read before the steps: a look into a ConfigDict takes a microsecond
        log_every, probe_every = config.log_every, config.probe_every
        save_every = config.checkpoint_every or self.steps_per_epoch
        eval_every = (config.eval_every_epochs * self.steps_per_epoch) or self.num_steps
        saved = self.step
        if self.step and not self._checkpoints.steps():
            self._save()  # the other run that this one begins at may go on
        if self.step == 0 and probe_every:
            self._probe(self._read(0))
        while self.step < self.num_steps:
            local = self._next()
            self._advance(local)
            self._profile()
            last = self.step == self.num_steps
            if self.step % log_every == 0 or last:
                self._log()
            if self.step % eval_every == 0 or last:
                self._evaluate()
            if probe_every and self.step % probe_every == 0:
                self._probe(local)
            stop = not last and interrupted is not None and interrupted(self.step)
            if self.step % save_every == 0 or last or stop:
                self._save()
                saved = self.step
            if stop:
                break
        finished = self.step == self.num_steps
        if finished and not self._evaluation:  # a finished run was started again
            self._evaluation = self._measure()
        assert saved == self.step
        self._checkpoints.wait()
        state = self._devices.to_global(self._state, self._program.split)
        return Result(state, self.step, finished, self._evaluation)

    def __enter__(self) -> "Training":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._ahead is not None:
            self._ahead.close()
        self._progress.close()
        self._sink.close()
        self._checkpoints.close()

    def _start(self) -> TrainState:
        """The newest good checkpoint, another run's, or the state before the first step."""
        program, devices = self._program, self._devices
        start = find_start(
            self._study, self._config, program, devices, self._checkpoints, self._key
        )
        self.step, self._pending = start.step, start.pending
        return devices.from_global(start.state, program.split)

    def _open_sink(self) -> Sink:
        if jax.process_index() != 0:
            return Tee([])
        record = self._folder / "metrics.jsonl"
        truncate(record, self.step if self._checkpoints.steps() else -1)
        sinks: list[Sink] = [JsonLines(record)]
        if self._config.tensorboard:
            sinks.append(TensorBoard(self._folder / "tensorboard", purge_step=self.step + 1))
        if self._config.wandb_project:
            sinks.append(
                Wandb(
                    self._folder / "wandb",
                    project=self._config.wandb_project,
                    name=self._folder.name,
                    config=to_json(self._config),
                )
            )
        return Tee(sinks)

    def _read(self, step: int) -> Any:
        """The rows of step `step` that this process holds, in the order of its devices."""
        index = part_major(self._index(step), self._parts, self._devices.size)
        return self._study.train_data.batch(index[self._devices.local_rows(len(index))])

    def _next(self) -> Any:
        if not self._prefetch:
            return self._read(self.step)
        if self._ahead is None:
            self._ahead = Prefetch(self._read, self.step, self.num_steps, depth=self._prefetch)
        return next(self._ahead)

    def _advance(self, local: Any) -> None:
        state, objective = self._state, self._study.objective
        start_epoch = getattr(objective, "start_epoch", None)
        if callable(start_epoch) and self.step % self.steps_per_epoch == 0:
            turned = start_epoch(state.objective, self.step // self.steps_per_epoch)
            state = dataclasses.replace(state, objective=turned)
        batch = self._devices.batch(local)
        if len(self._pending) >= IN_FLIGHT:
            jax.block_until_ready(self._pending[-IN_FLIGHT])
        if self._program.prepare is not None:
            prepared = self._program.prepare(state.objective, batch)
            batch = batch | {"prepared": prepared}
        self._state, metrics = self._program.step(state, batch, self._key)
        self._pending.append(metrics)
        self.step += 1
        if not self._compiled:  # the clock starts after compilation
            jax.block_until_ready(metrics)
            self._compiled = True
            self._time("compilation", time.perf_counter() - self._since[0])
        self._progress.step()

    def _fetch(self) -> None:
        """Brings pending metrics to the host and refuses a loss that is not finite."""
        first = self.step - len(self._pending)
        self._pending = jax.device_get(self._pending)
        loss = self._program.metric_names.index("loss")
        for offset, row in enumerate(self._pending, start=1):
            if not np.isfinite(row[loss]):
                self._sink.write(first + offset, self._named(row))
                self._check_batch(first + offset)
                self._refuse(NonFiniteLoss, f"the loss is {row[loss]} at step {first + offset}")

    def _check_batch(self, step: int) -> None:
        """Lets the objective name what is wrong with the batch whose loss is not finite."""
        check = getattr(self._study.objective, "check_batch", None)
        if not callable(check):
            return
        try:
            check(self._read(step - 1), self._study.train_data.num_examples)
        except ValueError as error:
            self._refuse(BadBatch, f"{error} The loss is not finite at step {step}")

    def _refuse(self, kind: type[RunError], what: str) -> None:
        self._sink.flush()
        self._checkpoints.wait()
        kept = self._checkpoints.steps()
        good = (
            f"the last good checkpoint is {self._folder / 'checkpoints' / str(kept[-1])}"
            if kept
            else "no checkpoint was saved before it"
        )
        hint = " Lower learning_rate, or set clip_norm." if kind is NonFiniteLoss else ""
        raise kind(f"{what} of {self.num_steps}; {good}.{hint}")

    def _named(self, row: Any) -> dict[str, float]:
        return {name: float(value) for name, value in zip(self._program.metric_names, row)}

    def _log(self) -> None:
        self._fetch()
        means = self._named(np.mean(np.asarray(self._pending, np.float64), axis=0))
        self._pending = []
        self._sink.write(self.step, means)
        self._sink.flush()
        now = time.perf_counter()
        start, first = self._since
        rate = (self.step - first) / (now - start) if self.step > first else 0.0
        self._progress.report(self.step, means, rate)
        self._time("train", now - start, steps_per_s=rate)

    def _measure(self) -> dict[str, float]:
        state = self._state
        return {
            f"{name}/{metric}": value
            for name, evaluator in self._evaluators.items()
            for metric, value in evaluator(state.params, state.model_state, self._key).items()
        }

    def _evaluate(self) -> None:
        if not self._evaluators:
            return
        start = time.perf_counter()
        self._evaluation = self._measure()
        self._sink.write(self.step, self._evaluation)
        self._progress.evaluated(self.step, self._evaluation)
        self._time("evaluation", time.perf_counter() - start)

    def _probe(self, local: Any) -> None:
        start = time.perf_counter()
        state = self._devices.to_global(self._state, self._program.split)
        batch = self._devices.global_batch(local)
        values = {
            f"{name}/{metric}": np.asarray(jax.device_get(value))
            for name, probe in self._program.probes.items()
            for metric, value in probe(state, batch, self._key).items()
        }
        if values:
            self._sink.write(self.step, values)
            self._time("probes", time.perf_counter() - start)

    def _save(self) -> None:
        start = time.perf_counter()
        self._fetch()
        if found := complaint(self._program, self._state):
            kind, what = found
            self._refuse(kind, f"{what}; seen after step {self.step}")
        self._sink.flush()
        self._checkpoints.save(
            self.step,
            self._devices.to_global(self._state, self._program.split),
            {
                "config": to_json(self._config),
                "environment": describe_environment(),
                "pending": [[float(value) for value in row] for row in self._pending],
            },
        )
        self._time("checkpoint", time.perf_counter() - start)

    def _time(self, kind: str, seconds: float, **more: float) -> None:
        """Notes what the clock says, apart from the record; then the steps' clock starts anew."""
        if jax.process_index() == 0:
            row = {"step": self.step, "kind": kind, "wall_time_s": seconds, **more}
            with (self._folder / "timings.jsonl").open("a") as file:
                file.write(json.dumps(row) + "\n")
        self._since = (time.perf_counter(), self.step)

    def _profile(self) -> None:
        start, steps = self._trace_of
        if steps and self.step == start + 1:
            jax.profiler.start_trace(str(self._folder / "profile"))
        elif steps and self.step == start + 1 + steps:
            jax.block_until_ready(self._pending)
            jax.profiler.stop_trace()


def check_config(config: Config, devices: Devices) -> None:
    """Refuses values of the loop's keys that cannot work, before anything is made.

    Raises:
      ValueError: naming the key, its value and what is allowed.
    """
    missing = sorted(set(default_config().keys()) - set(config.keys()))
    if missing:
        raise ValueError(f"config lacks {missing}; start from shared.train.default_config().")
    for name in ("num_epochs", "batch_size", "grad_accumulation", "log_every"):
        if config[name] < 1:
            raise ValueError(f"{name} must be at least 1, got {config[name]!r}.")
    for name in ("num_steps", "eval_batch_size", "eval_every_epochs", "probe_every"):
        if config[name] < 0:
            raise ValueError(f"{name} must be at least 0, got {config[name]!r}.")
    for name in ("checkpoint_every", "prefetch", "profile_start", "profile_steps"):
        if config[name] < 0:
            raise ValueError(f"{name} must be at least 0, got {config[name]!r}.")
    if config.missing_objective not in CHOICES:
        raise ValueError(
            f'missing_objective must be "refuse" or "mask", got {config.missing_objective!r}.'
        )
    if config.keep_checkpoints < 2:
        raise ValueError(f"keep_checkpoints must be at least 2, got {config.keep_checkpoints!r}.")
    if not 0 <= config.clip_norm < float("inf"):
        raise ValueError(f"clip_norm must be finite and at least 0, got {config.clip_norm!r}.")
    share = devices.size * config.grad_accumulation
    if config.batch_size % share:
        raise ValueError(
            f"batch_size = {config.batch_size} does not divide over {devices.size} devices and "
            f"grad_accumulation = {config.grad_accumulation}; use a multiple of {share}."
        )
    if config.order == "owner_local" and config.order_shards % devices.size:
        raise ValueError(
            f"order_shards = {config.order_shards} must be a multiple of the {devices.size} "
            'devices where order = "owner_local".'
        )
