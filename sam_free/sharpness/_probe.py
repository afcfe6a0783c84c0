"""Sharpness as a probe of a training loop."""

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import jax

from sam_free._checks import check_choice
from sam_free.sharpness._data import Array, LossFn
from sam_free.sharpness._eigenvalues import top_eigenvalues
from sam_free.sharpness._sam import gradient_norm, sam_sharpness
from sam_free.sharpness._trace import trace

MEASURES = ("lambda_max", "trace", "sam_sharpness", "gradient_norm")


def probe(
    make_loss: Callable[[Any], LossFn],
    batches: Iterable[Any] | None = None,
    *,
    key: Array,
    measures: Iterable[str] = ("lambda_max", "sam_sharpness"),
    rho: float = 0.05,
    num_iters: int = 20,
    num_samples: int = 10,
) -> Callable[[Any, Any], Mapping[str, Array]]:
    """A function `(state, batch) -> scalars` that measures sharpness at `state.params`.

    Args:
      make_loss: from the state of the run to `loss_fn(params, batch)`, so that batch statistics
        can be taken from the state. Use the forward pass of evaluation, without dropout.
      batches: the data set to measure on; None: the batch that the probe is given.
      key: for start vectors and random signs, the same at every call.
      measures: among "lambda_max", "trace", "sam_sharpness", "gradient_norm".
      rho: radius of SAM's sharpness.
      num_iters: Lanczos steps.
      num_samples: random vectors of the trace.
    Returns:
      The probe. An estimate `x` comes with `x_error`.
    Raises:
      ValueError: a measure is unknown.
    """
    measures = tuple(measures)
    for measure in measures:
        check_choice("probe", choices=MEASURES, measures=measure)
    held = None if batches is None else list(batches)

    def measure_now(state: Any, batch: Any) -> Mapping[str, Array]:
        data = [batch] if held is None else held
        loss_fn, params = make_loss(state), state.params
        found: dict[str, Array] = {}
        if "lambda_max" in measures:
            top = top_eigenvalues(loss_fn, params, data, num_iters=num_iters, key=key)
            found |= {"lambda_max": top.value[0], "lambda_max_error": top.error[0]}
        if "trace" in measures:
            own_key = jax.random.fold_in(key, 1)
            total = trace(loss_fn, params, data, num_samples=num_samples, key=own_key)
            found |= {"trace": total.value, "trace_error": total.error}
        if "sam_sharpness" in measures:
            growth = sam_sharpness(loss_fn, params, data, rho=rho)
            found |= {"sam_sharpness": growth.value, "sam_sharpness_error": growth.error}
        if "gradient_norm" in measures:
            found["gradient_norm"] = gradient_norm(loss_fn, params, data)
        return found

    return measure_now
