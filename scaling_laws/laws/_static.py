"""Laws of the final loss in model size, data and compute."""

import dataclasses
from typing import Any, ClassVar

import jax.numpy as jnp

from scaling_laws.laws._base import Law, Parameter, power

EXPONENTS = (0.1, 0.25, 0.4, 0.7, 1.1)


def _irreducible(symbol):
    return Parameter(symbol, "loss at infinite size and data", linear=True, unit={"loss": 1})


def _exponent(symbol, dimension, starts=EXPONENTS):
    return Parameter(symbol, f"exponent of {dimension}", "linear", 0.0, 5.0, starts=starts)


@dataclasses.dataclass(frozen=True)
class Chinchilla(Law):
    """L(N, D) = E + A / N^alpha + B / D^beta (Hoffmann et al. 2022, arXiv:2203.15556).

    Data: `params` (N) and `tokens` (D), or `params` and `flops` with D = flops / (6 N).
    `tie_exponents` sets beta = alpha, for data with too few sizes to tell them apart. Other
    constraints are the `fixed` argument of `fit`, for example `fixed={"E": 1.69}`.
    """

    tie_exponents: bool = False
    inputs: ClassVar[Any] = ("params", "tokens")

    @property
    def parameters(self):
        beta = "alpha" if self.tie_exponents else "beta"
        shared = (
            _irreducible("E"),
            Parameter(
                "A", "loss from finite size", linear=True, unit={"loss": 1, "params": "alpha"}
            ),
            Parameter("B", "loss from finite data", linear=True, unit={"loss": 1, "tokens": beta}),
            _exponent("alpha", "N"),
        )
        return shared if self.tie_exponents else (*shared, _exponent("beta", "D"))

    def predict(self, params, inputs):
        """E + A N^-alpha + B D^-beta."""
        beta = params["alpha"] if self.tie_exponents else params["beta"]
        size = params["A"] * power(inputs["params"], -params["alpha"])
        return params["E"] + size + params["B"] * power(inputs["tokens"], -beta)


@dataclasses.dataclass(frozen=True)
class PowerLaw(Law):
    """L(x) = E + A x^-alpha in one variable: `params`, `tokens` or `flops`.

    Henighan et al. 2020, arXiv:2010.14701, write (x0 / x)^alpha: x0 = A^(1 / alpha) where the loss
    is in nats. `irreducible=False` drops E.
    """

    variable: str = "params"
    irreducible: bool = True

    @property
    def inputs(self):
        return (self.variable,)

    @property
    def parameters(self):
        amplitude = Parameter(
            "A", "reducible loss", linear=True, unit={"loss": 1, self.variable: "alpha"}
        )
        rest = (amplitude, _exponent("alpha", self.variable))
        return (_irreducible("E"), *rest) if self.irreducible else rest

    def predict(self, params, inputs):
        """E + A x^-alpha."""
        reducible = params["A"] * power(inputs[self.variable], -params["alpha"])
        return params["E"] + reducible if self.irreducible else reducible

    def needed(self, params, reducible_loss):
        """The x at which the reducible loss falls to `reducible_loss`."""
        return (params["A"] / reducible_loss) ** (1 / params["alpha"])


@dataclasses.dataclass(frozen=True)
class EncoderDecoder(Law):
    """L(Ne, Nd) = E + A Ne^-pe Nd^-pd (Ghorbani et al. 2021, arXiv:2109.07740).

    Data: `encoder_params` and `decoder_params`, without embeddings. The paper's constant alpha is
    A in units of a reference model: alpha = A / (Ne0^pe Nd0^pd).
    """

    inputs: ClassVar[Any] = ("encoder_params", "decoder_params")

    @property
    def parameters(self):
        unit = {"loss": 1, "encoder_params": "pe", "decoder_params": "pd"}
        return (
            _irreducible("E"),
            Parameter("A", "reducible loss", linear=True, unit=unit),
            _exponent("pe", "the encoder"),
            _exponent("pd", "the decoder"),
        )

    def predict(self, params, inputs):
        """E + A Ne^-pe Nd^-pd."""
        encoder = power(inputs["encoder_params"], -params["pe"])
        return params["E"] + params["A"] * encoder * power(inputs["decoder_params"], -params["pd"])

    def best_split(self, params, total):
        """(encoder, decoder) parameters that minimise the loss for a given total.

        Their shares are pe / (pe + pd) and pd / (pe + pd).
        """
        share = params["pe"] / (params["pe"] + params["pd"])
        return share * total, (1 - share) * total


@dataclasses.dataclass(frozen=True)
class BrokenPowerLaw(Law):
    """L(x) = E + A x^-c0 (1 + (x / d)^(1 / f))^(-c1 f): one smooth break at x = d.

    Caballero et al. 2022, arXiv:2210.14891, with one break: slope c0 before d and c0 + c1 after
    it, over about a factor 10^f either side. c1 may be negative.
    """

    variable: str = "params"

    @property
    def inputs(self):
        return (self.variable,)

    @property
    def parameters(self):
        x = self.variable
        return (
            _irreducible("E"),
            Parameter(
                "A", "reducible loss before the break", linear=True, unit={"loss": 1, x: "c0"}
            ),
            Parameter("c0", "slope before the break", "linear", -2.0, 5.0, starts=(0.1, 0.5, 1.0)),
            Parameter("c1", "change of slope", "linear", -5.0, 5.0, starts=(-0.3, 0.3, 0.8)),
            Parameter("d", "where it breaks", starts=(0.1, 1.0, 10.0), unit={x: 1}),
            Parameter("f", "width of the break", low=0.02, high=5.0, starts=(0.1, 0.5)),
        )

    def predict(self, params, inputs):
        """E + A x^-c0 (1 + (x / d)^(1 / f))^(-c1 f)."""
        log_x = jnp.log(inputs[self.variable])
        # log(1 + e^u) is finite for a sharp break, where (x / d)^(1 / f) itself overflows.
        turn = jnp.logaddexp((log_x - jnp.log(params["d"])) / params["f"], 0.0)
        exponent = -params["c0"] * log_x - params["c1"] * params["f"] * turn
        return params["E"] + params["A"] * jnp.exp(exponent)


@dataclasses.dataclass(frozen=True)
class Crossover(Law):
    """L(x) = E + (F^p + G^p)^(1/p) with F = A x^-alpha, G = B x^-beta: two laws, the worse rules.

    For positive sharpness p the larger of the two dominates: the law in small x hands over to the
    one with the smaller exponent (beta < alpha) where they cross, at x = (A / B)^(1 / (alpha -
    beta)). p = 1 is their sum.
    """

    variable: str = "params"
    sharpness: float = 4.0

    @property
    def inputs(self):
        return (self.variable,)

    @property
    def parameters(self):
        x = self.variable
        return (
            _irreducible("E"),
            Parameter("A", "first law", starts=(0.1, 1.0), unit={"loss": 1, x: "alpha"}),
            Parameter("B", "second law", starts=(0.1, 1.0), unit={"loss": 1, x: "beta"}),
            _exponent("alpha", "the first law", (0.5, 1.0, 1.5)),
            _exponent("beta", "the second law", (0.05, 0.2, 0.4)),
        )

    def predict(self, params, inputs):
        """E + the p-norm of the two power laws."""
        log_x = jnp.log(inputs[self.variable])
        first = jnp.log(params["A"]) - params["alpha"] * log_x
        second = jnp.log(params["B"]) - params["beta"] * log_x
        p = self.sharpness
        return params["E"] + jnp.exp(jnp.logaddexp(p * first, p * second) / p)

    def canonical(self, z):
        """The first law is the steeper one: the two may be named either way round."""
        return z if z[3] >= z[4] else z[[0, 2, 1, 4, 3]]

    def crossing(self, params):
        """The x at which the two laws are equal."""
        return (params["A"] / params["B"]) ** (1 / (params["alpha"] - params["beta"]))
