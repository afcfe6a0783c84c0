"""Laws of loss: fit them, trust them, decide with them."""

from scaling_laws import curves as curves
from scaling_laws import laws as laws
from scaling_laws._areas import learning_rate_areas as learning_rate_areas
from scaling_laws._areas import piecewise_areas as piecewise_areas
from scaling_laws._fit import fit as fit
from scaling_laws._result import FitResult as FitResult
