"""Infinite-width and empirical neural tangent kernels."""

from ntk import dynamics as dynamics
from ntk import predict as predict
from ntk import stax as stax
from ntk._batch import batch as batch
from ntk._from_flax import FlaxFunction as FlaxFunction
from ntk._from_flax import from_flax as from_flax
from ntk._kernel import Kernel as Kernel
from ntk._linearize import linearize as linearize
from ntk._linearize import taylor_expand as taylor_expand
from ntk._monte_carlo import Estimate as Estimate
from ntk._monte_carlo import monte_carlo_kernel_fn as monte_carlo_kernel_fn
from ntk.empirical import NtkImplementation as NtkImplementation
from ntk.empirical import empirical_kernel_fn as empirical_kernel_fn
from ntk.empirical import empirical_nngp_fn as empirical_nngp_fn
from ntk.empirical import empirical_ntk_fn as empirical_ntk_fn
from ntk.empirical import empirical_ntk_vp_fn as empirical_ntk_vp_fn
