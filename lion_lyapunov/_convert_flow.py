"""The flow's constants as settings of the optimizer, and dynamics known in continuous time.

m' = -alpha grad f(x) - gamma m,   x' = grad K(m + eps m') - lam x.
"""

from lion_lyapunov._checks import Number, check_non_negative, check_positive
from lion_lyapunov._combine import scaled
from lion_lyapunov._kappa import Kappa
from lion_lyapunov._member import Ode, Settings, require


def from_ode(kappa: Kappa, ode: Ode) -> Settings:
    """The Euler scheme of the flow: b1 = 1 - eps gamma, b2 = 1 - step gamma; needs alpha = gamma.

    For a kappa with a scale-free subgradient (all norms) alpha has no effect and is not checked.
    """
    if ode.alpha != ode.gamma and not kappa.is_support:
        raise ValueError(
            f"from_ode: alpha must equal gamma for {kappa!r}, got {ode.alpha} and {ode.gamma}; "
            "rescale the kappa's argument by alpha / gamma instead."
        )
    return Settings(
        kappa,
        ode.step_size,
        1.0 - ode.eps * ode.gamma,
        1.0 - ode.step_size * ode.gamma,
        ode.weight_decay,
    )


def to_ode(settings: Settings) -> Ode:
    """gamma = alpha = (1 - b2) / lr, eps = lr (1 - b1) / (1 - b2); needs b2 < 1.

    >>> from lion_lyapunov.kappas import l1
    >>> to_ode(Settings(l1(), 1e-4, 0.9, 0.99, 1e-3))
    Ode(alpha=100.0..., gamma=100.0..., eps=0.0009..., weight_decay=0.001, step_size=0.0001)
    """
    require(settings, settings.b2 < 1, "to_ode", "b2 < 1")
    rate = settings.learning_rate
    gamma = (1.0 - settings.b2) / rate
    eps = rate * (1.0 - settings.b1) / (1.0 - settings.b2)
    return Ode(gamma, gamma, eps, settings.weight_decay, rate)


def hamiltonian_descent(*, gamma: float, weight_decay: float = 0.0, step_size: float = 0.0) -> Ode:
    """Hamiltonian descent, p' = -grad f(x) - gamma p, x' = grad K(p) - lam x: eps = 0 (b1 = 1).

    Maddison et al. (2018, arXiv:1809.05042) with K the kinetic energy and lam = 0; lam > 0 makes
    the objective composite, f + (gamma / lam) K*(lam x). alpha is 1, so with a gamma other than 1
    `from_ode` has an optimizer for norms alone.
    """
    check_positive("hamiltonian_descent", gamma=gamma)
    check_non_negative("hamiltonian_descent", weight_decay=weight_decay, step_size=step_size)
    return Ode(1.0, gamma, 0.0, weight_decay, step_size)


def from_dual_preconditioning(learning_rate: float, kappa: Kappa) -> Settings:
    """Dual-space preconditioned descent, x+ = x + lr grad K(-grad f(x)): no memory, no decay.

    Maddison et al. (2021, arXiv:1902.02257).
    """
    return Settings(kappa, learning_rate, 0.0, 0.0)


def from_mirror_descent(learning_rate: float, objective: Kappa) -> Settings:
    """Mirror descent y+ = y - lr grad phi(grad h*(y)) on an even function phi, as Lion-K.

    Roles are exchanged: the objective phi is the kappa, the function whose gradient the optimizer
    is given is h*, the conjugate of the mirror map, and its parameters are the dual variable y.
    """
    if not objective.is_even:
        raise ValueError(f"from_mirror_descent: objective must be even, got {objective!r}.")
    return from_dual_preconditioning(learning_rate, objective)


def accelerated_mirror_descent(
    mirror: Kappa, time: Number, *, r: Number = 3.0
) -> tuple[Kappa, Ode]:
    """Accelerated mirror descent at one time, as arguments of `flow.vector_field`.

    z' = -(t / r) grad f(x), x' = (r / t) (grad psi*(z) - x) of Krichene, Bayen and Bartlett (2015):
    gamma = eps = 0, alpha = t / r, lam = r / t and K = lam psi*. In continuous time only: alpha and
    gamma differ, which no b2 expresses.

    Args:
      mirror: psi*, the conjugate of the mirror map; `log_sum_exp(1.0)` for the simplex.
      time: t > 0.
      r: >= 2 for the rate 1 / t^2.
    Returns:
      The kappa and the constants; `step_size` is 0.
    """
    check_positive("accelerated_mirror_descent", time=time, r=r)
    return scaled(mirror, r / time), Ode(time / r, 0.0, 0.0, r / time, 0.0)
