"""What operations of a jaxpr mean: functions with closed forms, and two layers that stax lacks."""

import dataclasses
from typing import Any

from ntk import stax
from ntk._kernel import Kernel
from ntk.stax._layer import Layer

CLOSED_FORMS = {
    "relu": lambda: stax.Relu(),
    "gelu": lambda: stax.Gelu(),
    "leaky_relu": lambda: stax.LeakyRelu(0.01),
    "silu": lambda: stax.Silu(),
    "softplus": lambda: stax.Softplus(),
    "elu": lambda: stax.Elu(),
    "sigmoid": lambda: stax.Sigmoid(),
}
PRIMITIVES = {
    "erf": lambda: stax.Erf(),
    "sin": lambda: stax.Sin(),
    "cos": lambda: stax.Cos(),
    "exp": lambda: stax.Exp(),
    "abs": lambda: stax.Abs(),
    "tanh": lambda: stax.Tanh(),
    "logistic": lambda: stax.Sigmoid(),
}
#: Primitives that act entry by entry, on arrays of one shape or numbers.
ENTRYWISE = frozenset((
    "add", "add_any", "sub", "mul", "div", "neg", "max", "min", "abs", "sign", "square", "sqrt",
    "rsqrt", "cbrt", "exp", "exp2", "expm1", "log", "log1p", "pow", "integer_pow", "tanh", "tan",
    "sin", "cos", "sinh", "cosh", "asinh", "acosh", "atanh", "asin", "acos", "atan", "atan2",
    "logistic", "erf", "erfc", "erf_inv", "floor", "ceil", "round", "clamp", "select_n", "eq", "ne",
    "lt", "le", "gt", "ge", "and", "or", "not", "is_finite", "stop_gradient",
    "convert_element_type", "copy",
))  # fmt: skip


@dataclasses.dataclass(frozen=True)
class BiasLayer(Layer):
    """A bias alone, with an initial standard deviation and a unit tangent kernel."""

    b_std: Any

    def kernel(self, kernel: Kernel, **kwargs: Any) -> Kernel:
        """Covariances gain b_std^2, the tangent kernel 1."""
        del kwargs
        square = self.b_std**2
        tangent = kernel.ntk
        return kernel.replace(
            nngp=kernel.nngp + square,
            ntk=None if tangent is None else tangent + 1,
            cov1=None if kernel.cov1 is None else kernel.cov1 + square,
            cov2=None if kernel.cov2 is None else kernel.cov2 + square,
            residual=kernel.residual if square == 0 else None,
        )


@dataclasses.dataclass(frozen=True)
class ScaleLayer(Layer):
    """Multiplication by a constant."""

    factor: float

    def kernel(self, kernel: Kernel, **kwargs: Any) -> Kernel:
        """Covariances take its square."""
        del kwargs
        return kernel.scale(self.factor**2)
