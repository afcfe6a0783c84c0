"""Multi-head softmax attention on linear regression: reduced heads, full layer, dynamics."""

from in_context.softmax_attention._dynamics import Flow as Flow
from in_context.softmax_attention._dynamics import approximate_limit as approximate_limit
from in_context.softmax_attention._dynamics import approximate_loss as approximate_loss
from in_context.softmax_attention._dynamics import gradient_flow as gradient_flow
from in_context.softmax_attention._dynamics import optimal_mu as optimal_mu
from in_context.softmax_attention._heads import apply_heads as apply_heads
from in_context.softmax_attention._heads import (
    debiased_gradient_descent as debiased_gradient_descent,
)
from in_context.softmax_attention._heads import optimal_debiased as optimal_debiased
from in_context.softmax_attention._heads import optimal_preconditioned as optimal_preconditioned
from in_context.softmax_attention._layer import AttentionParams as AttentionParams
from in_context.softmax_attention._layer import Decomposition as Decomposition
from in_context.softmax_attention._layer import apply as apply
from in_context.softmax_attention._layer import circuits as circuits
from in_context.softmax_attention._layer import decompose as decompose
from in_context.softmax_attention._layer import from_heads as from_heads
from in_context.softmax_attention._layer import init as init
from in_context.softmax_attention._layer import squared_error as squared_error
from in_context.softmax_attention._layer import train as train
