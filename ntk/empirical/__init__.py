"""Kernels of finite networks."""

from ntk.empirical._arguments import NtkImplementation as NtkImplementation
from ntk.empirical._nngp import empirical_kernel_fn as empirical_kernel_fn
from ntk.empirical._nngp import empirical_nngp_fn as empirical_nngp_fn
from ntk.empirical._ntk import empirical_ntk_fn as empirical_ntk_fn
from ntk.empirical._products import empirical_ntk_vp_fn as empirical_ntk_vp_fn
