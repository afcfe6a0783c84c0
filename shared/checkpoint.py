"""Checkpoints that are written beside the training, and are never silently wrong.

Orbax writes them, asynchronously and atomically; this module is the only one that knows it. Orbax
keeps no checksum of the data (one flipped byte restores wrong values without an error), so two are
kept here: a SHA-256 of every file, looked at before Orbax reads any, and a SHA-256 of every leaf,
compared with what it has read. A checkpoint that cannot be read back exactly is moved to
`damaged/`, with a warning that names the file, and the one before it is used.
"""

import contextlib
import dataclasses
import hashlib
import json
import logging
import math
import shutil
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
import orbax.checkpoint as ocp
from jax.experimental import multihost_utils

from shared.errors import CheckpointError
from shared.seal import find_damage, seal

PyTree = Any

BLOCKS = 64  # a split leaf is hashed in this many parts, so that each process hashes its own


class Restored(NamedTuple):
    """What `Checkpoints.restore` found."""

    step: int
    state: PyTree
    record: dict[str, Any]  # what was given to `save` beside the state
    lacking: bool = False  # the field that may be lacking is, and is () in `state`


class Checkpoints:
    """The checkpoints of one run.

    Args:
      folder: made where it is not there.
      keep: newest checkpoints that stay, at least 2, since the newest may turn out damaged.
    Raises:
      ValueError: `keep` is below 2.
      CheckpointError: the folder cannot be made or written to.
    """

    def __init__(self, folder: str | Path, *, keep: int = 2):
        if keep < 2:
            raise ValueError(f"keep_checkpoints must be at least 2, got {keep!r}.")
        self.folder = Path(folder).absolute()
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            if jax.process_index() == 0:
                for left_by_a_kill in self.folder.glob("*.orbax-checkpoint-tmp*"):
                    shutil.rmtree(left_by_a_kill)
            self._manager = ocp.CheckpointManager(
                self.folder,
                options=ocp.CheckpointManagerOptions(
                    max_to_keep=keep,
                    create=False,
                    async_options=ocp.AsyncOptions(post_finalization_callback=self._seal),
                ),
                item_names=("state", "record"),
            )
        except OSError as error:
            raise CheckpointError(f"cannot use {self.folder} for checkpoints: {error}") from error
        self._last = max(self._manager.all_steps(), default=-1)

    def steps(self) -> list[int]:
        """Steps that a checkpoint was saved at, in order; the newest may still be on its way."""
        return sorted(self._manager.all_steps())

    def save(self, step: int, state: PyTree, record: Mapping[str, Any]) -> None:
        """Starts to write a checkpoint, after the one before is complete.

        Args:
          step: above that of every other checkpoint.
          state: pytree of arrays in global form; may be donated as soon as this returns.
          record: JSON-able, stored beside the state.
        Raises:
          CheckpointError: this one or the one before could not be written.
        """
        if step <= self._last:  # Orbax would return without a word and without a checkpoint
            raise CheckpointError(f"checkpoint {step} would not be newer than {self._last}.")
        self.wait()
        before, self._last = self._last, step
        leaves = _named(state)
        sealed = _with_hash({"leaves": describe(state), "record": dict(record)})
        try:
            saved = self._manager.save(
                step,
                args=ocp.args.Composite(
                    state=ocp.args.StandardSave(_filled(leaves)), record=ocp.args.JsonSave(sealed)
                ),
            )
        except Exception as error:
            self._last = before
            raise CheckpointError(f"could not save step {step}: {_line(error)}") from error
        if not saved:
            self._last = before
            raise CheckpointError(f"checkpoint {step} was declined by the checkpoint manager.")

    def wait(self) -> None:
        """Returns when every checkpoint is complete.

        Raises:
          CheckpointError: one could not be written.
        """
        try:
            self._manager.wait_until_finished()
        except Exception as error:
            raise CheckpointError(f"could not save a checkpoint: {_line(error)}") from error

    def close(self) -> None:
        """Waits, and lets go of threads and files."""
        try:
            self.wait()
        finally:
            self._manager.close()

    def restore(self, shapes: PyTree, shardings: PyTree, *, may_lack: str = "") -> Restored | None:
        """The newest checkpoint that reads back exactly.

        Args:
          shapes: pytree of ShapeDtypeStruct like the state.
          shardings: where each leaf goes; any layout, not just that of the run that saved it.
          may_lack: a field of the state (a dataclass) that the checkpoint need not hold, or may
            hold in another form; it is () in the result then, to be made anew.
        Returns:
          None where no checkpoint was ever saved.
        Raises:
          CheckpointError: there are checkpoints, and none can be used.
        """
        damaged: list[tuple[int, str]] = []
        for step in reversed(self.steps()):
            try:
                with _quiet():
                    found, reason = self._read(step, shapes, shardings, may_lack), ""
            except Exception as error:  # Orbax raises five kinds for damaged files, bare ones too
                found, reason = None, _line(error)
            if _on_every_process(found is not None):
                for bad, why in damaged:
                    self._set_aside(bad, why, step)
                self._last = step
                return found
            damaged.append((step, reason or "another process could not read it"))
        if damaged:
            told = "; ".join(f"{self.folder / str(step)}: {reason}" for step, reason in damaged)
            raise CheckpointError(
                f"no checkpoint can be used ({told}). Start anew in another folder, or remove "
                "the checkpoints to start from step 0."
            )
        return None

    def _read(self, step: int, shapes: PyTree, shardings: PyTree, may_lack: str) -> Restored:
        folder = self.folder / str(step)
        if damage := find_damage(folder):
            raise CheckpointError(damage)
        record = self._manager.restore(
            step, args=ocp.args.Composite(record=ocp.args.JsonRestore())
        )["record"]
        content = _without_hash(record, folder)
        saved = content["leaves"]
        lacking = bool(may_lack) and _field(saved, may_lack) != _field(_kinds(shapes), may_lack)
        unused: dict[str, Any] = {}
        if lacking:
            unused = _abstract(saved, _field(saved, may_lack), shardings)
            shapes, shardings = (
                dataclasses.replace(tree, **{may_lack: ()}) for tree in (shapes, shardings)
            )
        abstract = jax.tree.map(
            lambda x, sharding: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding),
            shapes,
            shardings,
        )
        wanted = _named(abstract)
        if lacking:  # what follows the field is numbered otherwise there
            numbered = {_plain(name): name for name in saved}
            wanted = {numbered.get(_plain(name), name): leaf for name, leaf in wanted.items()}
        _check_shapes(saved, wanted | unused, folder)
        leaves = self._manager.restore(
            step,
            args=ocp.args.Composite(state=ocp.args.StandardRestore(_filled(wanted | unused))),
        )["state"]
        leaves = [leaves[name] if name in leaves else _empty(wanted[name]) for name in wanted]
        state = jax.tree.unflatten(jax.tree.structure(shapes), leaves)
        for name, entry in zip(wanted, describe(state).values()):
            if entry != saved[name]:
                raise CheckpointError(
                    f"the values of {name} are not those that were saved (SHA-256 differs)"
                )
        return Restored(step, state, content["record"], lacking)

    def _seal(self) -> None:
        """Runs in Orbax's thread, after the last file and before the move to the final name."""
        if jax.process_index() == 0:
            (partial,) = self.folder.glob(f"{self._last}.orbax-checkpoint-tmp*")
            seal(partial, leave_out=("_CHECKPOINT_METADATA", "commit_success.txt"))

    def _set_aside(self, step: int, reason: str, used: int) -> None:
        target = self.folder.parent / "damaged" / str(step)
        warnings.warn(
            f"checkpoint {self.folder / str(step)} is damaged: {reason}. Step {used} is used "
            f"instead; the damaged one is moved to {target}.",
            stacklevel=3,
        )
        if jax.process_index() == 0:
            target.parent.mkdir(exist_ok=True)
            shutil.rmtree(target, ignore_errors=True)
            (self.folder / str(step)).rename(target)
        if jax.process_count() > 1:
            multihost_utils.sync_global_devices(f"damaged checkpoint {step}")
        self._manager.reload()


def describe(state: PyTree) -> dict[str, dict[str, Any]]:
    """Name -> dtype, shape and SHA-256 of every leaf; the same for any layout over devices."""
    return {
        name: {"dtype": str(leaf.dtype), "shape": list(leaf.shape), "sha256": _digest(leaf)}
        for name, leaf in _named(state).items()
    }


def digest(state: PyTree) -> str:
    """One SHA-256 of a whole state: names, dtypes, shapes and values."""
    return hashlib.sha256(json.dumps(describe(state)).encode()).hexdigest()


def _digest(leaf: jax.Array) -> str:
    if leaf.size == 0:  # nothing to hash, and JAX cannot always gather a split leaf of size zero
        return hashlib.sha256().hexdigest()
    rows = leaf.shape[0] if leaf.ndim else 0
    blocks = math.gcd(rows, BLOCKS) if rows else 1
    if not isinstance(leaf, jax.Array) or leaf.is_fully_addressable or leaf.is_fully_replicated:
        whole = np.asarray(leaf if not isinstance(leaf, jax.Array) else _whole(leaf))
        hashes = _block_hashes(whole, blocks)
    else:
        shards = sorted(leaf.addressable_shards, key=lambda shard: shard.index[0].start or 0)
        local = np.concatenate([np.asarray(shard.data) for shard in shards])
        share = blocks * len(local) // rows
        if share * rows != blocks * len(local):
            raise ValueError(
                f"a table of {rows} rows over several processes needs a number of devices that "
                f"divides {BLOCKS}."
            )
        own = np.frombuffer(b"".join(_block_hashes(local, share)), np.uint8).reshape(share, -1)
        gathered = multihost_utils.process_allgather(own, tiled=True)
        hashes = [row.tobytes() for row in np.asarray(gathered)]
    return hashlib.sha256(b"".join(hashes)).hexdigest()


def _whole(leaf: jax.Array) -> np.ndarray:
    if leaf.is_fully_addressable:
        return np.asarray(leaf)
    return np.asarray(leaf.addressable_data(0))


def _block_hashes(array: np.ndarray, blocks: int) -> list[bytes]:
    flat = np.ascontiguousarray(array).reshape(-1).view(np.uint8)
    return [hashlib.sha256(part).digest() for part in flat.reshape(blocks, -1)]


def _named(tree: PyTree) -> dict[str, Any]:
    leaves, _ = jax.tree.flatten_with_path(tree)
    # Numbered, so that the order survives whatever sorting a file format does.
    return {
        f"{number:04d}.{jax.tree_util.keystr(path, simple=True, separator='.')}": leaf
        for number, (path, leaf) in enumerate(leaves)
    }


def _filled(leaves: Mapping[str, Any]) -> dict[str, Any]:
    """Without arrays of size zero, which Orbax refuses to save."""
    return {name: leaf for name, leaf in leaves.items() if math.prod(leaf.shape)}


def _empty(leaf: jax.ShapeDtypeStruct) -> jax.Array:
    whole = np.zeros(leaf.shape, leaf.dtype)
    return jax.make_array_from_callback(leaf.shape, leaf.sharding, lambda index: whole[index])


def _with_hash(content: dict[str, Any]) -> dict[str, str]:
    text = json.dumps(content)
    return {"text": text, "sha256": hashlib.sha256(text.encode()).hexdigest()}


def _without_hash(sealed: Any, folder: Path) -> dict[str, Any]:
    text = sealed["text"]
    if hashlib.sha256(text.encode()).hexdigest() != sealed["sha256"]:
        raise CheckpointError(f"the record in {folder} was changed (SHA-256 differs)")
    return json.loads(text)


def _plain(name: str) -> str:
    """The name of a leaf without its number."""
    return name.split(".", 1)[1]


def _field(leaves: Mapping[str, Any], field: str) -> dict[str, tuple[str, list[int]]]:
    """The leaves under a field of the state, by name without number: dtype and shape."""
    return {
        _plain(name): (entry["dtype"], entry["shape"])
        for name, entry in leaves.items()
        if _plain(name).split(".")[0] == field
    }


def _kinds(shapes: PyTree) -> dict[str, dict[str, Any]]:
    return {
        name: {"dtype": str(leaf.dtype), "shape": list(leaf.shape)}
        for name, leaf in _named(shapes).items()
    }


def _abstract(
    saved: Mapping[str, Any], chosen: Mapping[str, Any], shardings: PyTree
) -> dict[str, jax.ShapeDtypeStruct]:
    """Saved leaves that are read only because Orbax reads all, whole on every device."""
    whole = next(s for s in jax.tree.leaves(shardings) if s.is_fully_replicated)
    return {
        name: jax.ShapeDtypeStruct(tuple(entry["shape"]), entry["dtype"], sharding=whole)
        for name, entry in saved.items()
        if _plain(name) in chosen
    }


def _check_shapes(saved: Mapping[str, Any], named: Mapping[str, Any], folder: Path) -> None:
    wanted = {name: (str(leaf.dtype), list(leaf.shape)) for name, leaf in named.items()}
    held = {name: (entry["dtype"], entry["shape"]) for name, entry in saved.items()}
    for name in [*wanted, *held]:
        if wanted.get(name) != held.get(name):
            raise CheckpointError(
                f"{name} is {held.get(name, 'absent')} in {folder} and "
                f"{wanted.get(name, 'absent')} in this run; was the code changed?"
            )


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keeps tracebacks of Orbax's own tasks off the screen: what matters is raised as an error."""
    loggers = [logging.getLogger(name) for name in ("absl", "asyncio")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.CRITICAL + 1)
    try:
        yield
    finally:
        for logger, level in zip(loggers, levels):
            logger.setLevel(level)


def _on_every_process(good: bool) -> bool:
    if jax.process_count() == 1:
        return good
    return bool(np.all(multihost_utils.process_allgather(np.asarray(good))))


def _line(error: BaseException) -> str:
    """The kind and the first line of an error, short enough for a warning."""
    text = str(error).strip().splitlines()
    if isinstance(error, CheckpointError):
        return text[0]
    return f"{type(error).__name__}: {text[0][:300]}" if text else type(error).__name__
