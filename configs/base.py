"""Every field with its default: FedDP on CIFAR-10, ten clients, VGG-11.

    python -m launch.train --config=configs/base.py --workdir=runs/base

An algorithm's name after a colon brings that algorithm's fields:
`--config=configs/base.py:fedprox`. Any field can be changed on the command line:
`--config.client.epochs=2`.
"""

from typing import Any

from ml_collections import ConfigDict, config_dict

AUTOFLIP = {
    "base": "fedavg",  # fedavg | fedprox | scaffold: what trains under the masks
    "mu": 0.01,  # of fedprox, at least 0
    "explorer_share": 1.0,  # of the clients, in (0, 1]
    "explore_epochs": 150,  # of an explorer at most, at least 1
    "explore_patience": 40,  # epochs without a lower loss, at least 1
    "explore_monitor": "epoch",  # epoch | last_batch: whose loss
    "explore_base": "init",  # init | warm: deviations from w0 or after one epoch
    "explorer_weighting": "uniform",  # uniform | samples
    "start_from": "init",  # init | explored_mean: where the rounds begin
    "guidance_norm": "minmax",  # minmax | robust | rank | none
    "threshold": 0.3,  # share of the weights to prune, in [0, 1)
    "threshold_scope": "global",  # global | per_tensor
    "prune_biases": False,  # biases and norms, too
    "exempt_layers": (),  # patterns, "fc2/*": go only with channels they read
    "min_keep": 0.01,  # share of each array kept before channels go, in [0, 1]
    "structured_rule": "keep_ratio",  # keep_ratio | guidance_l1 | off
    "structured_density": 0.1,  # keep_ratio: channels this dense go, at most 1
    "structured_share": 0.0,  # guidance_l1: share of the channels, in [0, 1)
    "structured_residual": False,  # channels that are added may go
    "mask_schedule": "participants",  # fixed | participants | agreement
    "mask_every": 0,  # rounds between masks, 0 = 1, for agreement 10
    "agreement_rate": 0.1,  # of the smoothing, in (0, 1]
    "agreement_power": 1.0,  # of the agreement in the score, at least 0
    "agreement_change": 0.05,  # share of entries an update may change, in [0, 1]
    "agreement_source": "votes",  # votes | update_sign
    "threshold_start": 0.0,  # where the ramp begins, in [0, 1)
    "threshold_ramp": 0,  # rounds of the ramp of agreement, 0 = none
    "server_store": "dense",  # dense | sparse: what is kept of what is pruned
}
"""AutoFLIP's fields: the preset autoflip-v3 of configs/autoflip.py."""

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
    "autoflip": AUTOFLIP,
    # As sparse, array by array, as AutoFLIP's mask of the same exploration.
    "random_pruning": AUTOFLIP | {"mask_schedule": "fixed"},
    "random_steps": {
        "ratio": 0.45,  # of the weights set to 0 after every local step, in [0, 1)
    },
    "prunefl": {
        "adjust_every": 50,  # rounds between adjustments, at least 1
        "prune_share": 0.3,  # of the active weights dropped by magnitude, in [0, 1)
        "share_decay": 1.0,  # of that share, from adjustment to adjustment, in (0, 1]
        "max_adjustments": 50,  # before the first round, at least 1
        "constant_time": 1.0,  # of a round, above 0
        "byte_time": 1e-6,  # to send a byte, at least 0
        "mac_time": 1e-9,  # for a multiply-accumulate of an image, at least 0
    },
    "eflprune": {
        "channel_share": 0.3,  # of the channels left out, in [0, 1)
        "structured_residual": False,  # channels that are added may be left out
    },
    "fedsnip": {
        "threshold": 0.3,  # share of the weights to prune, in [0, 1)
        "threshold_scope": "global",  # global | per_tensor
        "min_keep": 0.01,  # share of each array that always stays, in [0, 1]
    },
    "magnitude": {
        "threshold": 0.3,  # share of the weights to prune, in [0, 1)
        "threshold_scope": "global",  # global | per_tensor
        "min_keep": 0.01,  # share of each array kept before channels go, in [0, 1]
        "structured_rule": "off",  # off | keep_ratio
        "structured_density": 0.1,  # keep_ratio: channels this dense go, at most 1
        "warmup_rounds": 0,  # unpruned rounds before, at least 0
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
            "client_rows": "device",  # device | host: where clients' states are kept
            "compact_training": False,  # with masks: rounds on the smaller model
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
                "lr_decay": 1.0,  # of all step sizes from round to round, in (0, 1]
                "momentum": 0.0,  # of sgd, in [0, 1), from zero in every round
                "weight_decay": 5e-4,  # added to the gradient, at least 0
                "epochs": 10,  # local epochs a round, at least 1
                "batch_size": 64,  # examples a step, at least 1
            },
            "server": {
                "optimizer": "sgd",  # sgd | momentum | damped | adam | yogi
                "lr": 1.0,  # server step size, above 0
                "momentum": 0.9,  # of momentum and damped, in [0, 1)
                "b1": 0.9,  # of adam and yogi, in [0, 1)
                "b2": 0.99,  # of adam and yogi, in [0, 1)
                "eps": 1e-3,  # of adam and yogi, above 0
            },
            "algorithm": algorithm(algorithm_name),
        }
    )


def _data() -> dict[str, Any]:
    return {
        "name": "cifar10",  # ... | cifar100 | mnist | digits | femnist | shakespeare
        "dir": "",  # folder of the TFDS data sets, "" = TFDS_DATA_DIR; of femnist and
        # shakespeare the folder of their files
        "size": 0,  # images are scaled to so many pixels a side, 0 = as stored
        "seed": 2020,  # of the partition and validation sets, in [0, 2^32)
        "num_train": 0,  # the first so many training images, 0 = all
        "partitioner": "dirichlet",  # iid | dirichlet | quantity | shards |
        # pathological | dirichlet_in_turn | by_client (femnist, shakespeare)
        "num_clients": 10,  # clients in the population, at least 1
        "alpha": 0.1,  # dirichlet..., quantity: above 0, smaller is more uneven
        "min_size": 10,  # dirichlet, quantity: examples a client, at least 1
        "classes_per_client": 2,  # shards, pathological: in [1, number of classes]
        "local_val": "matched_test",  # matched_test | holdout
        "augment": "crop",  # none | crop (reflect-pad crop and flip) | jitter (flip
        # and colours), with flips where labels allow them | code (AutoFLIP's: always)
        "normalize": "none",  # none | cifar10 (mean and standard deviation)
    }


def _model() -> dict[str, Any]:
    return {
        "name": "vgg11",  # ... | resnet32 | cnn | two_cnn | femnist_cnn | resnet9
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
