"""`serial`, `parallel` and `repeat`: networks of networks."""

import dataclasses
from typing import Any

import jax

from ntk._kernel import Kernel
from ntk.stax._custom import CustomLayer
from ntk.stax._kernel_fn import as_network
from ntk.stax._layer import Layer, MaskedArray, Need, Network, apply_layer, position

#: Repeats of a run of layers from which on it is compiled once and looped over.
LOOP_FROM = 6


def description(network: Any) -> Layer:
    """The description behind a triple; a triple of foreign functions is wrapped in one.

    Raises:
      TypeError: `network` is no triple of functions.
    """
    if isinstance(network, Layer):
        return network
    if isinstance(network, tuple) and len(network) in (3, 4) and all(map(callable, network[:3])):
        layer = getattr(network[2], "layer", None)
        return layer if layer is not None else CustomLayer(*network[:3])
    hint = " Did you forget the parentheses?" if callable(network) else ""
    raise TypeError(f"expected a layer (init_fn, apply_fn, kernel_fn), got {network!r}.{hint}")


@dataclasses.dataclass(frozen=True)
class Serial(Layer):
    """Layers one after another."""

    layers: tuple[Layer, ...]

    @property
    def name(self) -> str:
        """The name in messages."""
        return "serial"

    @property
    def mixes_batch(self) -> bool:  # pyright: ignore[reportIncompatibleVariableOverride]
        """Whether any layer does."""
        return any(layer.mixes_batch for layer in self.layers)

    @property
    def repeatable(self) -> bool:  # pyright: ignore[reportIncompatibleVariableOverride]
        """Whether all layers are."""
        return all(layer.repeatable for layer in self.layers)

    @property
    def input_axes(self) -> tuple[int, int] | None:
        """Axes of the inputs: of the first layer that names them."""
        for layer in self.layers:
            if (axes := getattr(layer, "input_axes", None)) is not None:
                return axes
        return None

    def _at(self, index: int):
        return position(f"layer {index} ({self.layers[index].name})")

    def output_shape(self, shape: Any) -> Any:
        """Shape after the last layer."""
        for index, layer in enumerate(self.layers):
            with self._at(index):
                shape = layer.output_shape(shape)
        return shape

    def init(self, key: jax.Array, shape: Any) -> list[Any]:
        """One entry per layer."""
        params = []
        for index, layer in enumerate(self.layers):
            key, own = jax.random.split(key)
            with self._at(index):
                params.append(layer.init(own, shape))
                shape = layer.output_shape(shape)
        return params

    def apply(self, params: Any, inputs: Any, **kwargs: Any) -> Any:
        """The layers in turn, each with a key of its own."""
        mask = kwargs.pop("mask", None)
        if mask is not None:
            inputs = _with_mask(inputs, mask)
        key = kwargs.pop("rng", None)
        for index, (layer, own) in enumerate(zip(self.layers, params, strict=True)):
            if key is not None:
                key, kwargs["rng"] = jax.random.split(key)
            with self._at(index):
                inputs = apply_layer(layer, own, inputs, None, kwargs)
        return inputs

    def need(self, need: Need) -> Need:
        """What is needed of the inputs."""
        for layer in reversed(self.layers):
            need = layer.need(need)
        return need

    def mask(self, mask: Any, shape: Any) -> Any:
        """The mask after the last layer."""
        for layer in self.layers:
            if mask is None:
                return None
            mask = layer.mask(mask, shape)
            shape = layer.output_shape(shape)
        return mask

    def kernel(self, kernel: Kernel, **kwargs: Any) -> Kernel:
        """The layers in turn; long runs of equal layers as one loop."""
        index = 0
        while index < len(self.layers):
            period, times = _run_of(self.layers, index)
            if period and times >= LOOP_FROM:
                kernel = self._loop(kernel, index, period, times, kwargs)
                index += period * times
                continue
            kernel = self._one(kernel, index, kwargs)
            index += 1
        return kernel

    def _one(self, kernel: Kernel, index: int, kwargs: dict[str, Any]) -> Kernel:
        with self._at(index):
            return self.layers[index].kernel(kernel, **kwargs)

    def _loop(
        self, kernel: Kernel, start: int, period: int, times: int, kwargs: dict[str, Any]
    ) -> Kernel:
        def once(state):
            for index in range(start, start + period):
                state = self._one(state, index, kwargs)
            return state

        done = 0
        # The first passes may still change what a kernel holds: 0 becomes an array, and so on.
        while done < times:
            shape = jax.eval_shape(once, kernel)
            if _layout(shape) == _layout(kernel):
                break
            kernel = once(kernel)
            done += 1
        if done < times:
            length = times - done
            carried: Any = kernel
            kernel, _ = jax.lax.scan(lambda k, _: (once(k), None), carried, None, length=length)
        return kernel


def _layout(kernel: Any) -> Any:
    leaves, tree = jax.tree.flatten(kernel)
    return tree, [(leaf.shape, leaf.dtype) for leaf in leaves]


def _equal(a: Layer, b: Layer) -> bool:
    """Whether two layers have the same kernel map: all but widths equal."""
    if a is b:
        return True
    if type(a) is not type(b) or not a.repeatable:
        return False
    for field in dataclasses.fields(a):  # pyright: ignore[reportArgumentType]
        left, right = getattr(a, field.name), getattr(b, field.name)
        if left is right:
            continue
        if isinstance(left, Layer) and isinstance(right, Layer):
            if not _equal(left, right):
                return False
        elif isinstance(left, tuple) and isinstance(right, tuple):
            if len(left) != len(right) or not all(map(_equal_value, left, right)):
                return False
        elif not _equal_value(left, right):
            return False
    return True


def _equal_value(left: Any, right: Any) -> bool:
    if left is right:
        return True
    if isinstance(left, Layer) and isinstance(right, Layer):
        return _equal(left, right)
    if isinstance(left, jax.Array) or isinstance(right, jax.Array):
        return False
    try:
        return type(left) is type(right) and bool(left == right)
    except (ValueError, TypeError):
        return False


def _run_of(layers: tuple[Layer, ...], start: int) -> tuple[int, int]:
    """The period and the count of the longest run of equal groups of layers at `start`."""
    best = (0, 0)
    for period in range(1, min(12, (len(layers) - start) // LOOP_FROM) + 1):
        times = 1
        while start + (times + 1) * period <= len(layers) and all(
            _equal(layers[start + i], layers[start + times * period + i]) for i in range(period)
        ):
            times += 1
        if times >= LOOP_FROM and period * times > best[0] * best[1]:
            best = (period, times)
    return best


def _with_mask(inputs: Any, mask: Any) -> Any:
    if isinstance(inputs, (list, tuple)) and not isinstance(inputs, MaskedArray):
        return [x if m is None else MaskedArray(x, m) for x, m in zip(inputs, mask)]
    return MaskedArray(inputs, mask)


@dataclasses.dataclass(frozen=True)
class Parallel(Layer):
    """Layers side by side, on a list of inputs."""

    layers: tuple[Layer, ...]

    @property
    def name(self) -> str:
        """The name in messages."""
        return "parallel"

    @property
    def mixes_batch(self) -> bool:  # pyright: ignore[reportIncompatibleVariableOverride]
        """Whether any branch does."""
        return any(layer.mixes_batch for layer in self.layers)

    @property
    def repeatable(self) -> bool:  # pyright: ignore[reportIncompatibleVariableOverride]
        """Whether all branches are."""
        return all(layer.repeatable for layer in self.layers)

    @property
    def input_axes(self) -> tuple[int, int] | None:
        """Axes of the inputs: of the first branch that names them."""
        for layer in self.layers:
            if (axes := getattr(layer, "input_axes", None)) is not None:
                return axes
        return None

    def _at(self, index: int):
        return position(f"branch {index}")

    def _check(self, items: Any, what: str) -> list[Any]:
        if isinstance(items, (list, tuple)) and not isinstance(items, MaskedArray):
            if len(items) and isinstance(items[0], int):
                items = [items] * len(self.layers)
        else:
            items = None
        if items is None or len(items) != len(self.layers):
            found = "one" if items is None else str(len(items))
            raise ValueError(
                f"parallel has {len(self.layers)} branches and was given {found} {what}; put "
                f"FanOut({len(self.layers)}) in front of it."
            )
        return list(items)

    def output_shape(self, shape: Any) -> list[Any]:
        """One shape per branch."""
        out = []
        for index, (layer, own) in enumerate(zip(self.layers, self._check(shape, "shape"))):
            with self._at(index):
                out.append(layer.output_shape(own))
        return out

    def init(self, key: jax.Array, shape: Any) -> list[Any]:
        """One entry per branch."""
        keys = jax.random.split(key, len(self.layers))
        shapes = self._check(shape, "shape")
        return [layer.init(k, own) for layer, k, own in zip(self.layers, keys, shapes)]

    def apply(self, params: Any, inputs: Any, **kwargs: Any) -> list[Any]:
        """One output per branch."""
        mask = kwargs.pop("mask", None)
        if mask is not None:
            inputs = _with_mask(inputs, mask)
        key = kwargs.pop("rng", None)
        inputs = self._check(inputs, "input")
        keys = [None] * len(inputs) if key is None else jax.random.split(key, len(inputs))
        out = []
        for index, (layer, own, x) in enumerate(zip(self.layers, params, inputs)):
            extra = {**kwargs} if key is None else {**kwargs, "rng": keys[index]}
            with self._at(index):
                result = apply_layer(layer, own, x, None, extra)
            out.append(result)
        if mask is None:
            return out
        return [x.masked_value if isinstance(x, MaskedArray) else x for x in out]

    def mask(self, mask: Any, shape: Any) -> list[Any]:
        """One mask per branch."""
        shapes = self._check(shape, "shape")
        return [
            None if m is None else layer.mask(m, own)
            for layer, m, own in zip(self.layers, mask, shapes)
        ]

    def need(self, need: Need) -> Need:
        """What any branch needs."""
        joined = Need()
        for layer in self.layers:
            joined = joined.join(layer.need(need))
        return joined

    def kernel(self, kernel: Any, **kwargs: Any) -> Any:
        """One Kernel per branch."""
        out = []
        for index, (layer, own) in enumerate(zip(self.layers, self._check(kernel, "kernel"))):
            with self._at(index):
                out.append(layer.kernel(own, **kwargs))
        return out


def serial(*layers: Any) -> Network:
    """A network of layers one after another.

    Args:
      *layers: triples `(init_fn, apply_fn, kernel_fn)`.
    Returns:
      The triple of the network. Parameters are a list with one entry per layer.

    >>> import jax.numpy as jnp
    >>> from ntk import stax
    >>> init_fn, apply_fn, kernel_fn = stax.serial(stax.Dense(64), stax.Relu(), stax.Dense(1))
    >>> print(kernel_fn(jnp.ones((1, 3)), None, "nngp"))
    [[0.5]]
    """
    described = []
    for index, layer in enumerate(layers):
        with position(f"layer {index}"):
            described.append(description(layer))
    return as_network(Serial(tuple(described)))


def parallel(*layers: Any) -> Network:
    """A network of branches side by side; inputs and outputs are lists.

    Args:
      *layers: triples `(init_fn, apply_fn, kernel_fn)`.
    """
    described = []
    for index, layer in enumerate(layers):
        with position(f"branch {index}"):
            described.append(description(layer))
    return as_network(Parallel(tuple(described)))


def repeat(layer: Any, n: int) -> Network:
    """A layer, or network, applied `n` times, with parameters of its own each time.

    Args:
      layer: a triple `(init_fn, apply_fn, kernel_fn)`.
      n: number of times, at least 0.
    """
    if n < 0:
        raise ValueError(f"repeat: n must be >= 0, got {n}.")
    return as_network(Serial((description(layer),) * n))
