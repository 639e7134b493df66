"""FedProx: FedAvg whose clients are pulled towards the parameters they received.

    local gradient: g + mu (w - w^t), on shared parameters only

References:
  Li et al., Federated Optimization in Heterogeneous Networks, MLSys 2020,
  section 3.2, https://arxiv.org/abs/1812.06127.

Choices:
  FedDP does not give mu; 0.01 is what NIID-Bench (https://arxiv.org/abs/2102.02079)
  uses for VGG-11 with ten clients and Dirichlet 0.1. The pull is added to the gradient
  before the solver's own chain, which adds weight decay.
"""

import optax

from fedjax_prune.algorithms.fedavg import fedavg
from fedjax_prune.engine.contract import FederatedAlgorithm
from fedjax_prune.engine.solver import LocalSolver
from fedjax_prune.engine.transforms import Mu, add_proximal
from fedjax_prune.fields import checked
from fedjax_prune.types import Task


@checked
def fedprox(
    task: Task,
    solver: LocalSolver,
    server_tx: optax.GradientTransformation,
    *,
    mu: Mu = 0.01,
) -> FederatedAlgorithm:
    """Builds FedProx.

    Args:
      task: the model and its loss.
      solver: local training.
      server_tx: applied to the weighted mean of the deltas.

    Returns:
      The algorithm. `ServerState.server` is the state of `server_tx`.

    Raises:
      ValueError: if `mu` is out of its range.

    References:
      Li et al., MLSys 2020, section 3.2, https://arxiv.org/abs/1812.06127.

    Examples:
      >>> import fedjax_prune as fp
      >>> task, tx = fp.Task(init=None, loss=None, predict=None), fp.make_server_tx()
      >>> fp.fedprox(task, fp.make_solver(), tx, mu=-1)
      Traceback (most recent call last):
      ValueError: mu must be at least 0, got -1.
    """
    return fedavg(task, solver.before_descent(add_proximal(mu)), server_tx)
