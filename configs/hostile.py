"""Two of ten clients attack: what each aggregator is worth, on handwritten digits.

    python -m fedjax_prune train --config=hostile:median --workdir=runs/median

The text after the colon is AGGREGATOR[,ATTACK]: mean, median, trimmed_mean or
norm_clipping, and sign_flip, scaled or none. All aggregators with one attack:

    python -m fedjax_prune sweep --config=hostile --workdir=runs/hostile \
        --settings="mean median trimmed_mean norm_clipping"

Accuracy on the test set after 30 rounds, two CPU cores, one seed, 3 seconds a run:

    aggregator      none    sign_flip  scaled (-10)
    mean            92.7%   91.5%      10.1%
    median          95.2%   93.0%      92.4%
    trimmed_mean    95.5%   92.1%      93.5%
    norm_clipping   96.1%   91.3%      82.3%

A client that flips its sign costs little at this size, because eight honest updates
outweigh it. Two that also scale end the mean: its rounds then drop clients that
diverge. FedAvg trains a small CNN. The clients have rather even shares of the digits
(Dirichlet 10), because the median of clients that differ is no good model for any.
"""

from typing import Any

from fedjax_prune.engine.hostile import ATTACKS
from fedjax_prune.engine.policy import AGGREGATORS

from . import base, quickstart

NONE = "none"


def get_config(text: str = "mean") -> Any:
    """A run of one aggregator under one attack.

    Args:
      text: AGGREGATOR[,ATTACK]; the attack is sign_flip if none is named.

    Raises:
      ValueError: if a part is unknown.
    """
    aggregator, attack = base.parts(
        text, {"AGGREGATOR": AGGREGATORS, "ATTACK": (*ATTACKS, NONE)}, ATTACKS[:1]
    )
    config = quickstart.get_config()
    config.algorithm = base.algorithm("fedavg")
    config.rounds = 30
    config.on_bad_client = "drop"
    config.aggregator = aggregator
    config.trim_fraction = 0.2
    config.clip_norm = 1.0
    config.data.alpha = 10.0
    config.model.gated = False
    config.model.norm = "none"
    if attack != NONE:
        config.hostile.fraction = 0.2
        config.hostile.attack = attack
    return config
