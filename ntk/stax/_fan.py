"""Branches: `FanOut` copies, `FanInSum`, `FanInProd` and `FanInConcat` join."""

import dataclasses
from functools import reduce
from operator import mul
from typing import Any

import jax
import jax.numpy as jnp

from ntk._kernel import Kernel
from ntk.stax._covariance import plain_residual, spread, variances
from ntk.stax._kernel_fn import as_network
from ntk.stax._layer import Layer, Need, Network

Array = jax.Array


@dataclasses.dataclass(frozen=True)
class FanOutLayer(Layer):
    """Description of `FanOut`."""

    num: int

    def output_shape(self, shape: Any) -> Any:
        """Copies of the shape."""
        return [shape] * self.num

    def apply(self, params: Any, inputs: Any, **kwargs: Any) -> Any:
        """Copies of the inputs."""
        del params, kwargs
        return [inputs] * self.num

    def mask(self, mask: Any, shape: Any) -> Any:
        """Copies of the mask."""
        return [mask] * self.num

    def kernel(self, kernel: Kernel, **kwargs: Any) -> Any:
        """Copies of the kernel, which are one and the same until weights come between them."""
        del kwargs
        depth = kernel.depth + 1
        return [kernel.replace(depth=depth, shared=(*kernel.shared, depth))] * self.num


def FanOut(num: int) -> Network:
    """Copies the inputs to `num` branches."""
    if num < 1:
        raise ValueError(f"FanOut: num must be at least 1, got {num}.")
    return as_network(FanOutLayer(num))


class _FanIn(Layer):
    """What joining layers share."""

    def _branches(self, kernel: Any) -> list[Kernel]:
        if isinstance(kernel, Kernel) or not kernel:
            raise ValueError(
                f"{self.name} joins the outputs of several branches and was given one; put "
                "FanOut(n) and parallel(...) in front of it."
            )
        return list(kernel)

    def _check_shapes(self, shapes: Any, skip: int | None = None) -> None:
        if not shapes or not isinstance(shapes[0], (tuple, list)):
            self._branches(())
        shapes = [tuple(shape) for shape in shapes]

        def kept(shape):
            axes = range(len(shape))
            return tuple(shape[a] for a in axes if skip is None or a != skip % len(shape))

        if len({len(shape) for shape in shapes}) > 1 or len({kept(s) for s in shapes}) > 1:
            where = "" if skip is None else f" but for axis {skip}"
            raise ValueError(
                f"{self.name}: the branches must have the same shape{where}, got {shapes}."
            )


def _check_independent(name: str, kernels: list[Kernel]) -> None:
    """Raises when products of different branches may have a mean."""
    if sum(kernels[0].depth in k.shared for k in kernels) > 1:
        raise NotImplementedError(
            f"{name} needs independent branches, and more than one of them holds no layer with "
            "weights: their outputs depend on each other. Put Dense or Conv in all but one."
        )
    if len(kernels) > 1 and sum(not k.is_gaussian for k in kernels) > 1:
        raise NotImplementedError(
            f"{name} needs independent mean-zero branches, and more than one of them does not end "
            "in Dense or Conv; put such a layer at the end of the branches."
        )


def _joined(kernels: list[Kernel]) -> dict[str, Any]:
    """Static fields behind a join: one level of copies less."""
    depth = kernels[0].depth
    shared = {d for k in kernels for d in k.shared if d != depth}
    return {"depth": max(depth - 1, 0), "shared": tuple(sorted(shared)), "is_input": False}


def _strip(kernels: list[Kernel]) -> list[Kernel]:
    """Kernels of one layout: as many positions as the poorest holds is never enough, so check."""
    layouts = {(k.diagonal_batch, k.diagonal_spatial, k.diagonal_cov) for k in kernels}
    if len(layouts) > 1:
        raise ValueError(f"branches hold different covariances {sorted(layouts)}.")
    axes = {(k.batch_axis, k.channel_axis) for k in kernels}
    if len(axes) > 1:
        raise ValueError(f"branches have different batch and channel axes {sorted(axes)}.")
    return kernels


def _any_mask(masks: list[Any], combine: Any) -> Any:
    known = [mask for mask in masks if mask is not None]
    if not known or (len(known) < len(masks) and combine is jnp.logical_and):
        return None
    return reduce(combine, known)


def _tangents(kernels: list[Kernel]) -> Array | None:
    if any(k.ntk is None for k in kernels):
        return None
    return reduce(lambda a, b: a + b, _broadcast([k.ntk for k in kernels], kernels[0].nngp))


def _broadcast(tangents: list[Any], like: Array) -> list[Array]:
    """Scalars, the tangent kernels of inputs, among full arrays."""
    if all(t.ndim == 0 for t in tangents):
        return tangents
    return [jnp.broadcast_to(t.reshape((1,) * like.ndim), like.shape) if t.ndim == 0 else t
            for t in tangents]  # fmt: skip


def residual_of_sum(a: Kernel, b: Kernel) -> Array | None:
    """The residual of the sum of two independent branches, without cancellation."""
    residual_a, residual_b = plain_residual(a), plain_residual(b)
    if residual_a is None or residual_b is None:
        return None
    a, b, residual_a, residual_b = jax.lax.stop_gradient((a, b, residual_a, residual_b))
    flat = a.diagonal_spatial

    def products(kernel):
        var1, var2 = variances(kernel)
        return spread(var1, 0, 2, flat), spread(var2, 1, 2, flat)

    (a1, a2), (b1, b2) = products(a), products(b)
    cross = a.nngp * b.nngp
    left, right = jnp.sqrt(a1) * jnp.sqrt(b2), jnp.sqrt(b1) * jnp.sqrt(a2)
    total = jnp.sqrt(a1 * b1) * jnp.sqrt(a2 * b2) + cross
    above = residual_a * residual_b + residual_a * b.nngp**2 + residual_b * a.nngp**2
    positive = (cross > 0) & (total > 0)
    gap = jnp.where(positive, above / jnp.where(positive, total, 1), left * right - cross)
    mixed = (left - right) ** 2 + 2 * gap
    return residual_a + residual_b + jnp.maximum(mixed, 0)


@dataclasses.dataclass(frozen=True)
class FanInSumLayer(_FanIn):
    """Description of `FanInSum`."""

    def output_shape(self, shape: Any) -> Any:
        """The common shape."""
        self._check_shapes(shape)
        return shape[0]

    def apply(self, params: Any, inputs: Any, **kwargs: Any) -> Any:
        """The sum."""
        del params, kwargs
        return reduce(lambda a, b: a + b, inputs)

    def mask(self, mask: Any, shape: Any) -> Any:
        """Masked where any branch is."""
        return _any_mask(mask, jnp.logical_or)

    def kernel(self, kernel: Any, **kwargs: Any) -> Kernel:
        """The sum of the kernels."""
        del kwargs
        kernels = _strip(self._branches(kernel))
        self._check_shapes([k.shape1 for k in kernels])
        _check_independent("FanInSum", kernels)
        residual = kernels[0].residual
        total = kernels[0]
        for other in kernels[1:]:
            residual = residual_of_sum(total, other)
            total = total.replace(
                nngp=total.nngp + other.nngp,
                cov1=total.cov1 + other.cov1,
                cov2=None if total.cov2 is None else total.cov2 + other.cov2,
                residual=residual,
            )
        out = total.replace(
            ntk=_tangents(kernels),
            same=_same(kernels),
            is_gaussian=all(k.is_gaussian for k in kernels),
            **_joined(kernels),
        )
        return _masked(out, kernels, jnp.logical_or)


def _same(kernels: list[Kernel]) -> Array | None:
    """Where outputs are known to be equal: where they are in every branch."""
    if any(k.same is None for k in kernels):
        return None
    return reduce(jnp.logical_and, [k.same for k in kernels])


def _masked(out: Kernel, kernels: list[Kernel], combine: Any) -> Kernel:
    mask1 = _any_mask([k.mask1 for k in kernels], combine)
    mask2 = _any_mask([k.mask2 for k in kernels], combine)
    return out if mask1 is None and mask2 is None else out.mask(mask1, mask2)


def FanInSum() -> Network:
    """Sums the branches."""
    return as_network(FanInSumLayer())


@dataclasses.dataclass(frozen=True)
class FanInProdLayer(_FanIn):
    """Description of `FanInProd`."""

    def output_shape(self, shape: Any) -> Any:
        """The common shape."""
        self._check_shapes(shape)
        return shape[0]

    def apply(self, params: Any, inputs: Any, **kwargs: Any) -> Any:
        """The product."""
        del params, kwargs
        return reduce(mul, inputs)

    def mask(self, mask: Any, shape: Any) -> Any:
        """Masked where any branch is."""
        return _any_mask(mask, jnp.logical_or)

    def kernel(self, kernel: Any, **kwargs: Any) -> Kernel:
        """Products of covariances; the tangent kernel by the product rule."""
        del kwargs
        kernels = _strip(self._branches(kernel))
        self._check_shapes([k.shape1 for k in kernels])
        _check_independent("FanInProd", kernels)
        tangent = None
        if all(k.ntk is not None for k in kernels):
            parts = _broadcast([k.ntk for k in kernels], kernels[0].nngp)
            tangent = jnp.zeros((), kernels[0].nngp.dtype)
            for i, part in enumerate(parts):
                others = [k.nngp for j, k in enumerate(kernels) if j != i]
                if part.ndim:
                    tangent = _plus(tangent, reduce(mul, others, part))
        total = kernels[0]
        for other in kernels[1:]:
            residual, own, new = None, plain_residual(total), plain_residual(other)
            if own is not None and new is not None:
                residual = own * new + own * other.nngp**2 + new * total.nngp**2
            total = total.replace(
                nngp=total.nngp * other.nngp,
                cov1=total.cov1 * other.cov1,
                cov2=None if total.cov2 is None else total.cov2 * other.cov2,
                residual=residual if residual is None else jax.lax.stop_gradient(residual),
            )
        alone = len(kernels) == 1 and total.is_gaussian
        out = total.replace(ntk=tangent, same=_same(kernels), is_gaussian=alone, **_joined(kernels))
        return _masked(out, kernels, jnp.logical_or)


def _plus(a: Array, b: Array) -> Array:
    return b if a.ndim == 0 else a + b


def FanInProd() -> Network:
    """Multiplies the branches entry by entry."""
    return as_network(FanInProdLayer())


@dataclasses.dataclass(frozen=True)
class FanInConcatLayer(_FanIn):
    """Description of `FanInConcat`."""

    axis: int
    repeatable = False

    def output_shape(self, shape: Any) -> Any:
        """Sizes add up along the axis."""
        self._check_shapes(shape, self.axis)
        axis = self.axis % len(shape[0])
        total = sum(s[axis] for s in shape)
        return tuple(shape[0][:axis]) + (total,) + tuple(shape[0][axis + 1 :])

    def apply(self, params: Any, inputs: Any, **kwargs: Any) -> Any:
        """The concatenation."""
        del params, kwargs
        return jnp.concatenate(inputs, self.axis)

    def mask(self, mask: Any, shape: Any) -> Any:
        """The masks side by side."""
        if all(m is None for m in mask):
            return None
        full = [jnp.zeros(s, bool) if m is None else jnp.broadcast_to(m, s)
                for m, s in zip(mask, shape)]  # fmt: skip
        return jnp.concatenate(full, self.axis)

    def need(self, need: Need) -> Need:
        """What the joined outputs need."""
        return need

    def kernel(self, kernel: Any, **kwargs: Any) -> Kernel:
        """An average weighted by widths along the channels, blocks along positions."""
        del kwargs
        kernels = _strip(self._branches(kernel))
        self._check_shapes([k.shape1 for k in kernels], self.axis)
        ndim = len(kernels[0].shape1)
        axis = self.axis % ndim
        first = kernels[0]
        shapes = {
            "shape1": self.output_shape([k.shape1 for k in kernels]),
            "shape2": self.output_shape([k.shape2 for k in kernels]),
        }
        if axis == first.channel_axis % ndim:
            return self._along_channels(kernels, shapes)
        _check_independent("FanInConcat along a batch or spatial axis", kernels)
        outer = (first.batch_axis % ndim, first.channel_axis % ndim)
        rest = [a for a in range(ndim) if a not in outer]
        return self._in_blocks(kernels, shapes, None if axis == outer[0] else rest.index(axis))

    def _along_channels(self, kernels: list[Kernel], shapes: dict[str, Any]) -> Kernel:
        axis = self.axis % len(kernels[0].shape1)
        widths = [k.shape1[axis] for k in kernels]
        weights = [width / sum(widths) for width in widths]

        def mean(arrays):
            if any(a is None for a in arrays):
                return None
            return reduce(lambda a, b: a + b, [a * w for a, w in zip(arrays, weights)])

        tangents = [k.ntk for k in kernels]
        if all(t is not None for t in tangents):
            tangents = _broadcast(tangents, kernels[0].nngp)
        out = kernels[0].replace(
            nngp=mean([k.nngp for k in kernels]),
            ntk=mean(tangents),
            cov1=mean([k.cov1 for k in kernels]),
            cov2=mean([k.cov2 for k in kernels]),
            residual=None,
            same=_same(kernels),
            # Channels of branches with kernels of their own are not draws of one law.
            is_gaussian=len(kernels) == 1 and kernels[0].is_gaussian,
            **_joined(kernels),
            **shapes,
        )
        return _masked(out, kernels, jnp.logical_and)

    def _in_blocks(self, kernels: list[Kernel], shapes: dict[str, Any], slot: int | None) -> Kernel:
        """Joins along a spatial axis, or along the batch when `slot` is None.

        Branches are independent: the covariance of entries of different branches is zero.
        """

        def joined(arrays, lead, diagonal):
            if any(a is None for a in arrays):
                return None
            if slot is None:
                axis, once = 0, lead == 1
            else:
                axis, once = (lead + slot, True) if diagonal else (lead + 2 * slot, False)
            if once:
                return jnp.concatenate(arrays, axis)
            rows = []
            for i, own in enumerate(arrays):
                row = []
                for j, other in enumerate(arrays):
                    shape = list(own.shape)
                    shape[axis + 1] = other.shape[axis + 1]
                    row.append(own if i == j else jnp.zeros(shape, own.dtype))
                rows.append(jnp.concatenate(row, axis + 1))
            return jnp.concatenate(rows, axis)

        first = kernels[0]
        outer = 1 if first.diagonal_batch else 2
        tangents = [k.ntk for k in kernels]
        if all(t is not None for t in tangents):
            tangents = [
                jnp.broadcast_to(t.reshape((1,) * k.nngp.ndim), k.nngp.shape) if t.ndim == 0 else t
                for t, k in zip(tangents, kernels)
            ]
        out = first.replace(
            nngp=joined([k.nngp for k in kernels], 2, first.diagonal_spatial),
            ntk=joined(tangents, 2, first.diagonal_spatial),
            cov1=joined([k.cov1 for k in kernels], outer, first.diagonal_cov),
            cov2=joined([k.cov2 for k in kernels], outer, first.diagonal_cov),
            residual=None,
            same=joined([k.same for k in kernels], 2, True) if slot is None else _same(kernels),
            is_gaussian=all(k.is_gaussian for k in kernels),
            **_joined(kernels),
            mask1=None,
            mask2=None,
            **shapes,
        )
        axis = self.axis % len(first.shape1)
        masks = []
        for side in (1, 2):
            own = [getattr(k, f"mask{side}") for k in kernels]
            if all(m is None for m in own):
                masks.append(None)
                continue
            sizes = [getattr(k, f"shape{side}") for k in kernels]
            channel = first.channel_axis % len(first.shape1)
            ones = [tuple(1 if a == channel else n for a, n in enumerate(s)) for s in sizes]
            full = [jnp.zeros(o, bool) if m is None else jnp.broadcast_to(m, o)
                    for m, o in zip(own, ones)]  # fmt: skip
            masks.append(jnp.concatenate(full, axis))
        return out if masks == [None, None] else out.mask(*masks)


def FanInConcat(axis: int = -1) -> Network:
    """Concatenates the branches along an axis."""
    return as_network(FanInConcatLayer(axis))
