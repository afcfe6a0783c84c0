"""Softmax regression: find x such that softmax(A x) is close to b.

The loss is L(x) = 0.5 ||f(x) - b||^2 + 0.5 ||diag(weights) A x||^2 with f(x) = softmax(A x). Its
gradient, Hessian and Hessian-vector product stand here in closed form, with spectrum bounds, a
certificate of convexity, and three solvers.

>>> import jax.numpy as jnp
>>> from in_context import softmax_regression
>>> A = jnp.array([[1.0, 0.0], [0.0, 1.0], [-1.0, -1.0]])
>>> b = jnp.array([0.5, 0.3, 0.2])
>>> result = softmax_regression.newton(A, b, weights=jnp.full(3, 0.6))
>>> bool(result.certificate.global_minimum)
True
"""

from in_context.softmax_regression._convexity import ConvexityCertificate as ConvexityCertificate
from in_context.softmax_regression._convexity import SpectrumBounds as SpectrumBounds
from in_context.softmax_regression._convexity import certify_convex as certify_convex
from in_context.softmax_regression._convexity import convex_weights as convex_weights
from in_context.softmax_regression._convexity import safe_learning_rate as safe_learning_rate
from in_context.softmax_regression._convexity import spectrum_bounds as spectrum_bounds
from in_context.softmax_regression._descent import DescentResult as DescentResult
from in_context.softmax_regression._descent import gradient_descent as gradient_descent
from in_context.softmax_regression._newton import Minimum as Minimum
from in_context.softmax_regression._newton import MinimumCertificate as MinimumCertificate
from in_context.softmax_regression._newton import NewtonResult as NewtonResult
from in_context.softmax_regression._newton import newton as newton
from in_context.softmax_regression._objective import gradient as gradient
from in_context.softmax_regression._objective import hessian as hessian
from in_context.softmax_regression._objective import hvp as hvp
from in_context.softmax_regression._objective import loss as loss
from in_context.softmax_regression._objective import softmax as softmax
from in_context.softmax_regression._sampled import SampledNewtonResult as SampledNewtonResult
from in_context.softmax_regression._sampled import sampled_newton as sampled_newton
