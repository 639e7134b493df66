"""The experiments of AutoFLIP, chosen by WORK,METHOD,SIZE; the last two have defaults.

    python -m fedjax_prune train --config=autoflip:mnist --workdir=runs/mnist
    python -m fedjax_prune train --config=autoflip:digits,prunefl,cpu \
        --workdir=runs/digits_prunefl

WORK is mnist, cifar10, cifar100, femnist, shakespeare or digits. METHOD is autoflip
(preset autoflip-v3: masks from each round's clients), autoflip_static (one mask),
autoflip_v5 (client agreement), autoflip_code (what the authors' code does, without its
faults), autoflip_hard (weights and channels, for about the paper's savings),
autoflip_channels (only channels, starting from the mean of the explorers), fedavg,
fedavg_plain (no server momentum), random, random_steps, prunefl, eflprune, fedsnip,
magnitude, or ablation10 ... ablation50, AutoFLIP with that threshold in percent. SIZE
is full (the authors' commands) or cpu (minutes on two cores). The digits are embedded;
the authors did not use them; they are trained as MNIST is, on images of 16 pixels.

FEMNIST and Shakespeare are read from the folder `data.dir`; `data.num_clients` of its
clients take part. A role of Shakespeare needs 791 windows to hold some out. If fewer
roles than asked for have them, the error says how many do. Settings that the authors'
commands leave open are those of their code.

References:
  Internò et al., Federated Hybrid Model Pruning through Loss Landscape Exploration,
  https://arxiv.org/abs/2405.10271; https://github.com/ChristianInterno/AutoFLIP.
"""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

from fedjax_prune.data.datasets import DATASETS

from . import base


class Work(NamedTuple):
    """A data set, its clients and its network."""

    partitioner: str
    alpha: float
    size: int
    model: str
    width: float
    num_clients: int
    cohort_size: int
    every: int
    explorer_share: float = 1.0
    augment: str = "none"


class Method(NamedTuple):
    """An algorithm with the settings that differ from its defaults.

    Attributes:
      algorithm: a name in ALGORITHMS.
      fields: of the algorithm.
      augment: of images; empty for that of the data set.
      every: rounds from one evaluation to the next; 0 for those of the data set.
      server: optimiser of the server.
    """

    algorithm: str
    fields: Mapping[str, Any] = MappingProxyType({})
    augment: str = ""
    every: int = 0
    server: str = "damped"


class Small(NamedTuple):
    """The reduced sizes of the CPU profile, and local training that suits them."""

    rounds: int
    num_train: int
    width: float
    size: int = 24
    num_clients: int = 20
    cohort_size: int = 5
    num_test: int = 1_000
    epochs: int = 2
    batch_size: int = 20
    optimizer: str = "adam"
    # Adam starts anew in every round, so a few steps of 3e-4 hardly move.
    lr: float = 1e-3
    normalize: str = "none"
    data_seed: int = 2020


_MNIST = Work(
    partitioner="pathological",
    alpha=0.1,
    size=24,
    model="two_cnn",
    width=1.0,
    num_clients=20,
    cohort_size=5,
    every=10,
)

WORKS = {
    "digits": _MNIST._replace(size=16),
    "mnist": _MNIST,
    "cifar10": _MNIST._replace(augment="jitter"),
    "cifar100": Work(
        partitioner="dirichlet_in_turn",
        alpha=1.0,
        size=24,
        model="two_cnn",
        width=4.0,
        num_clients=20,
        cohort_size=1,
        every=10,
        augment="jitter",
    ),
    # A hundred whole writers have about 2.82 % of the 805,263 images.
    "femnist": Work(
        partitioner="by_client",
        alpha=0.1,
        size=0,
        model="femnist_cnn",
        width=1.0,
        num_clients=100,
        cohort_size=25,
        every=20,
    ),
    # LEAF has 1,129 roles; 0.016 of them a round.
    "shakespeare": Work(
        partitioner="by_client",
        alpha=0.1,
        size=0,
        model="next_char_lstm",
        width=1.0,
        num_clients=1129,
        cohort_size=18,
        every=10,
        explorer_share=0.03,
    ),
}

SMALL = {
    "digits": Small(100, 0, 0.5, size=16, num_test=0, optimizer="sgd", lr=0.05),
    "mnist": Small(150, 4_000, 0.5, num_test=2_000, optimizer="sgd", lr=0.1),
    "cifar10": Small(
        300,
        10_000,
        0.5,
        size=16,
        num_test=2_000,
        epochs=1,
        batch_size=25,
        optimizer="sgd",
        lr=0.05,
        normalize="cifar10",
    ),
    "cifar100": Small(20, 4_000, 1.0, cohort_size=1),
    "femnist": Small(20, 0, 0.5, size=0, num_clients=10, cohort_size=3, num_test=0),
    # Of 150 roles of tiny Shakespeare the seed draws ten small ones, 943 to 2,425
    # windows each.
    "shakespeare": Small(
        150,
        0,
        0.25,
        size=0,
        num_clients=10,
        cohort_size=2,
        num_test=0,
        epochs=1,
        lr=3e-3,
        data_seed=895,
    ),
}

METHODS = {
    "autoflip": Method("autoflip"),
    "autoflip_static": Method("autoflip", {"mask_schedule": "fixed"}),
    "autoflip_v5": Method("autoflip", {"mask_schedule": "agreement"}),
    "autoflip_code": Method(
        "autoflip",
        {
            "prune_biases": True,
            "explore_base": "warm",
            "explore_monitor": "last_batch",
            "structured_rule": "off",
            "mask_schedule": "fixed",
        },
        augment="code",
    ),
    "autoflip_hard": Method(
        "autoflip",
        {
            "guidance_norm": "rank",
            "threshold": 0.4,
            "structured_rule": "guidance_l1",
            "structured_share": 0.3,
            "mask_schedule": "fixed",
        },
    ),
    "autoflip_channels": Method(
        "autoflip",
        {
            "guidance_norm": "rank",
            "threshold": 0.0,
            "structured_rule": "guidance_l1",
            "structured_share": 0.32,
            "mask_schedule": "fixed",
            "start_from": "explored_mean",
        },
    ),
    "fedavg": Method("fedavg"),
    "fedavg_plain": Method("fedavg", server="sgd"),
    "random": Method("random_pruning"),
    "random_steps": Method("random_steps"),
    "prunefl": Method("prunefl"),
    "eflprune": Method("eflprune"),
    "fedsnip": Method("fedsnip"),
    "magnitude": Method("magnitude"),
    **{
        f"ablation{percent}": Method("autoflip", {"threshold": percent / 100}, every=5)
        for percent in (10, 20, 30, 40, 50)
    },
}

SIZES = ("full", "cpu")


def get_config(text: str = "mnist") -> Any:
    """The settings of one run.

    Args:
      text: WORK, WORK,METHOD or WORK,METHOD,SIZE.

    Raises:
      ValueError: if a part is unknown.
    """
    name, method_name, size = base.parts(
        text, {"WORK": WORKS, "METHOD": METHODS, "SIZE": SIZES}, ("autoflip", "full")
    )
    work, method = WORKS[name], METHODS[method_name]
    config = base.get_config(method.algorithm)
    config.algorithm.update(method.fields)
    config.rounds = 200
    # Otherwise a device would hold the deviations of all explorers.
    config.client_rows = "host"
    config.cohort_size = work.cohort_size
    config.eval.every = method.every or work.every
    config.eval.num_clients = 0
    config.eval.target_accuracy = 0.0
    config.data.name = name
    config.data.partitioner = work.partitioner
    config.data.alpha = work.alpha
    config.data.size = work.size
    config.data.num_clients = work.num_clients
    config.data.local_val = "holdout"
    config.data.augment = work.augment
    if method.augment and DATASETS[name].kind == "image":
        config.data.augment = method.augment
    config.model.name = work.model
    config.model.width = work.width
    config.model.dropout = 0.0
    config.model.gated = False
    config.client.optimizer = "adam"
    config.client.lr = 3e-4
    config.client.lr_schedule = "constant"
    config.client.lr_decay = 0.99
    config.client.weight_decay = 0.0
    config.client.epochs = 5
    config.client.batch_size = 350
    config.server.optimizer = method.server
    if "explorer_share" in config.algorithm:
        config.algorithm.explorer_share = work.explorer_share
    if size == "cpu":
        _shrink(config, SMALL[name])
    return config


def _shrink(config: Any, small: Small) -> None:
    """Fewer and smaller examples, fewer channels, short exploration, plain images."""
    config.data.augment = "none"
    config.rounds = config.save_every = small.rounds
    config.lanes = 1
    # For a first look, whose run ends with a page.
    config.report.every = 10 if config.data.name == "digits" else 0
    config.eval.every = 5
    config.eval.num_examples = small.num_test
    config.eval.num_clients = 1
    config.data.num_train = small.num_train
    config.data.seed = small.data_seed
    config.data.size = small.size
    config.data.normalize = small.normalize
    config.data.num_clients = small.num_clients
    config.cohort_size = small.cohort_size
    config.model.width = small.width
    config.client.optimizer = small.optimizer
    config.client.lr = small.lr
    config.client.batch_size = small.batch_size
    config.client.epochs = small.epochs
    if "explore_epochs" in config.algorithm:
        config.algorithm.explore_epochs = 5
        config.algorithm.explore_patience = 3
        config.algorithm.explorer_share = 1.0
