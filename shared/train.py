"""The one data-parallel training loop."""

from shared.config import default_config as default_config
from shared.protocol import Array as Array
from shared.protocol import Batch as Batch
from shared.protocol import ExampleMetrics as ExampleMetrics
from shared.protocol import GradientRule as GradientRule
from shared.protocol import LossFn as LossFn
from shared.protocol import Objective as Objective
from shared.protocol import Outputs as Outputs
from shared.protocol import Probe as Probe
from shared.protocol import PyTree as PyTree
from shared.protocol import Study as Study
from shared.protocol import TrainState as TrainState
from shared.protocol import model_inputs as model_inputs
