"""The works of launch.benchmark on real data, for timing.

    python -m fedjax_prune train --config=bench:w1 --workdir=runs/w1

w1 deals CIFAR-10 evenly to 1,000 clients, 50 a round, and trains the small dropout CNN
for 1,500 rounds. w2 deals CIFAR-10 to ten very unequal clients, all in every round, and
trains VGG-11 without norm. w3 deals EMNIST (balanced, 47 classes) to 3,400 clients of
unequal size, 10 a round. All of them run FedAvg without gates, with one local epoch, a
constant step size and no augmentation.
"""

from typing import Any

from . import base

WORKS = ("w1", "w2", "w3")


def get_config(work: str = "w1") -> Any:
    """The settings of one work.

    Args:
      work: one of WORKS.

    Raises:
      ValueError: if the work is unknown.
    """
    base.parts(work, {"WORK": WORKS})
    config = base.get_config("fedavg")
    config.model.name = "vgg11" if work == "w2" else "dropout_cnn"
    config.model.gated = False
    config.model.dropout = 0.5
    config.client.epochs = 1
    config.client.lr_schedule = "constant"
    config.client.weight_decay = 0.0
    config.data.augment = "none"
    config.eval.every = 10
    # Clients have no gates, so one stands for all; evaluating 50 of them after local
    # training would take longer than the rounds.
    config.eval.num_clients = 1
    if work == "w1":
        config.rounds = 1500
        config.save_every = 500
        config.cohort_size = 50
        config.client.batch_size = 10
        config.data.partitioner = "iid"
        config.data.num_clients = 1000
    elif work == "w3":
        config.cohort_size = 10
        config.client.batch_size = 20
        config.data.name = "emnist"
        # Sizes from 6 to 92, most between 10 and 70.
        config.data.partitioner = "quantity"
        config.data.num_clients = 3400
        config.data.alpha = 6.5
        config.data.min_size = 4
    return config
