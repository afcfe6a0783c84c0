"""The ODE whose Euler steps are Lion-K, solved adaptively or by the implicit scheme.

m' = -alpha grad f(x) - gamma m,   x' = subgradient(m + eps m') - weight_decay x.
"""

from lion_lyapunov._flow import Flow as Flow
from lion_lyapunov._flow import solve as solve
from lion_lyapunov._flow import vector_field as vector_field
