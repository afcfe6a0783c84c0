"""How sharp a minimum is, with error bars: Hessian spectra, SAM's measure, noise and worst case.

Every measure is of the mean loss over a fixed data set, given as batches of any sizes: the result
does not depend on how the examples are cut into batches, nor over how many devices they lie.
"""

from sam_free.sharpness._adversary import worst_case_sharpness as worst_case_sharpness
from sam_free.sharpness._data import mean_loss as mean_loss
from sam_free.sharpness._eigenvalues import Eigenvalues as Eigenvalues
from sam_free.sharpness._eigenvalues import top_eigenvalues as top_eigenvalues
from sam_free.sharpness._estimate import Estimate as Estimate
from sam_free.sharpness._noise import average_sharpness as average_sharpness
from sam_free.sharpness._operator import SplitLoss as SplitLoss
from sam_free.sharpness._operator import normalize_outputs as normalize_outputs
from sam_free.sharpness._operator import split_loss as split_loss
from sam_free.sharpness._probe import probe as probe
from sam_free.sharpness._sam import gradient_norm as gradient_norm
from sam_free.sharpness._sam import sam_sharpness as sam_sharpness
from sam_free.sharpness._slices import LossSlice as LossSlice
from sam_free.sharpness._slices import loss_slice as loss_slice
from sam_free.sharpness._spectrum import SpectralDensity as SpectralDensity
from sam_free.sharpness._spectrum import spectral_density as spectral_density
from sam_free.sharpness._trace import trace as trace
