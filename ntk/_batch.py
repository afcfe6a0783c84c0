"""`batch`: a kernel function applied block by block."""

import dataclasses
from collections.abc import Callable, Hashable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from ntk._batch_axes import (
    LeafAxes,
    blocks_of,
    count_rows,
    find_axes,
    mirrored,
    named_leaves,
    resize,
    take,
    take_host,
)
from ntk._batch_store import FolderStore, MemoryStore, fingerprint

Array = jax.Array
PyTree = Any
NAME = "batch"


def batch(
    kernel_fn: Callable[..., PyTree],
    batch_size: int = 0,
    device_count: int = -1,
    store_on_device: bool = True,
    *,
    symmetric: bool | None = None,
    out: str | Path | None = None,
    progress: bool = False,
) -> Callable[..., PyTree]:
    """Computes a kernel in square blocks.

    Args:
      kernel_fn: `kernel_fn(x1, x2, *args, **kwargs)`, examples in front of every array
        of x1 and x2; `x2` may be None. Any pytree as result; which axes run over rows and
        columns is found by
        comparing shapes. It is jitted inside.
      batch_size: examples of a block for every device, any number; 0 for one block. Blocks at the
        edge are filled up with repeated examples, whose results are dropped.
      device_count: devices that share the rows of a block; -1 for all, 0 for the default one alone.
      store_on_device: keep the result on the device. False gathers it in host memory, as NumPy.
      symmetric: use that kernel_fn(x, x) is symmetric when `x2` is None: blocks below the diagonal
        mirror those above. None: yes where a kernel has rows and columns and no further axes; say
        True only where the function is symmetric with its further axes left in place.
      out: a folder for the result, one memory-mapped NumPy file per leaf. The same call, after a
        kill, goes on where it stopped.
      progress: show a bar over the blocks (tqdm).
    Returns:
      A function with the signature of `kernel_fn`. Keyword arguments that are pairs of arrays with
      as many examples as x1 and x2 are cut like them. Results that stay on the device come from one
      compiled loop, which may itself be jitted; others from a Python loop.
    Raises:
      ValueError: an option is out of range, or `out` holds another result.

    >>> import jax.numpy as jnp
    >>> dot = batch(lambda x1, x2: x1 @ (x1 if x2 is None else x2).T, batch_size=2, device_count=0)
    >>> dot(jnp.arange(3.0)[:, None], None)
    Array([[0., 0., 0.],
           [0., 1., 2.],
           [0., 2., 4.]], dtype=float32)
    """
    if batch_size < 0:
        raise ValueError(f"{NAME}: batch_size must be >= 0, got {batch_size}.")
    if not -1 <= device_count <= jax.device_count():
        raise ValueError(
            f"{NAME}: device_count must be between -1 and {jax.device_count()}, the number of "
            f"devices here, got {device_count}."
        )
    devices = jax.device_count() if device_count == -1 else max(device_count, 1)
    plans: dict[Hashable, _Work] = {}
    programs: dict[Hashable, Callable[..., Any]] = {}

    def batched(x1: PyTree, x2: PyTree | None = None, *args: Any, **kwargs: Any) -> PyTree:
        """The kernel between `x1` and `x2`, in blocks."""
        work = _Work.make(kernel_fn, x1, x2, args, kwargs, batch_size, devices)
        if work.key not in plans:
            plans[work.key] = work.planned(symmetric)
        plan = plans[work.key]
        inputs = (work.x1, work.x2, work.pairs, work.dynamic)
        traced = any(isinstance(leaf, Tracer) for leaf in jax.tree.leaves(inputs))
        on_device = store_on_device and out is None and not progress
        if traced:
            return jax.tree.unflatten(plan.tree, plan.loop(*inputs))
        key = (on_device, work.key)
        if key not in programs:
            programs[key] = jax.jit(plan.loop if on_device else plan.block)
        if on_device:
            return jax.tree.unflatten(plan.tree, programs[key](*plan.placed(inputs)))
        mark = fingerprint(inputs, work.static, plan.size) if out is not None else ""
        store = _python_loop(plan, inputs, programs[key], out, mark, progress)
        found = [store.arrays[leaf.path] for leaf in plan.leaves]
        if store_on_device and out is None:
            found = [jnp.asarray(array) for array in found]
        return jax.tree.unflatten(plan.tree, found)

    return batched


@dataclasses.dataclass
class _Work:
    """One call: what is computed, cut into which blocks."""

    kernel_fn: Callable[..., PyTree]
    x1: PyTree
    x2: PyTree | None
    pairs: dict[str, tuple[PyTree, PyTree]]  # keyword arguments cut like the inputs
    dynamic: list[Any]  # arrays among all other arguments
    static: tuple[Any, ...]  # the rest of them
    where: list[bool]  # which leaves of the arguments are arrays
    arguments: Any  # their tree
    leaves: list[LeafAxes]
    tree: Any
    count1: int
    count2: int
    size: int  # examples in a block
    devices: int
    fold: bool

    @classmethod
    def make(cls, kernel_fn, x1, x2, args, kwargs, batch_size, devices) -> "_Work":
        """The call as it came; `planned` adds what must be traced to be known."""
        count1 = count_rows(NAME, "x1", x1)
        count2 = count1 if x2 is None else count_rows(NAME, "x2", x2)
        pairs = {k: v for k, v in kwargs.items() if _is_cut(v, count1, count2)}
        rest = {k: v for k, v in kwargs.items() if k not in pairs}
        flat, arguments = jax.tree.flatten((args, rest))
        where = [isinstance(leaf, jax.Array | np.ndarray) for leaf in flat]
        size = batch_size or -(-max(count1, count2) // devices)
        return cls(
            kernel_fn=kernel_fn,
            x1=x1,
            x2=x2,
            pairs=pairs,
            dynamic=[leaf for leaf, array in zip(flat, where) if array],
            static=tuple(leaf for leaf, array in zip(flat, where) if not array),
            where=where,
            arguments=arguments,
            leaves=[],
            tree=None,
            count1=count1,
            count2=count2,
            size=min(size * devices, -(-max(count1, count2) // devices) * devices),
            devices=devices,
            fold=False,
        )

    def planned(self, symmetric: bool | None) -> "_Work":
        """With the axes of the result, and with shapes in place of arrays."""
        second = None if self.x2 is None else self.count2
        leaves, tree = find_axes(self.shapes, self.count1, second)
        plain = all(leaf.row is None or len(leaf.shape) <= 2 for leaf in leaves)
        light = jax.tree.map(
            lambda a: jax.ShapeDtypeStruct(np.shape(a), a.dtype),
            (self.x1, self.x2, self.pairs, self.dynamic),
        )
        return dataclasses.replace(
            self,
            x1=light[0],
            x2=light[1],
            pairs=light[2],
            dynamic=light[3],
            leaves=leaves,
            tree=tree,
            fold=self.x2 is None and (plain if symmetric is None else symmetric),
        )

    @property
    def key(self) -> tuple[Any, ...]:
        """What a compiled program depends on, beside shapes."""
        static = tuple(v if isinstance(v, Hashable) else id(v) for v in self.static)
        shapes = jax.tree.map(lambda a: (np.shape(a), str(a.dtype)), (self.x1, self.x2, self.pairs))
        return (
            static,
            self.arguments,
            tuple(self.where),
            str(shapes),
            self.size,
            str(jnp.result_type(float)),  # whether float64 is on
        )

    def call(self, rows, columns, pairs, dynamic) -> PyTree:
        """`kernel_fn` on one block."""
        arrays, others = iter(dynamic), iter(self.static)
        flat = [next(arrays) if array else next(others) for array in self.where]
        args, rest = jax.tree.unflatten(self.arguments, flat)
        return self.kernel_fn(rows, columns, *args, **pairs, **rest)

    def shapes(self, n1: int, n2: int | None) -> PyTree:
        """Shapes of the result for n1 rows and n2 columns."""
        columns = None if n2 is None else resize(self.x1 if self.x2 is None else self.x2, n2)
        pairs = {k: (resize(a, n1), resize(b, n2 or n1)) for k, (a, b) in self.pairs.items()}
        return jax.eval_shape(self.call, resize(self.x1, n1), columns, pairs, self.dynamic)

    def block(self, rows, columns, pairs, dynamic) -> dict[str, Array]:
        """Leaves of one block, by path."""
        found = named_leaves(self.call(rows, columns, pairs, dynamic))
        return {leaf.path: found[leaf.path] for leaf in self.leaves if leaf.path in found}

    def grid(self) -> list[tuple[int, int]]:
        """Blocks to compute."""
        rows, columns = blocks_of(self.count1, self.size), blocks_of(self.count2, self.size)
        if any(leaf.paired for leaf in self.leaves):
            return [(i, i) for i in range(rows)]
        return [(i, j) for i in range(rows) for j in range(i if self.fold else 0, columns)]

    def placed(self, inputs: Any) -> Any:
        """Inputs on all the devices that take part."""
        if self.devices == 1:
            return inputs
        mesh = Mesh(np.asarray(jax.devices()[: self.devices]), ("rows",))
        return jax.device_put(inputs, NamedSharding(mesh, PartitionSpec()))

    def shard(self, rows: PyTree) -> PyTree:
        """A block's rows, split over the devices."""
        if self.devices == 1:
            return rows
        mesh = Mesh(np.asarray(jax.devices()[: self.devices]), ("rows",))
        sharding = NamedSharding(mesh, PartitionSpec("rows"))
        if any(isinstance(leaf, Tracer) for leaf in jax.tree.leaves(rows)):
            return jax.lax.with_sharding_constraint(rows, sharding)
        return jax.device_put(rows, sharding)

    def loop(self, x1, x2, pairs, dynamic) -> list[Array]:
        """All blocks in one compiled loop; leaves of the whole result."""
        grid = jnp.asarray(self.grid(), jnp.int32)
        second = x1 if x2 is None else x2

        def at(place: Array) -> dict[str, Array]:
            start1, start2 = place[0] * self.size, place[1] * self.size
            rows = self.shard(take(x1, start1, self.size, self.count1))
            columns = take(second, start2, self.size, self.count2)
            cut = {
                k: (
                    take(a, start1, self.size, self.count1),
                    take(b, start2, self.size, self.count2),
                )
                for k, (a, b) in pairs.items()
            }
            if x2 is not None:
                return self.block(rows, columns, cut, dynamic)
            diagonal = lambda: self.block(rows, None, cut, dynamic)  # noqa: E731
            if len(self.grid()) == 1:
                return diagonal()
            names = set(jax.eval_shape(diagonal))

            def off_diagonal() -> dict[str, Array]:
                found = self.block(rows, columns, cut, dynamic)
                return {k: v for k, v in found.items() if k in names}

            return jax.lax.cond(place[0] == place[1], diagonal, off_diagonal)

        if len(self.grid()) == 1:
            stacked = jax.tree.map(lambda a: a[None], at(grid[0]))
        else:
            stacked = jax.lax.map(at, grid)
        return [self.assemble(stacked[leaf.path], leaf) for leaf in self.leaves]

    def assemble(self, stacked: Array, leaf: LeafAxes) -> Array:
        """One leaf from its blocks [block, ...]."""
        places = np.asarray(self.grid())
        if leaf.row is None and leaf.column is None:
            return stacked[0]
        if leaf.row is None or leaf.column is None or leaf.paired:
            axis = next(k for k in (leaf.row, leaf.column) if k is not None)
            along = places[:, 1 if leaf.row is None else 0]
            first = [int(np.flatnonzero(along == k)[0]) for k in range(along.max() + 1)]
            joined = jnp.moveaxis(stacked[jnp.asarray(first)], 0, axis)
            total = leaf.shape[axis]
            shape = (*joined.shape[:axis], -1, *joined.shape[axis + 2 :])
            return jax.lax.slice_in_dim(joined.reshape(shape), 0, total, axis=axis)
        rows, columns = places.max(0) + 1
        full = jnp.zeros((rows, columns, *stacked.shape[1:]), stacked.dtype)
        if self.fold:
            full = full.at[places[:, 1], places[:, 0]].set(
                jnp.swapaxes(stacked, leaf.row + 1, leaf.column + 1)
            )
        full = full.at[places[:, 0], places[:, 1]].set(stacked)
        order = list(range(2, full.ndim))
        order.insert(order.index(leaf.row + 2), 0)
        order.insert(order.index((leaf.column or 0) + 2), 1)
        joined = jnp.transpose(full, order)
        sizes = []
        for k, size in enumerate(stacked.shape[1:]):
            sizes.append(size * (rows if k == leaf.row else columns if k == leaf.column else 1))
        return jax.lax.slice(joined.reshape(sizes), [0] * len(sizes), leaf.shape)


def _is_cut(value: Any, count1: int, count2: int) -> bool:
    """Whether a keyword argument is a pair of arrays that belong to the examples."""
    if not isinstance(value, tuple) or len(value) != 2 or any(v is None for v in value):
        return False
    sizes = [
        {np.shape(leaf)[0] if np.ndim(leaf) else None for leaf in jax.tree.leaves(side)}
        for side in value
    ]
    return sizes == [{count1}, {count2}]


def _python_loop(work: _Work, inputs: Any, program, out, mark: str, progress: bool) -> Any:
    """Computes the blocks one by one, the next while the last is being stored."""
    grid = work.grid()
    shape = (max(i for i, _ in grid) + 1, max(j for _, j in grid) + 1)
    store = (
        MemoryStore(work.leaves, shape)
        if out is None
        else FolderStore(work.leaves, shape, out, mark)
    )
    pending: tuple[int, int, dict[str, Array]] | None = None
    x1, x2, pairs, dynamic = inputs
    second = x1 if x2 is None else x2
    dynamic = work.placed(dynamic)
    for i, j in _bar([place for place in grid if not store.done[place]], progress):
        start1, start2 = i * work.size, j * work.size
        rows = take_host(x1, start1, work.size, work.count1)
        columns = take_host(second, start2, work.size, work.count2)
        cut = {
            k: (
                take_host(a, start1, work.size, work.count1),
                take_host(b, start2, work.size, work.count2),
            )
            for k, (a, b) in pairs.items()
        }
        columns = None if x2 is None and i == j else columns
        computed = program(work.shard(rows), work.placed(columns), cut, dynamic)
        if pending is not None:
            _write(work, store, *pending)
        pending = (i, j, computed)
    if pending is not None:
        _write(work, store, *pending)
    return store


def _write(work: _Work, store: Any, i: int, j: int, computed: dict[str, Array]) -> None:
    """Puts a block, and its mirror image, in its place."""
    for leaf in work.leaves:
        if leaf.path not in computed:
            continue
        block = np.asarray(computed[leaf.path])
        _put(store.arrays[leaf.path], block, leaf, i, j, work.size)
        if work.fold and i != j and leaf.row is not None and leaf.column is not None:
            _put(store.arrays[leaf.path], mirrored(block, leaf), leaf, j, i, work.size)
    store.finish(i, j)


def _put(array: np.ndarray, block: np.ndarray, leaf: LeafAxes, i: int, j: int, size: int) -> None:
    target: list[Any] = [slice(None)] * array.ndim
    source: list[Any] = [slice(None)] * array.ndim
    for axis, number in ((leaf.row, i), (leaf.column, j)):
        if axis is not None:
            stop = min((number + 1) * size, array.shape[axis])
            target[axis] = slice(number * size, stop)
            source[axis] = slice(0, stop - number * size)
    array[tuple(target)] = block[tuple(source)]


def _bar(places: list[tuple[int, int]], progress: bool) -> Any:
    if not progress:
        return places
    from tqdm import tqdm

    return tqdm(places, desc="kernel blocks", unit="block")
