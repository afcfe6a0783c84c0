"""Momentum of 16, 8 and 4 bits, and bfloat16 parameters that move as the theory says."""

from lion_lyapunov._low_precision import Blocks as Blocks
from lion_lyapunov._low_precision import MomentumFormat as MomentumFormat
from lion_lyapunov._low_precision import bfloat16 as bfloat16
from lion_lyapunov._low_precision import int4 as int4
from lion_lyapunov._low_precision import int8 as int8
from lion_lyapunov._low_precision import round_stochastically as round_stochastically
from lion_lyapunov._low_precision import with_stochastic_rounding as with_stochastic_rounding
