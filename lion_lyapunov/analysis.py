"""Objective, Lyapunov functions, KKT residual, feasibility and settings of Lion-K."""

from lion_lyapunov._lyapunov import Decrements as Decrements
from lion_lyapunov._lyapunov import DiscreteDecrements as DiscreteDecrements
from lion_lyapunov._lyapunov import coupling_weight as coupling_weight
from lion_lyapunov._lyapunov import decrements as decrements
from lion_lyapunov._lyapunov import discrete_decrements as discrete_decrements
from lion_lyapunov._lyapunov import discrete_lyapunov as discrete_lyapunov
from lion_lyapunov._lyapunov import implicit_step as implicit_step
from lion_lyapunov._lyapunov import lyapunov as lyapunov
from lion_lyapunov._objective import CONVENTIONS as CONVENTIONS
from lion_lyapunov._objective import constraint_radius as constraint_radius
from lion_lyapunov._objective import distance as distance
from lion_lyapunov._objective import effective_weight_decay as effective_weight_decay
from lion_lyapunov._objective import fenchel_gap as fenchel_gap
from lion_lyapunov._objective import objective as objective
from lion_lyapunov._objective import phase as phase
from lion_lyapunov._objective import violation as violation
from lion_lyapunov._probe import find_momentum as find_momentum
from lion_lyapunov._probe import probe as probe
from lion_lyapunov._probe import sampled as sampled
from lion_lyapunov._settings import Finding as Finding
from lion_lyapunov._settings import SettingsWarning as SettingsWarning
from lion_lyapunov._settings import check_settings as check_settings
