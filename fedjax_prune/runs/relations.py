"""The relations between fields of a configuration that must fit together.

A data set, a model and an algorithm declare their own needs: in the entry of DATASETS,
in the method `needs` and in the entry of ALGORITHMS.
"""

from collections.abc import Callable
from typing import NamedTuple

from fedjax_prune.algorithms import ALGORITHMS
from fedjax_prune.algorithms.autoflip.autoflip import MASKED_BASES
from fedjax_prune.data.datasets import DATASETS
from fedjax_prune.data.partition import OPTIONS
from fedjax_prune.engine.solver import OPTIMIZERS
from fedjax_prune.models import MODELS


class Relation(NamedTuple):
    """A condition on several fields together.

    Attributes:
      fields: dotted names; the relation is skipped where one has a mistake already
        or is not in the configuration.
      holds: called with their values.
      text: the message; `{0}`, `{1}` stand for the values.
    """

    fields: tuple[str, ...]
    holds: Callable[..., bool]
    text: str


_LINEAR = [name for name, make in OPTIMIZERS.items() if make(0.0)[1]]
"""Client optimisers linear in the gradient: those with momentum and step mass."""

_BY_CLIENT = " and ".join(name for name, info in DATASETS.items() if info.by_client)

_READERS = "; ".join(
    f"{kind}: {', '.join(n for n in MODELS if MODELS[n].needs().kind == kind)}"
    for kind in ("image", "text")
)


def _fits(model: str) -> Relation:
    """The relation that the data set's images suit a model."""
    needs = MODELS[model].needs()
    return Relation(
        ("model.name", "data.name", "data.size"),
        lambda name, data, size: (
            (name, DATASETS[data].kind) != (model, needs.kind)
            or all(needs.sides.holds(size or n) for n in DATASETS[data].image_shape[:2])
        ),
        f"model.name {model} needs images {needs.sides.text}, got data.name {{1!r}} "
        "and data.size {2}",
    )


RELATIONS = (
    Relation(
        ("cohort_size", "data.num_clients"),
        lambda cohort_size, num_clients: cohort_size <= num_clients,
        "cohort_size must be at most data.num_clients = {1}, got {0}",
    ),
    Relation(
        ("data.num_train", "data.num_clients"),
        lambda num_train, num_clients: num_train == 0 or num_train >= num_clients,
        "data.num_train must be 0 (all) or at least data.num_clients = {1}, got {0}",
    ),
    Relation(
        ("data.min_size", "data.num_clients", "data.num_train", "data.partitioner"),
        lambda min_size, num_clients, num_train, partitioner: (
            "min_size" not in OPTIONS.get(partitioner, ())
            or num_train < num_clients
            or min_size * num_clients <= num_train
        ),
        "data.min_size must be at most data.num_train / data.num_clients = {2} / {1} "
        "with data.partitioner {3}, got {0}",
    ),
    Relation(
        ("data.classes_per_client", "data.name", "data.partitioner"),
        lambda classes, name, partitioner: (
            "classes_per_client" not in OPTIONS.get(partitioner, ())
            or classes <= DATASETS[name].num_classes
        ),
        "data.classes_per_client must be at most the number of classes of {1}, got {0}",
    ),
    Relation(
        ("data.normalize", "data.name"),
        lambda normalize, name: (
            normalize == "none" or DATASETS[name].image_shape[-1] == 3
        ),
        "data.normalize must be none for {1}, whose images have one channel, got {0!r}",
    ),
    *(_fits(model) for model in MODELS),
    Relation(
        ("model.name", "data.name"),
        lambda model, name: MODELS[model].needs().kind == DATASETS[name].kind,
        f"model.name must suit the kind of data.name {{1}} ({_READERS}), got {{0!r}}",
    ),
    Relation(
        ("data.partitioner", "data.name"),
        lambda partitioner, name: (
            (partitioner == "by_client") == DATASETS[name].by_client
        ),
        f"data.partitioner must be by_client for {_BY_CLIENT}, and for them alone, got "
        "{0!r} for {1!r}",
    ),
    Relation(
        ("data.local_val", "data.name"),
        lambda local_val, name: local_val == "holdout" or not DATASETS[name].by_client,
        "data.local_val must be holdout for {1}, which has no test set, got {0!r}",
    ),
    Relation(
        ("data.size", "data.augment", "data.name"),
        lambda size, augment, name: (
            DATASETS[name].kind != "text" or (size == 0 and augment == "none")
        ),
        "data.size must be 0 and data.augment none for {2}, which is text, got {0} "
        "and {1!r}",
    ),
    Relation(
        ("model.gated", "model.name"),
        lambda gated, name: not gated or MODELS[name].needs().gates,
        "model.gated must be false for {1}, got {0}",
    ),
    Relation(
        ("model.norm", "model.name"),
        lambda norm, name: norm in MODELS[name].needs().norms,
        "model.norm must be none for {1}, got {0!r}",
    ),
    Relation(
        ("compact_training", "algorithm.name"),
        lambda compact, name: not compact or ALGORITHMS[name].has_masks,
        "compact_training must be false with algorithm.name {1}, which has no masks",
    ),
    Relation(
        ("client.lr_min", "client.lr"),
        lambda lr_min, lr: lr_min <= lr,
        "client.lr_min must be at most client.lr = {1}, got {0}",
    ),
    Relation(
        ("client.momentum", "client.optimizer"),
        lambda momentum, optimizer: momentum == 0 or optimizer in _LINEAR,
        "client.momentum must be 0 with client.optimizer {1}, got {0}",
    ),
    Relation(
        ("client.optimizer", "algorithm.name"),
        lambda optimizer, name: (
            optimizer in _LINEAR or not ALGORITHMS[name].needs_step_mass
        ),
        f"client.optimizer must be {' or '.join(_LINEAR)} with algorithm.name {{1}}, "
        "got {0!r}: {1} divides by the step mass, which only optimisers linear in the "
        "gradient have",
    ),
    Relation(
        ("client.optimizer", "algorithm.base"),
        lambda optimizer, base: (
            optimizer in _LINEAR or not ALGORITHMS[base].needs_step_mass
        ),
        f"client.optimizer must be {' or '.join(_LINEAR)} with algorithm.base {{1}}, "
        "got {0!r}",
    ),
    Relation(
        ("algorithm.server_store", "algorithm.base"),
        lambda store, base: store in MASKED_BASES[base].stores,
        "algorithm.server_store must be dense with algorithm.base {1}, got {0!r}",
    ),
    Relation(
        ("algorithm.threshold_scope", "algorithm.mask_schedule"),
        lambda scope, schedule: scope == "global" or schedule != "agreement",
        "algorithm.threshold_scope must be global with algorithm.mask_schedule {1}, "
        "got {0!r}",
    ),
    Relation(
        ("algorithm.byte_time", "algorithm.mac_time"),
        lambda byte_time, mac_time: byte_time + mac_time > 0,
        "algorithm.byte_time must be above 0 if algorithm.mac_time is 0, got {0}",
    ),
    Relation(
        ("algorithm.control_divisor", "algorithm.control_weights"),
        lambda divisor, weights: divisor == "num_clients" or weights == "uniform",
        "algorithm.control_divisor must be num_clients with "
        "algorithm.control_weights {1}, got {0!r}",
    ),
)
