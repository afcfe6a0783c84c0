"""Known optimizers as members of the family, under their own names."""

import math
from collections.abc import Callable, Mapping
from typing import Any

import jax
import optax

from lion_lyapunov._checks import Number, check_positive, check_unit_interval
from lion_lyapunov._combine import scaled
from lion_lyapunov._kappa import Kappa
from lion_lyapunov._low_precision import MomentumFormat
from lion_lyapunov._norms import l2
from lion_lyapunov._parts import by_shape, whole_tree
from lion_lyapunov._separable import l1
from lion_lyapunov._spectral import nuclear
from lion_lyapunov._transform import lion_k

Optimizer = optax.GradientTransformationExtraArgs
Mask = Any | Callable[[optax.Params], Any] | None
MuDtype = jax.typing.DTypeLike | MomentumFormat | None


def lion(
    learning_rate: optax.ScalarOrSchedule,
    b1: Number = 0.9,
    b2: Number = 0.99,
    mu_dtype: MuDtype = None,
    weight_decay: optax.ScalarOrSchedule = 1e-3,
    mask: Mask = None,
) -> Optimizer:
    """Lion with the arguments and the bits of `optax.lion`, in a state without a counter."""
    return lion_k(
        learning_rate,
        l1(),
        b1=b1,
        b2=b2,
        weight_decay=weight_decay,
        mask=mask,
        mu_dtype=mu_dtype,
    )


def signum(
    learning_rate: optax.ScalarOrSchedule,
    *,
    beta: Number = 0.9,
    weight_decay: optax.ScalarOrSchedule = 0.0,
    mask: Mask = None,
    mu_dtype: MuDtype = None,
) -> Optimizer:
    """Sign of the averaged gradient (Bernstein et al. 2018): l1 with b1 = b2 = beta."""
    return lion_k(
        learning_rate,
        l1(),
        b1=beta,
        b2=beta,
        weight_decay=weight_decay,
        mask=mask,
        mu_dtype=mu_dtype,
    )


def normalized_sgd(
    learning_rate: optax.ScalarOrSchedule,
    *,
    momentum: Number = 0.0,
    weight_decay: optax.ScalarOrSchedule = 0.0,
    mask: Mask = None,
    mu_dtype: MuDtype = None,
) -> Optimizer:
    """Steps of fixed length along the averaged gradient of the whole model (one l2 norm)."""
    return lion_k(
        learning_rate,
        whole_tree(l2()),
        b1=momentum,
        b2=momentum,
        weight_decay=weight_decay,
        mask=mask,
        mu_dtype=mu_dtype,
    )


def muon_kappa(method: str = "newton_schulz", *, other: Kappa | None = None) -> Kappa:
    """The kappa of `muon`: sqrt(max(1, fan_out / fan_in)) nuclear on matrices, `other` elsewhere.

    A matrix is [fan_in, fan_out], as in flax. The constraint on it is
    |X|_op <= sqrt(max(1, fan_out / fan_in)) / weight_decay.

    Args:
      method: of `kappas.nuclear`.
      other: for leaves that are not matrices; `l1()` by default.
    """
    matrix = nuclear(method)
    rest = l1() if other is None else other

    def choose(shape):
        if len(shape) != 2:
            return rest
        return scaled(matrix, math.sqrt(max(1.0, shape[1] / max(shape[0], 1))))

    return by_shape(choose, name="muon_kappa")


def muon(
    learning_rate: optax.ScalarOrSchedule,
    *,
    beta: float = 0.95,
    nesterov: bool = True,
    weight_decay: optax.ScalarOrSchedule = 0.0,
    mask: Mask = None,
    mu_dtype: MuDtype = None,
    method: str = "newton_schulz",
    other: Kappa | None = None,
) -> Optimizer:
    """Muon: orthogonalised momentum on matrices, Lion on all other leaves.

    With `nesterov` this is Keller Jordan's rule, b1 = beta^2 and b2 = beta. `optax.contrib.muon`
    corrects the bias of its average, which changes the first steps;
    `convert.from_optax_muon` follows it exactly.

    Args:
      learning_rate: size of a step in the operator norm, up to the factor of `muon_kappa`.
      beta: decay of the momentum, in [0, 1).
      nesterov: whether the current gradient is mixed in once more.
      weight_decay: bounds the operator norm at 1 / weight_decay times that factor.
      mask: leaves that decay.
      mu_dtype: dtype or format of the momentum.
      method: "newton_schulz" (five steps; certified singular values <= 1), "polar" (converged) or
        "svd".
      other: kappa of leaves that are not matrices; `scaled(l1(), 0.1)` moves them a tenth as far.
    """
    check_unit_interval("muon", closed=False, beta=beta)
    return lion_k(
        learning_rate,
        muon_kappa(method, other=other),
        b1=beta * beta if nesterov else beta,
        b2=beta,
        weight_decay=weight_decay,
        mask=mask,
        mu_dtype=mu_dtype,
    )


def scion_kappa(method: str = "polar") -> Kappa:
    """The kappa of `scion`: sqrt(fan_out / fan_in) nuclear on matrices, sqrt(size) l2 elsewhere."""
    matrix, vector = nuclear(method), l2()

    def choose(shape):
        if len(shape) == 2:
            return scaled(matrix, math.sqrt(max(shape[1], 1) / max(shape[0], 1)))
        return scaled(vector, math.sqrt(max(math.prod(shape), 1)))

    return by_shape(choose, name="scion_kappa")


def scion(
    learning_rate: optax.ScalarOrSchedule,
    kappa: Kappa | None = None,
    *,
    momentum: Number = 0.1,
    radius: float = 1.0,
    constrained: bool = True,
    mu_dtype: MuDtype = None,
) -> Optimizer:
    """Scion (Pethick et al. 2025, arXiv:2502.07529): stochastic Frank-Wolfe with momentum.

    x <- (1 - learning_rate) x - learning_rate radius v, with v the unit vector of the dual ball
    that follows the averaged gradient.

    Args:
      learning_rate: share of the way to the vertex, in [0, 1], or a schedule.
      kappa: whose dual ball is the unit ball; `scion_kappa()` by default.
      momentum: weight of the new gradient in the average, in (0, 1]; Scion's convention.
      radius: of the ball.
      constrained: False drops the decay (unconstrained Scion).
      mu_dtype: dtype or format of the momentum.
    """
    check_positive("scion", radius=radius)
    check_unit_interval("scion", closed=True, momentum=momentum)
    rate = _times(learning_rate, radius)
    return lion_k(
        rate,
        scion_kappa() if kappa is None else kappa,
        b1=1.0 - momentum,
        b2=1.0 - momentum,
        weight_decay=1.0 / radius if constrained else 0.0,
        mu_dtype=mu_dtype,
    )


def frank_wolfe(
    step_size: optax.ScalarOrSchedule,
    kappa: Kappa,
    *,
    radius: float = 1.0,
    momentum: Number = 1.0,
) -> Optimizer:
    """Frank-Wolfe on {x : x / radius in the domain of K*}: x <- (1 - s) x + s radius vertex.

    Args:
      step_size: s in [0, 1], or a schedule such as `lambda t: 2 / (t + 2)`.
      kappa: a support function, such as a norm or `from_lmo(...)`.
      radius: of the set.
      momentum: weight of the new gradient in the average, in (0, 1]; 1 has no memory.
    """
    if not kappa.is_support:
        raise ValueError(f"frank_wolfe: kappa must be a support function, got {kappa!r}.")
    return scion(step_size, kappa, momentum=momentum, radius=radius)


def lion_k_groups(
    learning_rate: optax.ScalarOrSchedule,
    kappas: Mapping[str, Kappa],
    labels: Any | Callable[[optax.Params], Any],
    *,
    b1: Number = 0.9,
    b2: Number = 0.99,
    weight_decay: optax.ScalarOrSchedule | Mapping[str, Any] = 0.0,
    mu_dtype: MuDtype = None,
) -> Optimizer:
    """A kappa for each group of parameters, by `optax.partition`.

    Args:
      learning_rate: of all groups.
      kappas: label to kappa, for example `{"matrix": nuclear(), "rest": l1()}`.
      labels: a tree of labels (or a prefix), or a function from the parameters to one.
      b1, b2: of all groups.
      weight_decay: of all groups, or one for each label.
      mu_dtype: of all groups.
    """
    if isinstance(weight_decay, Mapping) and set(weight_decay) != set(kappas):
        raise ValueError(
            f"lion_k_groups: weight_decay needs the labels {sorted(kappas)}, got "
            f"{sorted(weight_decay)}."
        )

    def optimizer(label):
        decay = weight_decay[label] if isinstance(weight_decay, Mapping) else weight_decay
        return lion_k(
            learning_rate, kappas[label], b1=b1, b2=b2, weight_decay=decay, mu_dtype=mu_dtype
        )

    partitioned = optax.partition({label: optimizer(label) for label in kappas}, labels)
    return optax.with_extra_args_support(partitioned)


def _times(rate: optax.ScalarOrSchedule, factor: float) -> optax.ScalarOrSchedule:
    if callable(rate):
        return lambda count: rate(count) * factor
    return rate * factor
