"""Laws of loss behind one interface."""

from scaling_laws.laws._base import Law as Law
from scaling_laws.laws._base import Parameter as Parameter
from scaling_laws.laws._schedule import FunctionalScaling as FunctionalScaling
from scaling_laws.laws._schedule import LRAnnealing as LRAnnealing
from scaling_laws.laws._schedule import MultiPower as MultiPower
from scaling_laws.laws._schedule import PowerRelaxation as PowerRelaxation
from scaling_laws.laws._schedule import ScheduleLaw as ScheduleLaw
from scaling_laws.laws._static import BrokenPowerLaw as BrokenPowerLaw
from scaling_laws.laws._static import Chinchilla as Chinchilla
from scaling_laws.laws._static import Crossover as Crossover
from scaling_laws.laws._static import EncoderDecoder as EncoderDecoder
from scaling_laws.laws._static import PowerLaw as PowerLaw
