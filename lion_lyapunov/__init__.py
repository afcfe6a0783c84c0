"""Lion-kappa optimizers for optax and the Lyapunov functions that explain them."""

from lion_lyapunov import analysis as analysis
from lion_lyapunov import convert as convert
from lion_lyapunov import distributed as distributed
from lion_lyapunov import flow as flow
from lion_lyapunov import kappas as kappas
from lion_lyapunov import low_precision as low_precision
from lion_lyapunov import orthogonal as orthogonal
from lion_lyapunov._cautious import add_cautious_decayed_weights as add_cautious_decayed_weights
from lion_lyapunov._cautious import cautious_lion_k as cautious_lion_k
from lion_lyapunov._cautious import cautious_mask as cautious_mask
from lion_lyapunov._cautious import scale_by_cautious_lion_k as scale_by_cautious_lion_k
from lion_lyapunov._kappa import Kappa as Kappa
from lion_lyapunov._named import frank_wolfe as frank_wolfe
from lion_lyapunov._named import lion as lion
from lion_lyapunov._named import lion_k_groups as lion_k_groups
from lion_lyapunov._named import muon as muon
from lion_lyapunov._named import muon_kappa as muon_kappa
from lion_lyapunov._named import normalized_sgd as normalized_sgd
from lion_lyapunov._named import scion as scion
from lion_lyapunov._named import scion_kappa as scion_kappa
from lion_lyapunov._named import signum as signum
from lion_lyapunov._transform import ScaleByLionKState as ScaleByLionKState
from lion_lyapunov._transform import lion_k as lion_k
from lion_lyapunov._transform import scale_by_lion_k as scale_by_lion_k
