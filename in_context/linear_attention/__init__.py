"""Linear self-attention: the exact optimum, exact losses, the full layer and its training."""

from in_context._training import Trained as Trained
from in_context.linear_attention._construction import TokenWeights as TokenWeights
from in_context.linear_attention._construction import (
    gradient_descent_weights as gradient_descent_weights,
)
from in_context.linear_attention._construction import token_stack as token_stack
from in_context.linear_attention._layer import LayerParams as LayerParams
from in_context.linear_attention._layer import LayerSummary as LayerSummary
from in_context.linear_attention._layer import apply as apply
from in_context.linear_attention._layer import constructed as constructed
from in_context.linear_attention._layer import init as init
from in_context.linear_attention._layer import layer_loss as layer_loss
from in_context.linear_attention._layer import summarise as summarise
from in_context.linear_attention._layer import train as train
from in_context.linear_attention._optimal import Optimum as Optimum
from in_context.linear_attention._optimal import Step as Step
from in_context.linear_attention._optimal import debiased_loss as debiased_loss
from in_context.linear_attention._optimal import loss_at_length as loss_at_length
from in_context.linear_attention._optimal import optimal as optimal
from in_context.linear_attention._optimal import optimal_relu_step as optimal_relu_step
from in_context.linear_attention._optimal import optimal_response_step as optimal_response_step
from in_context.linear_attention._optimal import optimal_step as optimal_step
from in_context.linear_attention._optimal import optimal_uniform_step as optimal_uniform_step
from in_context.linear_attention._optimal import population_loss as population_loss
