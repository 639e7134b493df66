"""Generated populations of any size: FedAvg on the data of many small clients.

    python -m fedjax_prune train --config=synthetic --workdir=runs/synthetic \
        --config.data.num_clients=100000

The string is the kind of the data. `vectors`, the default, is synthetic(1, 1) of the
FedProx paper with logistic regression. `images` are images of 8 by 8 pixels with a
small CNN. The formulas are in fedjax_prune/data/synthetic.py. Clients have about five
examples each. Ten of them train in a round and are evaluated, after the last round a
hundred.

The labels of vectors follow a model of each client's own, so that a shared model is
better than chance, 10 %, only if the clients are few: with data.num_clients=30,
data.client_size=54, data.client_size_sigma=2, client.lr=0.01 and 60 rounds, near the
sizes of the paper, it reached 50 %. The images are the same task for all clients.
"""

from typing import Any

from . import base

KINDS = {
    "vectors": ("synthetic", "logistic_regression"),
    "images": ("synthetic_images", "cnn"),
}
"""Kind -> data set and model."""


def get_config(kind: str = "vectors") -> Any:
    """A thousand clients.

    Args:
      kind: a key of KINDS.

    Raises:
      ValueError: if the kind is unknown.
    """
    base.parts(kind, {"KIND": KINDS})
    config = base.get_config("fedavg")
    config.data.name, config.model.name = KINDS[kind]
    config.rounds = 100
    config.lanes = 1
    config.eval.every = 20
    config.eval.num_clients = 100
    config.eval.target_accuracy = 0.0
    config.data.partitioner = "by_client"
    config.data.local_val = "holdout"
    config.data.augment = "none"
    config.data.num_clients = 1000
    config.model.gated = False
    config.model.norm = "none"
    config.model.dropout = 0.0
    config.client.batch_size = 10
    config.client.epochs = 5
    config.client.lr = 0.05
    config.client.weight_decay = 0.0
    return config
