"""The settings of the FedDP paper at a size for CPUs: VGG-11 at a quarter of its width.

    python -m fedjax_prune train --config=cifar10_cpu:feddp,10 \
        --config.data.dir=DATASETS --workdir=runs/cifar10_cpu

The string is METHOD,CLIENTS with METHOD as in configs/feddp.py and CLIENTS 10 or 30.
Clients share a few thousand training images and train two local epochs in batches of
16. Ten clients are evaluated on 1,000 test images, half-way and at the end. Results are
in configs/README.md.
"""

from typing import Any, NamedTuple

from . import feddp


class Size(NamedTuple):
    """How many of the training images are used, and for how many rounds."""

    num_train: int
    rounds: int


# 130,000 images trained on at 10 clients, about 64,000 at 30.
SIZES = {"10": Size(2_500, 26), "30": Size(5_000, 16)}


def get_config(text: str = "feddp,10") -> Any:
    """The small setting of one method.

    Args:
      text: METHOD,CLIENTS.

    Raises:
      ValueError: if a part is unknown or missing.
    """
    method, clients = feddp.parse(
        text, {"METHOD": tuple(feddp.METHODS), "CLIENTS": tuple(SIZES)}
    )
    config = feddp.get_config(f"{method},vgg11,{clients}")
    config.rounds = SIZES[clients].rounds
    config.save_every = 4
    config.lanes = 1
    config.model.width *= 0.25
    config.client.epochs = 2
    config.client.batch_size = 16
    config.data.num_train = SIZES[clients].num_train
    config.eval.every = SIZES[clients].rounds // 2
    config.eval.num_clients = 10
    config.eval.num_examples = 1_000
    return config
