"""Layers given by three functions of the user, and the decorators of neural-tangents for them."""

import dataclasses
import enum
import functools
from collections.abc import Callable
from typing import Any

import jax

from ntk._kernel import Kernel
from ntk.stax._kernel_fn import as_network
from ntk.stax._layer import Layer, MaskedArray, Need, Network


class Bool(enum.IntEnum):
    """Whether a layer can, or must, work with covariances of equal positions or inputs only."""

    NO = 0
    MAYBE = 1
    YES = 2


@dataclasses.dataclass(frozen=True)
class Diagonal:
    """What a layer of the user needs (`input`) and gives (`output`); see `Bool`."""

    input: Bool = Bool.YES
    output: Bool = Bool.NO


@dataclasses.dataclass(frozen=True, eq=False)
class CustomLayer(Layer):
    """A layer given by functions.

    Attributes:
      init_fn: `(key, shape) -> (output shape, params)`.
      apply_fn: `(params, inputs, **kwargs) -> outputs`.
      kernel_fn: `Kernel -> Kernel`.
    """

    init_fn: Callable[..., Any]
    apply_fn: Callable[..., Any]
    kernel_fn: Callable[..., Any]

    @property
    def name(self) -> str:
        """The name of the user's function."""
        return getattr(self.kernel_fn, "layer_name", "custom layer")

    @property
    def mixes_batch(self) -> bool:  # pyright: ignore[reportIncompatibleVariableOverride]
        """Whether the layer asked for covariances of different inputs."""
        return not _may_be_diagonal(self._requirements.get("diagonal_batch", True))

    repeatable = False

    @property
    def _requirements(self) -> dict[str, Any]:
        return getattr(self.kernel_fn, "requirements", {})

    @property
    def input_axes(self) -> tuple[int, int] | None:
        """Axes of the inputs, when the layer names them."""
        wants = self._requirements
        if wants.get("batch_axis") is None and wants.get("channel_axis") is None:
            return None
        batch, channel = wants.get("batch_axis"), wants.get("channel_axis")
        return 0 if batch is None else batch, -1 if channel is None else channel

    def output_shape(self, shape: Any) -> Any:
        """What init_fn says, traced only."""
        found = []

        def traced(key):
            out, params = self.init_fn(key, shape)
            found.append(out)
            return params

        jax.eval_shape(traced, jax.random.key(0))
        return found[0]

    def init(self, key: jax.Array, shape: Any) -> Any:
        """Parameters of init_fn."""
        return self.init_fn(key, shape)[1]

    def apply(self, params: Any, inputs: Any, **kwargs: Any) -> Any:
        """The function apply_fn."""
        kwargs.pop("mask", None)
        return self.apply_fn(params, inputs, **kwargs)

    def need(self, need: Need) -> Need:
        """Full covariances, unless the layer says that it can do without."""
        if _may_be_diagonal(self._requirements.get("diagonal_spatial", Bool.NO)):
            return need
        return Need(pairs=True, own=True, own_pairs=True)

    def kernel(self, kernel: Kernel, **kwargs: Any) -> Kernel:
        """The function kernel_fn."""
        wanted = {k: v for k, v in kwargs.items() if v is not None}
        return self.kernel_fn(kernel, **wanted)


def _may_be_diagonal(value: Any) -> bool:
    if isinstance(value, Diagonal):
        value = value.input
    return bool(value)


def layer(layer_fn: Callable[..., Any]) -> Callable[..., Network]:
    """Decorator: makes a function that returns `(init_fn, apply_fn, kernel_fn)` a layer.

    `kernel_fn` takes a Kernel and returns one; the decorated layer also takes inputs.
    """

    @functools.wraps(layer_fn)
    def made(*args: Any, **kwargs: Any) -> Network:
        init_fn, apply_fn, kernel_fn = layer_fn(*args, **kwargs)[:3]
        wrapped = functools.wraps(kernel_fn)(lambda k, **kw: kernel_fn(k, **kw))
        wrapped.__dict__.update(getattr(kernel_fn, "__dict__", {}))
        wrapped.layer_name = layer_fn.__name__  # pyright: ignore[reportAttributeAccessIssue]
        return as_network(CustomLayer(init_fn, apply_fn, wrapped))

    return made


def requires(**static_reqs: Any) -> Callable[..., Any]:
    """Decorator of a `kernel_fn`: names the axes and the covariances that it needs.

    Args:
      **static_reqs: `batch_axis`, `channel_axis`, `diagonal_batch`, `diagonal_spatial`.
    """
    known = {"batch_axis", "channel_axis", "diagonal_batch", "diagonal_spatial", "use_dropout"}
    if unknown := set(static_reqs) - known:
        raise ValueError(f"requires: unknown {sorted(unknown)}; one of {sorted(known)}.")

    def decorated(kernel_fn):
        kernel_fn.requirements = {**getattr(kernel_fn, "requirements", {}), **static_reqs}
        return kernel_fn

    return decorated


def supports_masking(remask_kernel: bool) -> Callable[..., Any]:
    """Decorator of a function that returns a triple (and perhaps a mask function).

    Args:
      remask_kernel: whether kernels are masked again after the layer.
    """

    def decorated(layer_fn):
        @functools.wraps(layer_fn)
        def made(*args, **kwargs):
            init_fn, apply_fn, kernel_fn = layer_fn(*args, **kwargs)[:3]

            def remasked(kernel, **kw):
                out = kernel_fn(kernel, **kw)
                return out.mask(out.mask1, out.mask2) if remask_kernel else out

            remasked.__dict__.update(getattr(kernel_fn, "__dict__", {}))
            return init_fn, apply_fn, remasked

        return made

    return decorated


def unmask_fn(fn: Callable[..., Any]) -> Callable[..., Any]:
    """A function like `fn` that returns the values of masked arrays, without their masks."""

    def is_masked(x):
        return isinstance(x, MaskedArray)

    @functools.wraps(fn)
    def unmasked(*args, **kwargs):
        out = fn(*args, **kwargs)
        return jax.tree.map(lambda x: x.masked_value if is_masked(x) else x, out, is_leaf=is_masked)

    return unmasked
