"""The state that a run begins with: of its own checkpoint, of another run's, or a new one."""

import dataclasses
import functools
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from shared.checkpoint import Checkpoints, Restored
from shared.config import Config
from shared.devices import Devices
from shared.errors import CheckpointError
from shared.folder import check_same, to_json, warn_of_other_versions
from shared.protocol import Study, TrainState
from shared.step import Program

CHOICES = ("refuse", "mask")


class Start(NamedTuple):
    """Where a run begins."""

    step: int
    state: TrainState  # in global form
    pending: list[Any]  # metrics of the steps since the last line of the record


def find_start(
    study: Study,
    config: Config,
    program: Program,
    devices: Devices,
    checkpoints: Checkpoints,
    key: np.ndarray,
) -> Start:
    """The newest good checkpoint of the run, or of `config.start_from`, or step 0.

    A checkpoint that lacks the objective's state, or holds that of another objective, is refused
    unless `config.missing_objective` is "mask": the objective then starts anew at the parameters
    of the checkpoint (the rows of SAF's table count as never written; MESA's teacher is the
    network).

    Raises:
      ValueError: the checkpoint is of another config, or `start_from` holds none.
      CheckpointError: there are checkpoints, and none can be used.
    """
    found = _restore(checkpoints, config, program, devices)
    if found is not None:
        check_same(found.record["config"], to_json(config), str(checkpoints.folder.parent))
        pending = [np.array(row) for row in found.record["pending"]]
    elif config.start_from:
        found, pending = _of_another_run(config, program, devices), []
    else:
        return Start(0, program.init(key), [])
    warn_of_other_versions(found.record["environment"])
    state = found.state
    if found.lacking:
        state = _with_new_objective(study, program, devices, state)
    return Start(found.step, state, pending)


def _restore(
    checkpoints: Checkpoints, config: Config, program: Program, devices: Devices
) -> Restored | None:
    may_lack = "objective" if config.missing_objective == "mask" else ""
    try:
        return checkpoints.restore(
            program.shapes, devices.shardings(program.split), may_lack=may_lack
        )
    except CheckpointError as error:
        if may_lack or ".objective" not in str(error):
            raise
        raise CheckpointError(
            f"{error} To go on without the objective's state that is missing there, set "
            'missing_objective = "mask": it starts empty, masked out of the loss until it is '
            "filled."
        ) from error


def _of_another_run(config: Config, program: Program, devices: Devices) -> Restored:
    folder = Path(config.start_from) / "checkpoints"
    if not folder.is_dir():
        raise ValueError(f"start_from = {config.start_from!r} has no folder of checkpoints.")
    checkpoints = Checkpoints(folder)
    try:
        found = _restore(checkpoints, config, program, devices)
    finally:
        checkpoints.close()
    if found is None:
        raise ValueError(f"start_from = {config.start_from!r} holds no checkpoint.")
    return found


def _with_new_objective(
    study: Study, program: Program, devices: Devices, state: TrainState
) -> TrainState:
    num_examples = study.train_data.num_examples

    @functools.partial(jax.jit, out_shardings=devices.shardings(program.split).objective)
    def make(params: Any, model_state: Any) -> Any:
        return study.objective.init(params, num_examples, model_state=model_state)

    return dataclasses.replace(state, objective=make(state.params, state.model_state))
