"""Every field with its default: FedDP on CIFAR-10, ten clients, VGG-11.

    python -m launch.train --config=configs/base.py --workdir=runs/base

An algorithm's name after a colon brings that algorithm's fields:
`--config=configs/base.py:fedprox`. Any field can be changed on the command line:
`--config.client.epochs=2`.
"""

from typing import Any

from ml_collections import ConfigDict, config_dict

ALGORITHM_FIELDS = {
    "fedavg": {},
    "fedprox": {
        "mu": 0.01,  # weight of the proximal term, at least 0
    },
    "fednova": {},
    "scaffold": {
        "control_weights": "uniform",  # uniform | size: a control's weight in the mean
        "control_init": "zeros",  # zeros | random_legacy (a fault of older code)
        "control_divisor": "num_clients",  # num_clients | m_legacy (another one)
    },
}
"""name -> its own fields with their defaults."""


def algorithm(name: str) -> ConfigDict:
    """The section `algorithm` with the defaults of one algorithm.

    Raises:
      ValueError: if the name is unknown.
    """
    if name not in ALGORITHM_FIELDS:
        known = ", ".join(ALGORITHM_FIELDS)
        raise ValueError(f"algorithm must be one of {known}, got {name!r}.")
    return ConfigDict({"name": name, **ALGORITHM_FIELDS[name]})


def get_config(algorithm_name: str = "scaffold") -> Any:
    """A ConfigDict of every field with its default.

    Raises:
      ValueError: if the name is unknown.
    """
    return ConfigDict(
        {
            "seed": 0,  # of parameters, gates, cohorts, shuffles; in [0, 2^32)
            "rounds": 100,  # server updates, at least 1
            "cohort_size": 10,  # clients a round, in [1, data.num_clients]
            "devices": 0,  # that lanes are split over, 0 = all of this machine's
            "lanes": config_dict.FieldReference("auto", field_type=object),
            # clients side by side on each device, at least 1, or auto = timed
            "precision": "float32",  # float32 | tf32 (NVIDIA) | bfloat16
            "reduction": "all_reduce",  # ... | fixed_order: added by client id
            "save_every": 10,  # rounds between checkpoints, at least 1
            "keep": 2,  # checkpoints that stay, at least 1
            "eval": {
                "every": 5,  # rounds between evaluations, at least 1
                "num_clients": 0,  # clients evaluated, 0 = the cohort, in the end all
                "num_examples": 0,  # test images used, 0 = all
                "target_accuracy": 0.78,  # for rounds to target, in [0, 1], 0 = none
            },
            "data": _data(),
            "model": _model(),
            "client": {
                "optimizer": "sgd",  # sgd | adam (fedavg and fedprox only)
                "lr": 0.1,  # first step size of every round, above 0
                "lr_schedule": "cosine_epoch",  # ... | cosine_step | constant
                "lr_min": 0.0,  # where the cosine ends, in [0, lr]
                "momentum": 0.0,  # of sgd, in [0, 1), from zero in every round
                "weight_decay": 5e-4,  # added to the gradient, at least 0
                "epochs": 10,  # local epochs a round, at least 1
                "batch_size": 64,  # examples a step, at least 1
            },
            "server": {
                "optimizer": "sgd",  # sgd | momentum | adam | yogi
                "lr": 1.0,  # server step size, above 0
                "momentum": 0.9,  # of momentum, in [0, 1)
                "b1": 0.9,  # of adam and yogi, in [0, 1)
                "b2": 0.99,  # of adam and yogi, in [0, 1)
                "eps": 1e-3,  # of adam and yogi, above 0
            },
            "algorithm": algorithm(algorithm_name),
        }
    )


def _data() -> dict[str, Any]:
    return {
        "name": "cifar10",  # cifar10 | cifar100 | mnist | ... | digits
        "dir": "",  # folder of the TFDS data sets, "" = TFDS_DATA_DIR
        "seed": 2020,  # of the partition and validation sets, in [0, 2^32)
        "num_train": 0,  # the first so many training images, 0 = all
        "partitioner": "dirichlet",  # iid | dirichlet | quantity | shards
        "num_clients": 10,  # clients in the population, at least 1
        "alpha": 0.1,  # dirichlet, quantity: above 0, smaller is more uneven
        "min_size": 10,  # dirichlet, quantity: examples a client, at least 1
        "classes_per_client": 2,  # shards: in [1, number of classes]
        "local_val": "matched_test",  # matched_test | holdout
        "augment": True,  # reflect-pad crop, and flip where labels allow it
        "normalize": "none",  # none | cifar10 (mean and standard deviation)
    }


def _model() -> dict[str, Any]:
    return {
        "name": "vgg11",  # vgg11 | resnet32 | cnn
        "width": 1.0,  # multiplies every hidden width, above 0
        "norm": "none",  # none | bn | gn (one group per channel)
        "dropout": 0.5,  # vgg11: before hidden linear layers, in [0, 1)
        "gated": True,  # dynamic pruning: False = the plain network
        "flops_target": 0.5,  # MACs kept of the plain network's, in (0, 1]
        "keep_ratio": config_dict.placeholder(float),
        # channels kept, in (0, 1]; None = the ratio that meets flops_target
        "gate_mode": "hard_ste",  # ... | scale | hard_dense_ste | hard_nograd
        "gate_rescale": "none",  # kept channels times: none | sqrt | inverse
        "gate_first": True,  # vgg11, cnn: gate the first convolution, too
        "gate_init": "shared",  # shared | per_client first gates
        "gate_bias": 1.0,  # first bias of the gates
        "lasso_weight": 1e-8,  # of the gate logits' L1 norm, at least 0
        "resnet_gating": "branch",  # branch | inner | literal
    }
