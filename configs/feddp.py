"""The settings of the FedDP paper, chosen by METHOD,MODEL,CLIENTS.

    python -m fedjax_prune train --config=feddp:feddp,vgg11,30 \
        --workdir=runs/feddp_vgg11_30

Methods: fedavg, fedprox, fednova, scaffold, and with dynamic pruning fedavg_dp,
fedprox_dp, fednova_dp and feddp (scaffold_dp is the same). Two controls of each show
the value of its gates: with _nograd gates never learn from the loss, and with _narrow a
plain network has about half the MACs; feddp_nograd is scaffold_nograd. Models: vgg11,
resnet32. Clients: 10, 30, 50, 100.

Ten clients train on 500,000 images a round: days on two CPU cores. For a trial
use configs/feddp_cpu.py, or add `--config.data.num_train=2500
--config.client.epochs=2 --config.model.width=0.25 --config.rounds=5`.

Choices, where the paper leaves something open:
  The rounds are those of its sister paper SPATL (arXiv 2111.14345), mu = 0.01 is that
  of NIID-Bench (arXiv 2102.02079), the lasso weight that of FBS (arXiv 1810.05331).
  The clients' SGD has no momentum, because the paper mentions none. Half of the MACs
  are kept (`model.flops_target` 0.5), and the keep ratio follows from it. The gates'
  bias begins at 1, as in FBS. Weight decay, 5e-4 in the paper, also acts on the gates,
  as with one optimiser over all parameters.
  VGG-11 has batch norm, as in the paper's equation 2; its authors' code has none. On a
  small network FedDP without a norm, with a step size of 0.03 and 300 rounds, is 31
  points worse; with 0.1 most runs of SCAFFOLD without gates diverge
  (configs/results/feddp.md).
  alpha = 5e-3 appears once in the paper, is not defined there, and is not used here.

References:
  Yu, Nguyen, Anwar, Jannesari, Heterogeneous Federated Learning using Dynamic Model
  Pruning and Adaptive Gradient, section 5, https://arxiv.org/abs/2106.06921v2.
"""

from typing import Any, NamedTuple

from . import base


class Method(NamedTuple):
    """An algorithm, with dynamic pruning or without, on a network of some width."""

    algorithm: str
    gated: bool
    gate_mode: str = "hard_ste"
    width: float = 1.0


class Setting(NamedTuple):
    """How many clients take part in a round, and for how many rounds."""

    cohort_size: int
    rounds: int


_ALGORITHMS = ("fedavg", "fedprox", "fednova", "scaffold")

METHODS = {
    **{name: Method(name, False) for name in _ALGORITHMS},
    **{f"{name}_dp": Method(name, True) for name in _ALGORITHMS},
    **{f"{name}_nograd": Method(name, True, "hard_nograd") for name in _ALGORITHMS},
    # Half the MACs: both axes of a kernel shrink by the square root.
    **{f"{name}_narrow": Method(name, False, width=0.5**0.5) for name in _ALGORITHMS},
    "feddp": Method("scaffold", True),
    "feddp_nograd": Method("scaffold", True, "hard_nograd"),
}

DROPOUTS = {"vgg11": 0.5, "resnet32": 0.0}
"""The paper's models and their dropout rates."""

SETTINGS = {
    "10": Setting(10, 100),
    "30": Setting(12, 200),
    "50": Setting(35, 200),
    "100": Setting(40, 500),
}


def get_config(text: str = "feddp,vgg11,10") -> Any:
    """The settings of one run of the paper.

    Args:
      text: METHOD,MODEL,CLIENTS.

    Raises:
      ValueError: if a part is unknown or missing.
    """
    method, model, clients = base.parts(
        text, {"METHOD": METHODS, "MODEL": DROPOUTS, "CLIENTS": SETTINGS}
    )
    chosen = METHODS[method]
    config = base.get_config(chosen.algorithm)
    config.model.name = model
    config.model.norm = "bn"
    config.model.dropout = DROPOUTS[model]
    config.model.gated = chosen.gated
    config.model.gate_mode = chosen.gate_mode
    config.model.width = chosen.width
    config.data.num_clients = int(clients)
    config.cohort_size = SETTINGS[clients].cohort_size
    config.rounds = SETTINGS[clients].rounds
    return config
