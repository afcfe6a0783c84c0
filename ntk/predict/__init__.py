"""Training in function space: linear dynamics, Gaussian processes, infinite ensembles."""

from ntk.predict._ensemble import gradient_descent_mse_ensemble as gradient_descent_mse_ensemble
from ntk.predict._evidence import LeaveOneOut as LeaveOneOut
from ntk.predict._evidence import effective_rank as effective_rank
from ntk.predict._evidence import leave_one_out as leave_one_out
from ntk.predict._evidence import log_marginal_likelihood as log_marginal_likelihood
from ntk.predict._fit import Fit as Fit
from ntk.predict._fit import fit as fit
from ntk.predict._fit import predict as predict
from ntk.predict._gp import gp_inference as gp_inference
from ntk.predict._gp import posterior as posterior
from ntk.predict._kernels import Gaussian as Gaussian
from ntk.predict._learning_rate import max_learning_rate as max_learning_rate
from ntk.predict._learning_rate import top_eigenvalue as top_eigenvalue
from ntk.predict._mse import gradient_descent_mse as gradient_descent_mse
from ntk.predict._ode import ODEState as ODEState
from ntk.predict._ode import gradient_descent as gradient_descent
