"""How a function of one device's share is mapped over all devices: shard_map, or pmap.

Both run the same per-device function with collectives over `AXIS`. What lies on the devices is
either whole on each of them or split along its leading axis in contiguous blocks; in trees of bool
below, True means split. Under pmap a split array is stored as [devices, rows / devices, ...], under
shard_map as [rows, ...], which is also the form in checkpoints.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

PyTree = Any

AXIS = "data"  # the mesh's one axis; pass it as `axis_name` to whatever talks to other devices


@dataclasses.dataclass(frozen=True)
class Devices:
    """The devices of a run, the same on every process."""

    mesh: Mesh
    parallelism: str  # "shard_map" or "pmap"

    @property
    def size(self) -> int:
        """Devices of all processes together."""
        return self.mesh.size

    @property
    def local_size(self) -> int:
        """Devices of this process."""
        return len(self.mesh.local_devices)

    @property
    def several_processes(self) -> bool:
        """Whether some devices belong to another process."""
        return self.local_size < self.size

    def sharding(self, split: bool) -> NamedSharding:
        """Of an array in its global form."""
        return NamedSharding(self.mesh, PartitionSpec(AXIS) if split else PartitionSpec())

    def shardings(self, split: PyTree) -> PyTree:
        """`sharding` of every leaf of a tree of bool."""
        return jax.tree.map(self.sharding, split)

    def local_rows(self, rows: int) -> slice:
        """The rows of a batch that this process reads: device j holds the j-th equal part."""
        share = rows // self.size
        own = [self.mesh.devices.tolist().index(device) for device in self.mesh.local_devices]
        return slice(min(own) * share, (max(own) + 1) * share)

    def map(
        self,
        function: Callable[..., Any],
        in_split: tuple[PyTree, ...],
        out_split: PyTree,
        *,
        donate: tuple[int, ...] = (),
    ) -> Callable[..., Any]:
        """Compiles a function of one device's share into one of everything.

        Args:
          function: runs once per device; may use collectives over `AXIS`. What it returns whole
            must be the same on every device, so it averages what is not: nothing checks that.
          in_split: for each argument a tree of bool, or one bool for all its leaves.
          out_split: the same for the result.
          donate: arguments whose memory the result may take.
        """
        if self.parallelism == "pmap":
            # pmap asks for one argument that is split, so it always gets one: the device's place.
            mapped = jax.pmap(
                lambda place, *arguments: function(*arguments),
                axis_name=AXIS,
                in_axes=(0, *jax.tree.map(_axis, in_split)),
                out_axes=jax.tree.map(_axis, out_split),
                devices=list(self.mesh.devices.flat),
                donate_argnums=tuple(number + 1 for number in donate),
            )
            return functools.partial(mapped, np.arange(self.size))
        # With check_vma=True, differentiating with respect to a whole (invariant) array sums over
        # devices on its own, and a pmean after it is N times too large. With False the semantics
        # are pmap's: a gradient is the device's own until it is averaged by hand. False also
        # leaves loops and branches of objectives and gradient rules free of casts.
        mapped = jax.shard_map(
            function,
            mesh=self.mesh,
            in_specs=jax.tree.map(_spec, in_split),
            out_specs=jax.tree.map(_spec, out_split),
            check_vma=False,
        )
        return jax.jit(mapped, donate_argnums=donate)

    def batch(self, local: PyTree) -> PyTree:
        """Rows of this process (NumPy, as cut by `local_rows`) as an argument that is split."""
        if self.parallelism == "pmap":
            count = self.local_size
            return jax.tree.map(lambda x: x.reshape(count, len(x) // count, *x.shape[1:]), local)
        if not self.several_processes:
            return local  # the compiled call places NumPy arrays faster than device_put does
        sharding = self.sharding(split=True)
        return jax.tree.map(lambda x: jax.make_array_from_process_local_data(sharding, x), local)

    def global_batch(self, local: PyTree) -> PyTree:
        """The same rows as one array [rows, ...] over all devices, for functions of everything."""
        if self.several_processes:
            return self.batch(local)
        return jax.device_put(local, self.sharding(split=True))

    def from_global(self, tree: PyTree, split: PyTree) -> PyTree:
        """Arrays in global form, as the mapped functions take them."""
        if self.parallelism != "pmap":
            return tree
        return jax.tree.map(self._stack, tree, split)

    def to_global(self, tree: PyTree, split: PyTree) -> PyTree:
        """Arrays as mapped functions return them, in global form: [rows, ...] where split."""
        if self.parallelism != "pmap":
            return tree
        return jax.tree.map(self._unstack, tree, split)

    def _stack(self, x: jax.Array, split: bool) -> jax.Array:
        if not split:
            return x
        stacked = (self.size, x.shape[0] // self.size, *x.shape[1:])
        return _reshape(x, stacked, self.sharding(split=True))

    def _unstack(self, x: jax.Array, split: bool) -> jax.Array:
        if not split:
            return x
        return _reshape(x, (x.shape[0] * x.shape[1], *x.shape[2:]), self.sharding(split=True))


def make_devices(parallelism: str = "shard_map", num_devices: int = 0) -> Devices:
    """The first `num_devices` devices (0: all), in equal numbers from every process.

    Raises:
      ValueError: an unknown kind of parallelism, or so many devices are not there.
    """
    if parallelism not in ("shard_map", "pmap"):
        raise ValueError(f'parallelism must be "shard_map" or "pmap", got {parallelism!r}.')
    processes = jax.process_count()
    if parallelism == "pmap" and processes > 1:
        raise ValueError(
            f'parallelism = "pmap" is for one process, and there are {processes}; '
            'use parallelism = "shard_map".'
        )
    present = sorted(jax.devices(), key=lambda device: (device.process_index, device.id))
    count = num_devices or len(present)
    if not 1 <= count <= len(present):
        raise ValueError(f"num_devices must be 0 to {len(present)}, got {num_devices!r}.")
    if count % processes:
        raise ValueError(
            f"num_devices = {count} must be a multiple of the number of processes, {processes}."
        )
    chosen: list[Any] = []
    for process in range(processes):
        own = [device for device in present if device.process_index == process]
        chosen += own[: count // processes]
    if len(chosen) != count:
        raise ValueError(f"num_devices = {count}: the processes hold unequal numbers of devices.")
    mesh = Mesh(np.array(chosen), (AXIS,), axis_types=(AxisType.Auto,))
    return Devices(mesh, parallelism)


def _axis(split: bool) -> int | None:
    return 0 if split else None


def _spec(split: bool) -> PartitionSpec:
    return PartitionSpec(AXIS) if split else PartitionSpec()


def _reshape(x: jax.Array, shape: tuple[int, ...], sharding: NamedSharding) -> jax.Array:
    return jax.jit(lambda x: x.reshape(shape), out_shardings=sharding)(x)
