"""Laws of loss: fit them, trust them, decide with them."""

from scaling_laws import curves as curves
from scaling_laws import laws as laws
from scaling_laws._areas import learning_rate_areas as learning_rate_areas
from scaling_laws._areas import piecewise_areas as piecewise_areas
from scaling_laws._bootstrap import Bootstrap as Bootstrap
from scaling_laws._bootstrap import bootstrap as bootstrap
from scaling_laws._compare import compare as compare
from scaling_laws._compare import errors as errors
from scaling_laws._compute_optimal import Allocation as Allocation
from scaling_laws._compute_optimal import compute_optimal as compute_optimal
from scaling_laws._compute_optimal import hoffmann_methods as hoffmann_methods
from scaling_laws._curve_interval import CurveInterval as CurveInterval
from scaling_laws._curve_interval import coverage as coverage
from scaling_laws._curve_interval import curve_interval as curve_interval
from scaling_laws._fit import fit as fit
from scaling_laws._intervals import interval as interval
from scaling_laws._intervals import profile as profile
from scaling_laws._result import Diagnostics as Diagnostics
from scaling_laws._result import FitResult as FitResult
from scaling_laws._schedule_search import Schedule as Schedule
from scaling_laws._schedule_search import optimize_schedule as optimize_schedule
from scaling_laws._shared_steps import last_shared_step as last_shared_step
from scaling_laws._shared_steps import unshared as unshared
from scaling_laws._watch import Forecast as Forecast
from scaling_laws._watch import watch as watch
