"""Networks with width, depth, parameterization and initial scale as arguments: pure functions."""

from shared.models._convnet import convnet as convnet
from shared.models._mlp import mlp as mlp
from shared.models._model import Model as Model
from shared.models._scale import Scale as Scale
