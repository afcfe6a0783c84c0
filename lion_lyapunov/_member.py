"""A member of the family as its hyper-parameters: of the optimizer and of the flow."""

from typing import Any, NamedTuple

import optax

from lion_lyapunov._kappa import Kappa
from lion_lyapunov._transform import lion_k


class Settings(NamedTuple):
    """A member of the family."""

    kappa: Kappa
    learning_rate: Any  # number or schedule
    b1: Any  # number, or a schedule from the step count
    b2: float
    weight_decay: Any = 0.0  # number or schedule

    def optimizer(self, **options: Any) -> optax.GradientTransformationExtraArgs:
        """`lion_k` with these settings; `options` are `mask` and `mu_dtype`."""
        if callable(self.b1):
            static = tuple(name for name in ("mask", "mu_dtype") if name in options)
            return optax.inject_hyperparams(lion_k, static_args=static)(
                learning_rate=self.learning_rate,
                kappa=self.kappa,
                b1=self.b1,
                b2=self.b2,
                weight_decay=self.weight_decay,
                **options,
            )
        return lion_k(
            self.learning_rate,
            self.kappa,
            b1=self.b1,
            b2=self.b2,
            weight_decay=self.weight_decay,
            **options,
        )


class Ode(NamedTuple):
    """Constants of the flow and the step of its Euler scheme."""

    alpha: float
    gamma: float
    eps: float
    weight_decay: float
    step_size: float


def require(settings: Settings, condition: bool, target: str, needs: str) -> None:
    """Raises ValueError, naming the settings, where `condition` does not hold."""
    if not condition:
        raise ValueError(
            f"{target}: needs {needs}, got {settings.kappa!r} with b1={settings.b1!r}, "
            f"b2={settings.b2!r}, weight_decay={settings.weight_decay!r}."
        )
