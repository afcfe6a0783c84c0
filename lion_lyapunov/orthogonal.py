"""Orthogonal factors of matrices from products alone, with certified singular values.

>>> certified_range(JORDAN, 0.01)  # where the steps of optax.contrib.muon send [0.01, 1]
SingularRange(low=0.68..., high=1.20...)
"""

from lion_lyapunov._polar import JORDAN as JORDAN
from lion_lyapunov._polar import SingularRange as SingularRange
from lion_lyapunov._polar import certified_range as certified_range
from lion_lyapunov._polar import minimax_schedule as minimax_schedule
from lion_lyapunov._polar import newton_schulz as newton_schulz
from lion_lyapunov._polar import polar as polar
