"""Polynomials: monomials, Hermite polynomials, any coefficients. Kernels are exact moments."""

import dataclasses
import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from ntk.stax._activation import Activation, Dual
from ntk.stax._kernel_fn import as_network
from ntk.stax._layer import Network

Array = jax.Array


def moment_terms(coefficients: Sequence[float]) -> dict[tuple[int, int, int], float]:
    """E[p(u) p(v)] as a sum of c K^j v1^a v2^b.

    Isserlis: E[u^m v^n] is the sum over j of m! n! / (j! ((m-j)/2)! ((n-j)/2)! 2^((m+n-2j)/2))
    K^j v1^((m-j)/2) v2^((n-j)/2), for j of the parity of m and n.

    >>> moment_terms([0.0, 0.0, 1.0])
    {(0, 1, 1): 1.0, (2, 0, 0): 2.0}
    """
    terms: dict[tuple[int, int, int], float] = {}
    for m, left in enumerate(coefficients):
        for n, right in enumerate(coefficients):
            if left * right == 0 or (m - n) % 2:
                continue
            for j in range(m % 2, min(m, n) + 1, 2):
                a, b = (m - j) // 2, (n - j) // 2
                count = math.factorial(m) * math.factorial(n) / (
                    math.factorial(j) * math.factorial(a) * math.factorial(b) * 2 ** (a + b)
                )  # fmt: skip
                terms[j, a, b] = terms.get((j, a, b), 0.0) + float(left * right * count)
    return terms


def _evaluate(terms: dict[tuple[int, int, int], float], cross: Array, v1: Array, v2: Array):
    total = jnp.zeros_like(cross)
    for (j, a, b), factor in terms.items():
        total = total + factor * cross**j * v1**a * v2**b
    return total


@dataclasses.dataclass(frozen=True)
class PolynomialLayer(Activation):
    """Description of `Polynomial`."""

    coef: tuple[float, ...]

    def fn(self, x: Array) -> Array:
        """The polynomial."""
        total = jnp.full_like(x, self.coef[-1])
        for coefficient in self.coef[-2::-1]:
            total = total * x + coefficient
        return total

    def dual(self, cross: Array, var1: Array, var2: Array, q: Array) -> Dual:
        """Moments of a Gaussian pair."""
        del q
        slopes = [k * c for k, c in enumerate(self.coef)][1:] or [0.0]
        return Dual(
            _evaluate(moment_terms(self.coef), cross, var1, var2),
            _evaluate(moment_terms(slopes), cross, var1, var2),
        )


def Polynomial(coef: Sequence[float]) -> Network:
    """coef[0] + coef[1] x + ... + coef[n] x^n."""
    coef = tuple(float(c) for c in coef)
    if not coef or not all(map(math.isfinite, coef)):
        raise ValueError(f"Polynomial: coef must be a non-empty list of finite numbers: {coef}.")
    return as_network(PolynomialLayer(coef))


def Monomial(degree: int) -> Network:
    """x^degree, for an integer degree >= 0."""
    if int(degree) != degree or degree < 0:
        raise ValueError(f"Monomial: degree must be an integer >= 0, got {degree}.")
    return Polynomial([0.0] * int(degree) + [1.0])


def Hermite(degree: int) -> Network:
    """The Hermite polynomial of a degree, of norm 1 under the standard normal law.

    On inputs of unit variance the kernel is K^degree; other variances are treated exactly.
    """
    if int(degree) != degree or degree < 0:
        raise ValueError(f"Hermite: degree must be an integer >= 0, got {degree}.")
    unit = [0.0] * int(degree) + [1.0]
    coef = np.polynomial.hermite_e.herme2poly(unit) / math.sqrt(math.factorial(int(degree)))
    return Polynomial(coef)
