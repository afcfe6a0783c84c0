"""ESAM: SAM with part of the weights perturbed and part of the examples in the second pass."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from sam_free._batch import Array, Batch, PyTree
from sam_free._checks import check_not_negative, check_whole
from sam_free._groups import batch_size
from sam_free._losses import cross_entropy
from sam_free._sam import LossFn
from sam_free._tree import norm, reciprocal

ExampleLoss = Callable[[Any, Batch], Array]


def output_cross_entropy(aux: Any, batch: Batch) -> Array:
    """Cross-entropy of each example from `aux.logits` and `batch["label"]`, [batch]."""
    return cross_entropy(aux.logits, batch)


def esam_gradient(
    loss_fn: LossFn,
    *,
    rho: float,
    key: Array | None = None,
    beta: float = 0.6,
    gamma: float = 0.5,
    example_loss: ExampleLoss = output_cross_entropy,
    group_size: int | None = None,
    axis_name: str | None = None,
) -> "ESAM":
    """Efficient SAM (Du et al. 2022, arXiv:2110.03141, Alg. 1).

    Each entry of the weights is perturbed with probability beta, by rho / beta times the
    normalised gradient. The gradient is then taken at the perturbed weights over the share gamma
    of the examples whose loss grew most. beta = gamma = 1 is SAM.

    The time saved is that of the backward pass over the other examples: a forward pass over all of
    them chooses. Leaving entries unperturbed saves none under XLA.

    The rule has a state, the number of steps, from which it draws the entries: `init(params)`
    makes it, and `(params, batch, state)` returns `((loss, aux), grads, state)`. Called without
    one, it is at its first step and returns `((loss, aux), grads)`.

    Args:
      loss_fn: `(params, batch) -> (loss, aux)`, the loss a mean over the batch.
      rho: radius >= 0; at 0 the rule is `jax.value_and_grad`.
      key: for the choice of entries; needed where beta < 1.
      beta: in (0, 1], chance of an entry to be perturbed.
      gamma: in (0, 1], share of the examples in the second pass.
      example_loss: `(aux, batch) -> [batch]`, the loss of each example from what loss_fn hands
        out; the cross-entropy of `aux.logits` unless given.
      group_size: the share gamma is chosen among every group_size consecutive examples; it must
        divide a device's share. None: among a device's share, which makes the choice depend on
        the number of devices.
      axis_name: of the mapped axis over which the batch is split; None: it is not.
    Returns:
      The rule.
    Raises:
      ValueError: an argument is out of its range, or beta < 1 and there is no key.
    """
    check_not_negative("esam_gradient", rho=rho)
    for name, value in (("beta", beta), ("gamma", gamma)):
        if not 0 < value <= 1:
            raise ValueError(f"esam_gradient: {name} must be in (0, 1], got {value!r}.")
    if group_size is not None:
        check_whole("esam_gradient", least=1, group_size=group_size)
    if key is None and beta < 1 and rho > 0:
        raise ValueError(
            f"esam_gradient: beta={beta} draws which entries to perturb and needs a key; pass "
            "key=jax.random.key(seed), or beta=1.0 to perturb all."
        )
    return ESAM(loss_fn, rho, key, beta, gamma, example_loss, group_size, axis_name)


@dataclasses.dataclass(frozen=True, eq=False)
class ESAM:
    """The rule that `esam_gradient` makes. Its state is the number of steps done."""

    loss_fn: LossFn
    rho: float
    key: Array | None
    beta: float
    gamma: float
    example_loss: ExampleLoss
    group_size: int | None
    axis_name: str | None

    def init(self, params: PyTree) -> Array:
        """Step 0."""
        del params
        return jnp.zeros((), jnp.int32)

    def __call__(self, params: PyTree, batch: Batch, state: Any = None):
        """The value, the gradient and, where a state was given, the next state."""
        value, grads = jax.value_and_grad(self.loss_fn, has_aux=True)(params, batch)
        if self.rho > 0:
            step = jnp.zeros((), jnp.int32) if state is None else state
            grads = self._second_pass(params, batch, value[1], grads, step)
        return (value, grads) if state is None else (value, grads, state + 1)

    def _second_pass(
        self, params: PyTree, batch: Batch, aux: Any, grads: PyTree, step: Array
    ) -> PyTree:
        if self.axis_name is not None:
            grads = jax.lax.pmean(grads, self.axis_name)
        there = self._perturb(params, grads, step)
        chosen = batch
        if self.gamma < 1:
            before = self.example_loss(aux, batch)
            after = self.example_loss(self.loss_fn(there, batch)[1], batch)
            chosen = jax.tree.map(self._take(after - before), batch)
        return jax.grad(self.loss_fn, has_aux=True)(there, chosen)[0]

    def _perturb(self, params: PyTree, grads: PyTree, step: Array) -> PyTree:
        scale = self.rho / self.beta * reciprocal(norm(grads))
        leaves, tree = jax.tree.flatten(grads)
        if self.beta < 1:
            keys = jax.random.split(jax.random.fold_in(self.key, step), len(leaves))
            leaves = [
                jnp.where(jax.random.bernoulli(key, self.beta, leaf.shape), leaf, 0)
                for key, leaf in zip(keys, leaves)
            ]
        return jax.tree.map(
            lambda w, g: w + (scale * g).astype(w.dtype), params, jax.tree.unflatten(tree, leaves)
        )

    def _take(self, growth: Array) -> Callable[[Array], Array]:
        """Picks, in each group, the examples whose loss grew most."""
        size = batch_size({"growth": growth})
        group = self.group_size or size
        if size % group:
            raise ValueError(
                f"esam_gradient: group_size={group} must divide a device's share of the batch, "
                f"{size} examples."
            )
        count = max(1, round(self.gamma * group))
        _, places = jax.lax.top_k(growth.reshape(-1, group), count)
        first = group * jnp.arange(size // group, dtype=places.dtype)
        rows = (first[:, None] + places).reshape(-1)
        return lambda x: x[rows]
