"""Lion-K as links of an optax chain."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from lion_lyapunov._checks import Number, check_non_negative, check_unit_interval
from lion_lyapunov._kappa import Kappa
from lion_lyapunov._low_precision import MomentumFormat

PyTree = Any


class ScaleByLionKState(NamedTuple):
    """State of `scale_by_lion_k`: one buffer and no counter."""

    mu: optax.Updates  # average of past gradients: the tree and shapes of the parameters
    key: jax.Array | None = None  # raw key data; only a stochastically rounded `mu` has one

    @property
    def momentum(self) -> optax.Updates:
        """`mu` under its long name."""
        return self.mu


def scale_by_lion_k(
    kappa: Kappa,
    *,
    b1: Number,
    b2: Number,
    mu_dtype: jax.typing.DTypeLike | MomentumFormat | None = None,
) -> optax.GradientTransformation:
    """Replaces each gradient g by -subgradient(-c), c = b1 mu + (1 - b1) g, averages g into mu.

    For an even kappa that is subgradient(c). The result is added up to a step by
    `optax.scale_by_learning_rate`, after `optax.add_decayed_weights` (see `lion_k`).

    Args:
      kappa: from `lion_lyapunov.kappas`; acts on each leaf unless it takes a tree.
      b1: weight of the momentum in the direction, in [0, 1].
      b2: decay of the momentum, in [0, 1].
      mu_dtype: dtype of the momentum (that of the gradients when None), or a format of
        `lion_lyapunov.low_precision`.
    Raises:
      TypeError: `kappa` is not a kappa.
      ValueError: b1 or b2 is outside [0, 1].
    Reference: Chen, Liu, Liang and Liu (2023), arXiv:2310.05898.
    """
    if not isinstance(kappa, Kappa):
        raise TypeError(
            "scale_by_lion_k: kappa must come from lion_lyapunov.kappas, for example kappas.l1(), "
            f"got {kappa!r}."
        )
    check_unit_interval("scale_by_lion_k", closed=True, b1=b1, b2=b2)
    if isinstance(mu_dtype, MomentumFormat):
        return _with_format(kappa, b1, b2, mu_dtype)
    dtype = None if mu_dtype is None else jax.dtypes.canonicalize_dtype(mu_dtype)

    def init(params):
        return ScaleByLionKState(optax.tree.zeros_like(params, dtype=dtype))

    def update(updates, state, params=None):
        del params  # weight decay is a link of its own
        directions = direction(kappa, updates, state.mu, b1)
        mu = optax.tree.cast(optax.tree.update_moment(updates, state.mu, b2, 1), dtype)
        return directions, ScaleByLionKState(mu)

    return optax.GradientTransformation(init, update)


def direction(kappa: Kappa, grads: PyTree, mu: PyTree, b1: Number) -> PyTree:
    """-subgradient(-c) with c = b1 mu + (1 - b1) g, in optax's sign: what is subtracted."""
    # The expression of optax.lion, term for term: another order of operations loses the last bit.
    mixed = jax.tree.map(lambda g, m: (1.0 - b1) * g + b1 * m, grads, mu)
    if kappa.is_even:
        return kappa.subgradient(mixed) if kappa.over_tree else _each(kappa, mixed)
    negative = jax.tree.map(jnp.negative, mixed)
    slopes = kappa.subgradient(negative) if kappa.over_tree else _each(kappa, negative)
    return jax.tree.map(jnp.negative, slopes)


def _each(kappa: Kappa, tree: PyTree) -> PyTree:
    return jax.tree.map(kappa.subgradient, tree)


def _with_format(
    kappa: Kappa, b1: Number, b2: Number, stored: MomentumFormat
) -> optax.GradientTransformation:
    def init(params):
        zeros = jax.tree.map(lambda p: stored.encode(jnp.zeros_like(p), None), params)
        key = None if stored.key is None else jax.random.key_data(stored.key)
        return ScaleByLionKState(zeros, key)

    def update(updates, state, params=None):
        del params
        grads, structure = jax.tree.flatten(updates)
        packed = structure.flatten_up_to(state.mu)
        mu = [stored.decode(m, g) for m, g in zip(packed, grads)]
        directions = direction(kappa, updates, structure.unflatten(mu), b1)
        averages = optax.tree.update_moment(grads, mu, b2, 1)
        if state.key is None:
            keys, after = [None] * len(grads), None
        else:
            keys = list(jax.random.split(jax.random.wrap_key_data(state.key), len(grads) + 1))
            after = jax.random.key_data(keys.pop())
        packed = [stored.encode(m, key) for m, key in zip(averages, keys)]
        return directions, ScaleByLionKState(structure.unflatten(packed), after)

    return optax.GradientTransformation(init, update)


def lion_k(
    learning_rate: optax.ScalarOrSchedule,
    kappa: Kappa,
    *,
    b1: Number = 0.9,
    b2: Number = 0.99,
    weight_decay: optax.ScalarOrSchedule = 0.0,
    mask: PyTree | Callable[[optax.Params], PyTree] | None = None,
    mu_dtype: jax.typing.DTypeLike | MomentumFormat | None = None,
) -> optax.GradientTransformationExtraArgs:
    """Lion-K: minimises f(x) + K*(weight_decay x) / weight_decay.

    For a norm K that is f under |x|_dual <= 1 / weight_decay, whatever the learning rate.

    Args:
      learning_rate: a number, or a schedule from the step count to a number.
      kappa: the convex function K, from `lion_lyapunov.kappas`; `l1()` gives Lion, bit for bit.
      b1: weight of the momentum in the direction, in [0, 1].
      b2: decay of the momentum, in [0, 1]; the theory needs b1 <= b2.
      weight_decay: decoupled, multiplied by `learning_rate` as in `optax.adamw`; or a schedule.
      mask: leaves that decay, as in `optax.add_decayed_weights`.
      mu_dtype: dtype or format of the momentum, as in `scale_by_lion_k`.
    Returns:
      An optax transformation whose state holds one buffer of the size of the parameters.
    Raises:
      ValueError: b1 or b2 is outside [0, 1], `weight_decay` is negative, or a number is NaN.

    >>> import jax, jax.numpy as jnp, optax
    >>> from lion_lyapunov import kappas, lion_k
    >>> optimizer = lion_k(0.1, kappas.l1(), weight_decay=0.5)
    >>> params = jnp.array([0.0, 4.0])
    >>> grads = jnp.array([2.0, -3.0])
    >>> updates, state = optimizer.update(grads, optimizer.init(params), params)
    >>> print(optax.apply_updates(params, updates))
    [-0.1  3.9]
    """
    check_rates("lion_k", learning_rate=learning_rate, weight_decay=weight_decay)
    return optax.chain(
        scale_by_lion_k(kappa, b1=b1, b2=b2, mu_dtype=mu_dtype),
        optax.add_decayed_weights(weight_decay, mask),
        optax.scale_by_learning_rate(learning_rate),
    )


def check_rates(caller: str, **values: Any) -> None:
    """Raises for a learning rate or weight decay that is negative, NaN or infinite."""
    for name, value in values.items():
        if not callable(value):
            check_non_negative(caller, **{name: value})
