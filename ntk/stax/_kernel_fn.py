"""`kernel_fn` of a network: reads the request, asks for a plan, and runs it."""

import functools
from collections import namedtuple
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from ntk._kernel import Kernel
from ntk.stax._covariance import plain_residual
from ntk.stax._inputs import input_kernel
from ntk.stax._layer import Layer, Need, Network, apply_layer
from ntk.stax._plan import run_in_tiles

FIELDS = tuple(Kernel.__dataclass_fields__)
STATIC = {name for name, field in Kernel.__dataclass_fields__.items() if field.metadata}


def parse_get(get: Any) -> tuple[str, ...] | None:
    """Names of the fields to return, None for the whole Kernel.

    Raises:
      ValueError: `get` is empty, repeats a name, or names no field.
    """
    if get is None:
        return None
    names = (get,) if isinstance(get, str) else tuple(get)
    names = tuple(name.lower() for name in names)
    if not names or not all(names):
        raise ValueError("get must be None, a name, or a non-empty tuple of names; it is empty.")
    if len(set(names)) < len(names):
        raise ValueError(f"get names a field twice: {names}.")
    for name in names:
        if name not in FIELDS:
            raise ValueError(f"get={name!r} is not a field of a Kernel; one of {FIELDS}.")
    return names


@functools.cache
def _answer_type(names: tuple[str, ...]) -> type:
    """One class for equal requests, so that their answers are pytrees of one structure."""
    return namedtuple("AnalyticKernel", names)


def select(kernel: Kernel, get: Any) -> Any:
    """The requested fields: a value for a name, a named tuple for names."""
    names = parse_get(get)
    if names is None:
        return kernel
    if isinstance(get, str):
        return getattr(kernel, names[0])
    return _answer_type(names)(*(getattr(kernel, name) for name in names))


class KernelFn:
    """`kernel_fn(x1, x2, get)` of a network, or `kernel_fn(kernel, get=...)` to compose two."""

    def __init__(self, layer: Layer):
        self.layer = layer
        self._compiled = jax.jit(
            self._run, static_argnames=("x1_is_x2", "names", "options", "mask_constant")
        )

    def __call__(
        self,
        x1_or_kernel: Any,
        x2: Any = None,
        get: Any = None,
        *,
        pattern: Any = None,
        mask_constant: float | None = None,
        diagonal_batch: bool | None = None,
        diagonal_spatial: bool | None = None,
        batch_axis: int | None = None,
        channel_axis: int | None = None,
        max_memory: float | None = None,
        accurate: bool = False,
    ) -> Any:
        """Infinite-width kernel of the network.

        Args:
          x1_or_kernel: inputs, or the Kernel of a network below this one.
          x2: other inputs with the same shape but for the batch; None for x1 itself.
          get: a field of Kernel ("nngp", "ntk", "cov1", ...), a tuple of fields, or None for the
            whole Kernel.
          pattern: graphs of x1 and of x2, a pair, for `Aggregate`.
          mask_constant: inputs of this value (it may be NaN) are padding.
          diagonal_batch: whether `cov1` and `cov2` leave out covariances of different inputs; None
            computes the least that the answer needs.
          diagonal_spatial: whether covariances of different positions are left out; None computes
            the least that the answer needs.
          batch_axis: of the inputs; None asks the layers.
          channel_axis: of the inputs; None asks the layers.
          max_memory: bytes of temporary memory to stay within; None picks blocks that fit caches.
          accurate: angles of all nearly parallel pairs of inputs to full precision.
        Returns:
          An array, a named tuple of arrays, or a Kernel.
        Raises:
          ValueError: inputs hold NaN or infinity (not checked under jit); shapes, axes or options
            do not fit, and then the message names the layer.
          NotImplementedError: no kernel is known; the message says what would work.
        """
        names = parse_get(get)
        if _holds_kernels(x1_or_kernel):
            if x2 is not None:
                raise ValueError("kernel_fn(kernel, x2): x2 must be None when x1 is a Kernel.")
            result: Any = _plain(self.layer.kernel(x1_or_kernel, pattern=pattern))
            return [select(k, get) for k in result] if type(result) is list else select(result, get)
        x1, x2 = _as_inputs(x1_or_kernel, x2)
        _check_finite("x1", x1, mask_constant)
        if x2 is not None and x2 is not x1:
            _check_finite("x2", x2, mask_constant)
        options = (diagonal_batch, diagonal_spatial, batch_axis, channel_axis, max_memory, accurate)
        x1_is_x2 = x2 is None or _known_equal(x1, x2)
        if isinstance(pattern, (tuple, list)) and x1_is_x2 and _known_equal(*pattern):
            pattern = pattern[0]  # one graph per input: the diagonal is a variance
        dtype = x1.dtype
        if jnp.finfo(dtype).bits < 32:
            x1 = x1.astype(jnp.float32)
            x2 = None if x2 is None else x2.astype(jnp.float32)
        described = names is not None and bool(STATIC & set(names))
        result = self._compiled(
            x1, x2, pattern, x1_is_x2=x1_is_x2, names=None if described else names, options=options,
            mask_constant=None if mask_constant is None else _Constant(mask_constant),
        )  # fmt: skip
        if jnp.finfo(dtype).bits < 32:
            result = jax.tree.map(
                lambda x: x.astype(dtype) if jnp.issubdtype(x.dtype, jnp.floating) else x, result
            )
        if described:
            return select(result, get)
        if names is None:
            return result
        if isinstance(get, str):
            return result[0]
        return _answer_type(names)(*result)

    def _run(self, x1, x2, pattern, *, x1_is_x2, names, options, mask_constant):
        diagonal_batch, diagonal_spatial, batch_axis, channel_axis, max_memory, accurate = options
        ndim = x1.ndim
        batch, channel = input_axes(self.layer) or (0, -1)
        batch = batch if batch_axis is None else batch_axis
        channel = channel if channel_axis is None else channel_axis
        _check_shapes(x1, x2, batch)
        arrays_only = names is not None and set(names) <= {"nngp", "ntk"}
        shape = tuple(x1.shape)
        shape_out = self.layer.output_shape(shape)
        shapes_out = shape_out if isinstance(shape_out, list) else [shape_out]
        count = max(len(out) for out in shapes_out) - 2
        flat_out = bool(diagonal_spatial)
        wants = Need(
            pairs=not flat_out and count > 0,
            own=not arrays_only,
            own_pairs=not arrays_only and not flat_out and count > 0,
        )
        need = self.layer.need(wants)
        forced = diagonal_spatial is False and ndim > 2
        if diagonal_spatial and need.pairs and ndim > 2:
            raise ValueError(
                "diagonal_spatial=True, but a layer of the network mixes positions (pooling, "
                "attention, resizing) and needs their covariances; leave diagonal_spatial out."
            )
        batch_diagonal = diagonal_batch is not False and not self.layer.mixes_batch
        if diagonal_batch and self.layer.mixes_batch:
            batch_diagonal = True
        settings = {
            "batch_axis": batch,
            "channel_axis": channel,
            "with_ntk": names is None or "ntk" in names,
            "diagonal_batch": batch_diagonal,
            "diagonal_spatial": not (need.pairs or forced) and ndim > 2,
            "diagonal_cov": not (need.own_pairs or forced) and ndim > 2,
            "mask_constant": None if mask_constant is None else mask_constant.value,
            "accurate": accurate,
        }
        if not arrays_only:
            both = settings["diagonal_spatial"] and settings["diagonal_cov"]
            settings["diagonal_spatial"] = settings["diagonal_cov"] = both

        def whole(first, second, equal, prints=None):
            kernel = input_kernel(first, second, x1_is_x2=equal, prints=prints, **settings)
            return _plain(self.layer.kernel(kernel, pattern=pattern))

        if arrays_only and pattern is None and batch_diagonal and self.layer.repeatable:
            size = np.prod(
                [n for a, n in enumerate(shape) if a not in (batch % ndim, channel % ndim)]
            )
            entries = int(size) ** (1 if settings["diagonal_spatial"] else 2)
            fields = run_in_tiles(whole, x1, x2, batch % ndim, channel, entries, names, max_memory)
            if fields is not None:
                return fields
        kernel = whole(x1, x2, x1_is_x2)
        if isinstance(kernel, list):
            if names is None:
                return kernel
            return tuple([getattr(k, name) for k in kernel] for name in names)
        return kernel if names is None else tuple(getattr(kernel, name) for name in names)


def _plain(kernel: Any) -> Any:
    """Kernels as users see them, residuals as arrays."""
    if isinstance(kernel, list):
        return [_plain(k) for k in kernel]
    return kernel.replace(residual=plain_residual(kernel))


def _holds_kernels(x: Any) -> bool:
    return isinstance(x, Kernel) or (type(x) in (list, tuple) and bool(x) and _holds_kernels(x[0]))


def _check_shapes(x1: jax.Array, x2: jax.Array | None, batch_axis: int) -> None:
    if x2 is None:
        return
    first, second = list(x1.shape), list(x2.shape)
    del first[batch_axis], second[batch_axis]
    if first != second:
        raise ValueError(
            f"kernel_fn: x1 has shape {x1.shape} and x2 {x2.shape}; they may differ in the batch "
            f"(axis {batch_axis}) only."
        )


class _Constant:
    """A number as a static argument; NaN equals itself here."""

    def __init__(self, value: Any):
        self.value = float(value)

    def __hash__(self) -> int:
        return hash(repr(self.value))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Constant) and repr(self.value) == repr(other.value)


def _check_finite(name: str, x: jax.Array, mask_constant: float | None) -> None:
    """Raises when concrete inputs hold NaN or infinity other than the mask constant."""
    if isinstance(x, Tracer):
        return
    with jax.ensure_compile_time_eval():  # also for constants of a function that is traced
        if bool(jnp.isfinite(x).all()):
            return
    values = np.asarray(x)
    bad = ~np.isfinite(values)
    if mask_constant is not None:
        bad &= ~(np.isnan(values) if mask_constant != mask_constant else values == mask_constant)
    if bad.any():
        index = tuple(int(i[0]) for i in np.nonzero(bad))
        raise ValueError(
            f"kernel_fn: {name} holds {values[index]} at index {index}, and {int(bad.sum())} "
            "values that are not finite in all. Clean the inputs; if these entries are padding, "
            "pass mask_constant=that value."
        )


def _known_equal(x1: Any, x2: Any) -> bool:
    if x1 is x2:
        return True
    if (
        x1 is None
        or x2 is None
        or x1.shape != x2.shape
        or isinstance(x1, Tracer)
        or isinstance(x2, Tracer)
    ):
        return False
    return bool(np.array_equal(np.asarray(x1), np.asarray(x2), equal_nan=True))


def _as_inputs(x1: Any, x2: Any) -> tuple[jax.Array, jax.Array | None]:
    same = x2 is x1
    x1 = jnp.asarray(x1)
    x2 = x1 if same else None if x2 is None else jnp.asarray(x2)
    dtype = x1.dtype if x2 is None else jnp.promote_types(x1.dtype, x2.dtype)
    if jnp.issubdtype(dtype, jnp.complexfloating):
        raise ValueError(f"kernel_fn: inputs must be real, got {dtype}.")
    if not jnp.issubdtype(dtype, jnp.floating):
        dtype = jnp.zeros(()).dtype
    x1 = x1.astype(dtype)
    if x1.ndim < 2:
        raise ValueError(
            f"kernel_fn: x1 has shape {x1.shape}; inputs need a batch axis and a channel axis."
        )
    if x2 is None:
        return x1, None
    x2 = x1 if same else x2.astype(dtype)
    if x2.ndim != x1.ndim:
        raise ValueError(
            f"kernel_fn: x1 has shape {x1.shape} and x2 {x2.shape}; they must have the same number "
            "of dimensions."
        )
    return x1, x2


def input_axes(layer: Layer) -> tuple[int, int] | None:
    """Batch and channel axes that a layer says its inputs have; None when it does not say."""
    return getattr(layer, "input_axes", None)


def as_network(layer: Layer) -> Network:
    """The triple of a description."""

    def init_fn(rng: jax.Array, input_shape: Sequence[int], **kwargs: Any) -> tuple[Any, Any]:
        del kwargs
        return layer.output_shape(input_shape), layer.init(rng, input_shape)

    def apply_fn(params: Any, inputs: Any, mask_constant: Any = None, **kwargs: Any) -> Any:
        return apply_layer(layer, params, inputs, mask_constant, kwargs)

    return Network(init_fn, apply_fn, KernelFn(layer))
