"""Kernels as matrices and outputs as columns, whatever their axes."""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

Array = jax.Array


@dataclasses.dataclass(frozen=True)
class Frame:
    """How the outputs on the training set are laid out.

    The kernel acts on the axes that are not traced, and as the identity on those that are.
    """

    shape: tuple[int, ...]  # of the targets
    traced: tuple[int, ...]  # their axes that the kernel lacks

    @property
    def kept(self) -> tuple[int, ...]:
        """Axes that the kernel has, twice."""
        return tuple(k for k in range(len(self.shape)) if k not in self.traced)

    @property
    def rows(self) -> int:
        """Rows of the kernel as a matrix."""
        return math.prod(self.shape[k] for k in self.kept)

    @property
    def size(self) -> int:
        """Number of targets."""
        return math.prod(self.shape)

    def matrix(self, kernel: Array) -> Array:
        """A kernel with zipped axes as a matrix [rows, columns]."""
        ndim = kernel.ndim // 2
        order = [2 * k for k in range(ndim)] + [2 * k + 1 for k in range(ndim)]
        rows = math.prod(kernel.shape[0::2])
        return jnp.transpose(kernel, order).reshape((rows, -1))

    def zipped(self, matrix: Array, rows: Sequence[int], columns: Sequence[int]) -> Array:
        """A matrix [..., rows, columns] as a kernel with zipped axes (undoes `matrix`)."""
        lead = matrix.ndim - 2
        split = matrix.reshape((*matrix.shape[:lead], *rows, *columns))
        order = [lead + k + side * len(rows) for k in range(len(rows)) for side in (0, 1)]
        return jnp.transpose(split, (*range(lead), *order))

    def columns(self, outputs: Array) -> Array:
        """Outputs (targets, predictions) as [rows, columns]; traced axes become columns."""
        moved = jnp.transpose(outputs, (*self.kept, *self.traced))
        return moved.reshape((math.prod(moved.shape[: len(self.kept)]), -1))

    def outputs(self, columns: Array, rows: Sequence[int]) -> Array:
        """Columns [..., rows, columns] as outputs with the axes in their places."""
        lead = columns.ndim - 2
        tail = tuple(self.shape[k] for k in self.traced)
        split = columns.reshape((*columns.shape[:lead], *rows, *tail))
        places = np.argsort((*self.kept, *self.traced))
        return jnp.transpose(split, (*range(lead), *(lead + int(k) for k in places)))

    def shape_for(self, rows: Sequence[int]) -> tuple[int, ...]:
        """Shape of the outputs at other inputs, from the kernel's rows there."""
        shape = list(self.shape)
        for axis, size in zip(self.kept, rows):
            shape[axis] = size
        return tuple(shape)


def make_frame(caller: str, targets: Any, trace_axes: int | Sequence[int]) -> Frame:
    """The frame of targets of a given shape.

    Raises:
      ValueError: an axis does not exist or is named twice.
    """
    shape = tuple(np.shape(targets))
    axes = (trace_axes,) if isinstance(trace_axes, int | np.integer) else tuple(trace_axes)
    for axis in axes:
        if not -len(shape) <= axis < len(shape):
            raise ValueError(
                f"{caller}: trace_axes={trace_axes!r} names axis {axis}, but y_train has shape "
                f"{shape}. Pass trace_axes=() for a kernel with all axes of the outputs."
            )
    traced = tuple(sorted(int(axis) % len(shape) for axis in axes))
    if len(set(traced)) < len(traced):
        raise ValueError(f"{caller}: trace_axes={trace_axes!r} names one axis twice.")
    return Frame(shape, traced)


def check_kernel(caller: str, name: str, kernel: Any, frame: Frame, *, square: bool) -> None:
    """Refuses a kernel that does not fit the targets.

    Raises:
      ValueError: with the shape that is expected.
    """
    shape = tuple(np.shape(kernel))
    expected = [frame.shape[k] for k in frame.kept]
    columns = list(shape[1::2])
    rows = list(shape[0::2])
    if len(shape) != 2 * len(expected) or columns != expected or (square and rows != expected):
        wanted = [size for s in expected for size in ((s, s) if square else ("any", s))]
        raise ValueError(
            f"{caller}: {name} has shape {shape}, but y_train has shape {frame.shape} and its axes "
            f"{frame.traced} are traced, so the kernel must have shape "
            f"({', '.join(map(str, wanted))}). Check trace_axes."
        )


@jax.jit
def _is_finite(array: Array) -> Array:
    # 0 times NaN or infinity is NaN, and a sum takes half the time of all(isfinite) on a CPU. The
    # largest entry would not show NaN: XLA's maximum passes over it from 4,096 entries on.
    return jnp.sum(array * 0) == 0


def check_finite(caller: str, **arrays: Any) -> None:
    """Refuses NaN and infinity in arrays (numbers, None), by name; tracers pass.

    Raises:
      ValueError: with the number of such entries, and where the first one is.
    """
    for name, array in arrays.items():
        if array is None or isinstance(array, Tracer):
            continue
        with jax.ensure_compile_time_eval():  # known numbers, also in a function that is traced
            finite = bool(_is_finite(array))
        if finite:
            continue
        bad = np.argwhere(~np.isfinite(np.asarray(array)))
        raise ValueError(
            f"{caller}: {name} must be finite, but {len(bad)} of its {np.size(array)} entries are "
            f"NaN or infinite, the first at index {tuple(int(k) for k in bad[0])}. "
            "Look at the inputs that it was made of."
        )


def is_traced(tree: Any) -> bool:
    """Whether anything in a tree is a tracer, which must not be kept beyond its trace."""
    return any(isinstance(leaf, Tracer) for leaf in jax.tree.leaves(tree))


def check_starts(caller: str, fx_train_0: Any, fx_test_0: Any) -> None:
    """Refuses to predict nothing.

    Raises:
      ValueError: both are None.
    """
    if fx_train_0 is None and fx_test_0 is None:
        raise ValueError(
            f"{caller}: fx_train_0 and fx_test_0 are both None, so nothing is asked for; pass the "
            "outputs at t = 0 (or a number, such as 0.0) of the inputs to predict."
        )


def check_times(caller: str, t: Any) -> None:
    """Refuses times that are NaN (where they are known); infinity is the end of training.

    Raises:
      ValueError: with the times.
    """
    if t is not None and not isinstance(t, Tracer) and np.any(np.isnan(np.asarray(t))):
        raise ValueError(f"{caller}: t must not be NaN, got {np.asarray(t).tolist()}.")
