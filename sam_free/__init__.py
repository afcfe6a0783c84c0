"""Sharpness-aware training for free: SAF, MESA, the SAM family and sharpness measures."""

from sam_free import sharpness as sharpness
from sam_free._average import Average as Average
from sam_free._average import averaged_weights as averaged_weights
from sam_free._batch import Outputs as Outputs
from sam_free._controls import plain as plain
from sam_free._controls import uniform_target as uniform_target
from sam_free._esam import esam_gradient as esam_gradient
from sam_free._gsam import gsam_gradient as gsam_gradient
from sam_free._gsam import gsam_radius as gsam_radius
from sam_free._looksam import LookSAMState as LookSAMState
from sam_free._looksam import looksam_gradient as looksam_gradient
from sam_free._losses import cross_entropy as cross_entropy
from sam_free._losses import label_smoothing as label_smoothing
from sam_free._mesa import mesa as mesa
from sam_free._restore import restore_state as restore_state
from sam_free._saf import saf as saf
from sam_free._sam import sam_gradient as sam_gradient
from sam_free._scheduled import scheduled as scheduled
from sam_free._table import Table as Table
from sam_free._table import check_index as check_index
from sam_free._trajectory import trajectory_loss as trajectory_loss
