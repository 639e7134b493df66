"""FedDP's setting at a size for CPUs: VGG-11 at a quarter of its width.

    python -m launch.train --config=configs/cifar10_cpu.py:feddp,10 \
        --config.data.dir=DATASETS --workdir=runs/cifar10_cpu

METHOD,CLIENTS as in configs/feddp.py. The first 20,000 training images, two local
epochs, 15 rounds; evaluated on 2,000 test images.
"""

from typing import Any

from configs import feddp


def get_config(text: str = "feddp,10") -> Any:
    """The small setting of one method.

    Args:
      text: METHOD,CLIENTS.

    Raises:
      ValueError: if a part is unknown or missing.
    """
    method, clients = feddp.parse(
        text, {"METHOD": tuple(feddp.METHODS), "CLIENTS": tuple(feddp.SETTINGS)}
    )
    config = feddp.get_config(f"{method},vgg11,{clients}")
    config.rounds = 15
    config.save_every = 5
    config.model.width = 0.25
    config.client.epochs = 2
    config.data.num_train = 20_000
    config.eval.num_examples = 2_000
    return config
