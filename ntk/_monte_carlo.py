"""`monte_carlo_kernel_fn`: infinite-width kernels estimated by random finite networks."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ntk._batch import batch
from ntk.empirical import NtkImplementation, empirical_kernel_fn

Array = jax.Array
PyTree = Any
NAME = "monte_carlo_kernel_fn"


class Estimate(NamedTuple):
    """A mean over random networks."""

    value: PyTree
    error: PyTree  # standard error of the mean, entry by entry; inf after one sample


def monte_carlo_kernel_fn(
    init_fn: Callable[..., Any],
    apply_fn: Callable[..., PyTree],
    key: Array,
    n_samples: int | Iterable[int],
    batch_size: int = 0,
    device_count: int = -1,
    store_on_device: bool = True,
    trace_axes: int | Sequence[int] = (-1,),
    diagonal_axes: int | Sequence[int] = (),
    vmap_axes: Any = None,
    implementation: NtkImplementation | int = NtkImplementation.AUTO,
    _j_rules: bool = True,
    _s_rules: bool = True,
    _fwd: bool | None = None,
    *,
    errors: bool = False,
) -> Callable[..., Any]:
    """Averages empirical kernels over random parameters.

    Args:
      init_fn: `init_fn(key, input_shape) -> (output_shape, params)`.
      apply_fn: `apply_fn(params, x, **kwargs)`.
      key: of the random networks.
      n_samples: number of networks, or several numbers at which to give an estimate.
      batch_size, device_count, store_on_device: as in `ntk.batch`.
      trace_axes, diagonal_axes, vmap_axes, implementation: as in `ntk.empirical_kernel_fn`.
      _j_rules, _s_rules, _fwd: accepted for neural-tangents' sake; they change nothing here.
      errors: return an Estimate, with standard errors, in place of the mean.
    Returns:
      `kernel_fn(x1, x2=None, get=None, **apply_fn_kwargs)`; the mean kernel, or for several numbers
      a generator of them. A string `get` gives an array, a tuple (None: both) a named tuple.
      A keyword `rng` is folded with the number of the sample.
    Raises:
      ValueError: a number of samples is below 1.
    """
    del _j_rules, _s_rules, _fwd
    single = isinstance(n_samples, int | np.integer)
    counts = [int(n_samples)] if single else [int(n) for n in n_samples]
    if not counts or min(counts) < 1:
        raise ValueError(f"{NAME}: n_samples must be >= 1, got {n_samples!r}.")
    kernel_fn = batch(
        empirical_kernel_fn(apply_fn, trace_axes, diagonal_axes, vmap_axes, implementation),
        batch_size=batch_size,
        device_count=device_count,
        store_on_device=store_on_device,
        symmetric=False if tuple(np.ravel(trace_axes)) == () else None,
    )

    def estimates(x1: PyTree, x2: PyTree | None, get: Any, kwargs: dict) -> Iterator[Any]:
        shape = jax.tree.map(np.shape, x1)
        seen, mean, spread = 0, None, None
        for count in sorted(set(counts)):
            while seen < count:
                sample_key = jax.random.fold_in(key, seen)
                params = init_fn(sample_key, shape)[1]
                own = dict(kwargs)
                if own.get("rng") is not None:
                    own["rng"] = jax.random.fold_in(own["rng"], seen)
                sample = kernel_fn(x1, x2, get, params, **own)
                seen += 1
                if mean is None:
                    mean, spread = sample, jax.tree.map(jnp.zeros_like, sample)
                else:
                    mean, spread = _update(mean, spread, sample, seen)
            yield Estimate(mean, _standard_error(spread, seen)) if errors else mean

    def monte_carlo(
        x1: PyTree, x2: PyTree | None = None, get: Any = None, **apply_fn_kwargs: Any
    ) -> Any:
        """The mean kernel between `x1` and `x2` over random networks."""
        found = estimates(x1, x2, get, apply_fn_kwargs)
        return next(found) if single else found

    return monte_carlo


@jax.jit
def _update(mean: PyTree, spread: PyTree, sample: PyTree, count: Any) -> tuple[PyTree, PyTree]:
    """Welford's running mean and sum of squared deviations."""
    old = jax.tree.map(jnp.subtract, sample, mean)
    mean = jax.tree.map(lambda m, d: m + d / count, mean, old)
    spread = jax.tree.map(lambda s, d, v, m: s + d * (v - m), spread, old, sample, mean)
    return mean, spread


def _standard_error(spread: PyTree, count: int) -> PyTree:
    if count == 1:
        return jax.tree.map(lambda s: jnp.full_like(s, jnp.inf), spread)
    return jax.tree.map(lambda s: jnp.sqrt(s / (count * (count - 1))), spread)
