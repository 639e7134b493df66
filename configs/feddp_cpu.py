"""The experiments of the FedDP paper on small networks, which converge on two cores.

    python -m fedjax_prune train --config=feddp_cpu:mnist,feddp,10 \
        --config.data.dir=DATASETS --workdir=runs/mnist

The string is DATA,METHOD,CLIENTS: DATA is digits, mnist or cifar10, METHOD as in
configs/feddp.py, and CLIENTS 10, 30, 50 or 100 (digits: 10; cifar10: 10 or 100).
Clients, cohorts and Dirichlet 0.1 are the paper's. What differs is the network, a CNN
of two convolutions with batch norm, two local epochs in batches of 16 (paper: 10 and
64), the images, the rounds, the least examples of a client (4, digits 10), and that
nothing is augmented. MNIST is 10,000 images of 14 by 14 pixels, CIFAR-10 is 5,000 of
24 by 24. The step size is 0.03 on CIFAR-10, else the paper's 0.1. A narrow network has
about as many MACs as a gated one keeps.

`python -m launch.reproduce` trains most of them; configs/results has what came out.
"""

from typing import Any, NamedTuple

from . import base, feddp, quickstart


class Work(NamedTuple):
    """A data set at the size used here.

    Attributes:
      width: of the network.
      narrow: of a network without gates that has the MACs which gates keep.
      rounds: for each number of clients.
      num_train: training images; 0 is all.
      size: height and width of the images; 0 is that of the data set.
      num_test: test images that are evaluated; 0 is all.
      min_size: examples of the smallest client.
      eval_every: rounds from one evaluation to the next.
      lr: the clients' step size.
    """

    width: float
    narrow: float
    rounds: dict[str, int]
    num_train: int = 0
    size: int = 0
    num_test: int = 0
    min_size: int = 10
    eval_every: int = 2
    lr: float = 0.1


WORKS = {
    "digits": Work(1.0, 0.7, {"10": 100}),
    "mnist": Work(
        1.0,
        0.69,
        {"10": 60, "30": 100, "50": 70, "100": 100},
        num_train=10_000,
        size=14,
        num_test=2_000,
        min_size=4,
    ),
    "cifar10": Work(
        1.22,
        0.84,
        {"10": 120, "100": 500},
        num_train=5_000,
        size=24,
        num_test=2_000,
        min_size=4,
        eval_every=5,
        lr=0.03,
    ),
}


def get_config(text: str = "mnist,feddp,10") -> Any:
    """The small setting of one method.

    Args:
      text: DATA,METHOD,CLIENTS.

    Raises:
      ValueError: if a part is unknown, or there is no such number of clients.
    """
    data, method, clients = base.parts(
        text, {"DATA": WORKS, "METHOD": feddp.METHODS, "CLIENTS": feddp.SETTINGS}
    )
    work, chosen = WORKS[data], feddp.METHODS[method]
    if clients not in work.rounds:
        known = ", ".join(work.rounds)
        raise ValueError(f"CLIENTS must be one of {known} for {data}, got {clients!r}.")
    config = quickstart.get_config()
    config.algorithm = base.algorithm(chosen.algorithm)
    config.rounds = work.rounds[clients]
    config.save_every = config.rounds
    config.cohort_size = feddp.SETTINGS[clients].cohort_size
    config.client.lr = work.lr
    config.report.every = 0
    config.eval.every = work.eval_every
    config.eval.num_clients = 10
    config.eval.num_examples = work.num_test
    config.eval.target_accuracy = 0.0
    config.data.name = data
    config.data.num_clients = int(clients)
    config.data.num_train = work.num_train
    config.data.size = work.size
    config.data.min_size = work.min_size
    config.model.gated = chosen.gated
    config.model.gate_mode = chosen.gate_mode
    config.model.width = work.width if chosen.width == 1 else work.narrow
    return config
