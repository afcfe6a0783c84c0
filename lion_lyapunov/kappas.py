"""Kappas: the convex functions K, one small object each, and what builds new ones from them.

Every kappa has `value`, `subgradient`, `conjugate`, `project`, `conjugate_subgradient`,
`dual_norm`, `is_even`, `is_smooth` and `tie_rule`; see `Kappa`.
"""

from lion_lyapunov._combine import half_squared as half_squared
from lion_lyapunov._combine import moreau as moreau
from lion_lyapunov._combine import scaled as scaled
from lion_lyapunov._kappa import Kappa as Kappa
from lion_lyapunov._lmo import from_lmo as from_lmo
from lion_lyapunov._norms import frobenius as frobenius
from lion_lyapunov._norms import group_l2 as group_l2
from lion_lyapunov._norms import l2 as l2
from lion_lyapunov._norms import linf as linf
from lion_lyapunov._norms import lp as lp
from lion_lyapunov._parts import as_matrix as as_matrix
from lion_lyapunov._parts import batched as batched
from lion_lyapunov._parts import blocks as blocks
from lion_lyapunov._parts import by_shape as by_shape
from lion_lyapunov._parts import on_tree as on_tree
from lion_lyapunov._parts import shape_scaled as shape_scaled
from lion_lyapunov._parts import whole_tree as whole_tree
from lion_lyapunov._separable import arctan as arctan
from lion_lyapunov._separable import half_squared_l2 as half_squared_l2
from lion_lyapunov._separable import huber as huber
from lion_lyapunov._separable import l1 as l1
from lion_lyapunov._separable import log_cosh as log_cosh
from lion_lyapunov._separable import positive_part as positive_part
from lion_lyapunov._separable import power as power
from lion_lyapunov._separable import relativistic as relativistic
from lion_lyapunov._separable import trimmed_l1 as trimmed_l1
from lion_lyapunov._simplex import log_sum_exp as log_sum_exp
from lion_lyapunov._spectral import col_l2 as col_l2
from lion_lyapunov._spectral import ky_fan as ky_fan
from lion_lyapunov._spectral import nuclear as nuclear
from lion_lyapunov._spectral import operator_norm as operator_norm
from lion_lyapunov._spectral import row_l2 as row_l2
from lion_lyapunov._spectral import schatten as schatten
from lion_lyapunov._spectral import spectral as spectral
from lion_lyapunov._top_k import top_k as top_k
