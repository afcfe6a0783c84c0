"""Products of a curvature matrix with a vector: the Hessian, and its Gauss-Newton part."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree

from sam_free._checks import check_choice
from sam_free.sharpness._data import Array, Data, LossFn, PyTree, average, scalar

CURVATURES = ("hessian", "gauss_newton")


class SplitLoss(NamedTuple):
    """A loss in two parts, as the Gauss-Newton matrix needs it; itself a `(params, batch)` loss."""

    outputs: Callable[[PyTree, PyTree], Array]  # (params, batch) -> outputs [batch, ...]
    loss: Callable[[Array, PyTree], Array]  # (outputs, batch) -> mean loss

    def __call__(self, params: PyTree, batch: PyTree) -> Array:
        return self.loss(self.outputs(params, batch), batch)


def split_loss(
    outputs: Callable[[PyTree, PyTree], Array], loss: Callable[[Array, PyTree], Array]
) -> SplitLoss:
    """The loss `loss(outputs(params, batch), batch)`, for `curvature="gauss_newton"`.

    Args:
      outputs: `(params, batch) -> [batch, ...]`.
      loss: `(outputs, batch) -> mean loss`, convex in the outputs.
    Returns:
      A loss of `(params, batch)` that remembers its parts.
    """
    return SplitLoss(outputs, loss)


def normalize_outputs(
    outputs: Callable[[PyTree, PyTree], Array],
) -> Callable[[PyTree, PyTree], Array]:
    """Outputs centred and scaled to unit variance over the classes of each example.

    Andriushchenko et al. 2023 (arXiv:2302.07011) normalise logits so before they compare the
    sharpness of networks whose logits have different scales.
    """

    def normalized(params: PyTree, batch: PyTree) -> Array:
        return jax.nn.standardize(outputs(params, batch), axis=-1, epsilon=0.0)

    return normalized


def check_curvature(caller: str, loss_fn: LossFn, curvature: str) -> None:
    """The curvature is known, and the loss is split where it has to be."""
    check_choice(caller, choices=CURVATURES, curvature=curvature)
    if curvature == "gauss_newton" and not isinstance(loss_fn, SplitLoss):
        raise ValueError(
            f"{caller}: curvature='gauss_newton' needs the outputs apart from the loss; pass "
            "loss_fn=sharpness.split_loss(outputs, loss)."
        )


def curvature_product(
    loss_fn: LossFn, params: PyTree, data: Data, curvature: str
) -> tuple[Callable[[Array], Array], Array]:
    """Returns v -> C v over flat vectors, and the flat parameters."""
    flat, unravel = ravel_pytree(params)

    def product(vector: Array) -> Array:
        tangent = unravel(vector)
        if curvature == "hessian":
            gradient = jax.grad(scalar(loss_fn))

            def one(batch: PyTree) -> PyTree:
                return jax.jvp(lambda w: gradient(w, batch), (params,), (tangent,))[1]
        else:
            assert isinstance(loss_fn, SplitLoss)
            outputs, loss = loss_fn.outputs, loss_fn.loss

            def one(batch: PyTree) -> PyTree:
                out, pull = jax.vjp(lambda w: outputs(w, batch), params)
                push = jax.jvp(lambda w: outputs(w, batch), (params,), (tangent,))[1]
                bent = jax.jvp(jax.grad(lambda z: jnp.asarray(loss(z, batch))), (out,), (push,))[1]
                return pull(bent)[0]

        return ravel_pytree(average(one, data))[0]

    return product, flat
