"""Infinite-width and empirical neural tangent kernels."""

from ntk._linearize import linearize as linearize
from ntk._linearize import taylor_expand as taylor_expand
from ntk.empirical import EmpiricalKernel as EmpiricalKernel
from ntk.empirical import NtkImplementation as NtkImplementation
from ntk.empirical import empirical_kernel_fn as empirical_kernel_fn
from ntk.empirical import empirical_nngp_fn as empirical_nngp_fn
from ntk.empirical import empirical_ntk_fn as empirical_ntk_fn
from ntk.empirical import empirical_ntk_vp_fn as empirical_ntk_vp_fn
