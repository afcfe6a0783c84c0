"""Networks with width, depth, parameterization and initial scale as arguments: pure functions."""

from shared.models._convnet import convnet as convnet
from shared.models._flax import from_linen as from_linen
from shared.models._flax import from_nnx as from_nnx
from shared.models._losses import next_token_loss as next_token_loss
from shared.models._mlp import mlp as mlp
from shared.models._model import Model as Model
from shared.models._resnet import resnet as resnet
from shared.models._scale import Parameterization as Parameterization
from shared.models._scale import Scale as Scale
from shared.models._transformer import transformer as transformer
