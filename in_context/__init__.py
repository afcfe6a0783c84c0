"""In-context learning as softmax regression, from exact theory to trained attention."""

from in_context import alignment as alignment
from in_context import attention_gradient as attention_gradient
from in_context import closeness as closeness
from in_context import linear_attention as linear_attention
from in_context import predictors as predictors
from in_context import softmax_attention as softmax_attention
from in_context import softmax_regression as softmax_regression
from in_context import tasks as tasks
from in_context import weight_shift as weight_shift
