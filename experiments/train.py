"""Runs one study: `python -m experiments.train --config=experiments/configs/<study>.py
--workdir=runs/<name> [--config.learning_rate=0.1 ...]`.

The same command started again goes on where it stopped, and ends with the same bits. Exit codes:
0 done; 2 the input cannot work, nothing was overwritten; 3 the loss or the parameters are not
finite; 4 no checkpoint can be used or written; 75 stopped by SIGTERM, saved, start it again.
"""

import difflib
import importlib
import pkgutil
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
from absl import flags
from ml_collections import config_flags

import experiments.studies
from shared.errors import NonFiniteLoss, RunError
from shared.launch import Preemption, join_processes, use_compilation_cache
from shared.train import Result, Study, Training

DEFAULT_CONFIG = Path(__file__).parent / "configs" / "saf_digits.py"
DONE, BAD_INPUT, NOT_FINITE, CHECKPOINT, INTERRUPTED = 0, 2, 3, 4, 75


def main(argv: Sequence[str] | None = None) -> int:
    """Returns the exit code; `argv` is without the program's name."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    try:
        options = parse(arguments)
        if options is None:
            return DONE
        return _run(options)
    except Refused as error:
        cause = error.__cause__
        if "--traceback" in arguments and cause is not None:
            traceback.print_exception(cause)
        print(f"error: {error}", file=sys.stderr)
        return error.code


def parse(arguments: Sequence[str]) -> flags.FlagValues | None:
    """The command's options, the config loaded, overridden and locked; None after --help."""
    options = flags.FlagValues()
    command = ["experiments.train", *arguments]
    try:  # the default is loaded, and overridden, as soon as it is defined
        config_flags.DEFINE_config_file(
            "config",
            str(DEFAULT_CONFIG),
            "file with get_config(mode); --config=file.py:smoke passes a mode",
            flag_values=options,
            sys_argv=command,
        )
    except Exception as error:
        raise Refused(_plain(error)) from error
    flags.DEFINE_string("workdir", None, "folder of the run", flag_values=options)
    flags.DEFINE_bool("traceback", False, "where an error came from", flag_values=options)
    flags.DEFINE_bool("quiet", False, "no progress", flag_values=options)
    flags.DEFINE_string(
        "compilation_cache", None, "folder of compiled programs; '' for none", flag_values=options
    )
    flags.DEFINE_bool(
        "distributed", False, "one of several processes, found by JAX", flag_values=options
    )
    flags.DEFINE_string(
        "coordinator", None, "host:port of process 0, without --distributed", flag_values=options
    )
    flags.DEFINE_integer("num_processes", None, "with --coordinator", flag_values=options)
    flags.DEFINE_integer("process_id", None, "with --coordinator", flag_values=options)
    if "--help" in arguments or "-h" in arguments:
        print(f"{__doc__}\n{options.get_help()}")
        return None
    _check_file(arguments)
    try:
        rest = options(command)[1:]
        options.config.study  # noqa: B018  (a config that failed to load says so when it is read)
    except Exception as error:
        raise Refused(_plain(error)) from error
    if rest:
        raise Refused(f"unexpected argument {rest[0]!r}; options start with --.")
    if not options.workdir:
        raise Refused("--workdir is missing: the folder of the run, for example runs/first.")
    return options


def build_study(config: Any) -> Study:
    """What the module of experiments/studies that `config.study` names makes of the config.

    Raises:
      ValueError: there is no such study; the nearest name is suggested.
    """
    known = [module.name for module in pkgutil.iter_modules(experiments.studies.__path__)]
    if config.study not in known:
        near = difflib.get_close_matches(str(config.study), known, 1)
        hint = f"did you mean {near[0]!r}?" if near else f"one of: {', '.join(known)}."
        raise ValueError(f"there is no study {config.study!r}; {hint}")
    return importlib.import_module(f"experiments.studies.{config.study}").build(config)


class Refused(Exception):
    """A command cannot go on: its message, and the exit code."""

    def __init__(self, message: str, code: int = BAD_INPUT):
        super().__init__(message)
        self.code = code


def _run(options: flags.FlagValues) -> int:
    config = options.config
    try:
        place = (options.coordinator, options.num_processes, options.process_id)
        if options.distributed or place != (None, None, None):
            join_processes(*place)
        use_compilation_cache(options.compilation_cache)
        show = not options.quiet and jax.process_index() == 0
        training = Training(build_study(config), config, options.workdir, show=show)
    except RunError as error:
        raise Refused(_plain(error), CHECKPOINT) from error
    except Exception as error:  # whatever is wrong before the first step is wrong with the input
        raise Refused(_plain(error)) from error
    try:
        with training, Preemption() as interrupted:
            result = training.run(interrupted)
    except NonFiniteLoss as error:
        raise Refused(_plain(error), NOT_FINITE) from error
    except RunError as error:
        raise Refused(_plain(error), CHECKPOINT) from error
    if jax.process_index() == 0:
        _tell(result, training.num_steps, options.workdir)
    return DONE if result.finished else INTERRUPTED


def _tell(result: Result, num_steps: int, workdir: str) -> None:
    state = "done" if result.finished else "stopped and saved; start the same command again:"
    numbers = "".join(f"  {name} {value:.4g}" for name, value in result.metrics.items())
    print(f"{state} step {result.step}/{num_steps}{numbers}  {workdir}")


def _check_file(arguments: Sequence[str]) -> None:
    for position, argument in enumerate(arguments):
        if argument in ("--config", "-config"):
            value = arguments[position + 1] if position + 1 < len(arguments) else ""
        elif argument.startswith(("--config=", "-config=")):
            value = argument.split("=", 1)[1]
        else:
            continue
        file = Path(value.split(":", 1)[0])
        if not file.is_file():
            near = difflib.get_close_matches(
                file.name, [path.name for path in DEFAULT_CONFIG.parent.glob("*.py")], 1
            )
            hint = f"; did you mean {DEFAULT_CONFIG.parent / near[0]}?" if near else ""
            raise Refused(f"config file {str(file)!r} does not exist{hint}")


def _plain(error: Exception) -> str:
    """One line: what went wrong, without where."""
    while isinstance(error, (AttributeError, KeyError)) and error.args:
        if isinstance(error, KeyError) and "--config" not in str(error):
            return _unknown_key(str(error.args[0]))
        if not isinstance(error.args[0], Exception):
            break
        error = error.args[0]
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    text = " ".join(lines) if len(lines) <= 3 else f"{lines[0]} ... {lines[-1]}"
    if isinstance(error, (ValueError, RunError, flags.Error)):
        return text
    return f"{type(error).__name__}: {text} (--traceback shows where)"


def _unknown_key(told: str) -> str:
    """What ml_collections says of a key that a config does not have, as a sentence."""
    key, *near = told.splitlines()
    hint = "; " + near[0][0].lower() + near[0][1:] if near else ""
    return f"the config has no key {key}{hint}"


if __name__ == "__main__":
    sys.exit(main())
