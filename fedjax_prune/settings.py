"""Finds every mistake in a configuration before anything is loaded or compiled.

A configuration is compared with one that states every field (unknown and missing
fields, types), then with RULES (one field each) and RELATIONS (fields that must fit
together).
"""

import difflib
import math
from collections.abc import Callable, Collection
from typing import Any, NamedTuple

from fedjax_prune import hybrid, pruning, stopping, store
from fedjax_prune.algorithms import ALGORITHMS, exploration, masked, schedules
from fedjax_prune.algorithms.autoflip import MASK_SCHEDULES, MASKED_BASES, START_FROM
from fedjax_prune.algorithms.scaffold import (
    CONTROL_DIVISORS,
    CONTROL_INITS,
    CONTROL_WEIGHTS,
)
from fedjax_prune.data.augment import AUGMENTATIONS
from fedjax_prune.data.load import DATASETS
from fedjax_prune.data.partition import PARTITIONERS
from fedjax_prune.gates import MODES, RESCALES, RESNET_GATINGS
from fedjax_prune.models import MODELS
from fedjax_prune.placement import REDUCTIONS
from fedjax_prune.precision import PRECISIONS
from fedjax_prune.server import SERVER_OPTIMIZERS
from fedjax_prune.solver import OPTIMIZERS, SCHEDULES

TYPES: dict[type, tuple[Any, str]] = {
    bool: (bool, "true or false"),
    int: (int, "a whole number"),
    float: (int | float, "a number"),
    str: (str, "a string"),
    tuple: (tuple, "a list of strings"),
}
"""Type of a field's default -> (types a value may have, their name)."""

MASKED = (
    *("autoflip", "random_pruning", "prunefl", "eflprune", "fedsnip", "magnitude"),
)
"""Algorithms that prune parameters of the shared model."""

OF_MANY_TYPES = ("lanes",)
"""Fields whose type only their rule knows."""


class SettingsError(ValueError):
    """A configuration that cannot be run.

    Attributes:
      problems: one sentence per mistake; `str` of the error has one on each line.
    """

    def __init__(self, problems: list[str]):
        super().__init__("\n".join(problems))
        self.problems = problems


class Rule(NamedTuple):
    """What one field must be: a test and the words after the field's name."""

    holds: Callable[[Any], bool]
    text: str


class Relation(NamedTuple):
    """What several fields must be together.

    Attributes:
      fields: dotted names; the relation is skipped where one has a mistake already
        or is not in the configuration.
      holds: called with their values.
      text: the message; `{0}`, `{1}` stand for the values.
    """

    fields: tuple[str, ...]
    holds: Callable[..., bool]
    text: str


def check(config: Any, base: Any) -> None:
    """Refuses a configuration with mistakes.

    Args:
      config: a ConfigDict or nested dicts.
      base: a configuration with every field and a value of its type.

    Raises:
      SettingsError: with every mistake.
    """
    if found := problems(config, base):
        raise SettingsError(found)


def problems(config: Any, base: Any) -> list[str]:
    """Lists every mistake in a configuration.

    Args:
      config: a ConfigDict or nested dicts.
      base: a configuration with every field and a value of its type; None stands
        for a field whose type only its rule knows.

    Returns:
      One sentence per mistake, with the field, what it must be and its value.
    """
    values, defaults = flatten(config), flatten(base)
    found = {name: unknown(name, defaults) for name in values.keys() - defaults.keys()}
    for name, default in defaults.items():
        if name not in values:
            found[name] = f"{name} is missing; its default is {default!r}"
            continue
        value = values[name]
        for rule in (_type_rule(name, default), RULES.get(name)):
            if rule is not None and not rule.holds(value):
                found[name] = f"{name} must be {rule.text}, got {value!r}"
                break
    related = [
        relation.text.format(*(values[name] for name in relation.fields))
        for relation in RELATIONS
        if all(name in values and name not in found for name in relation.fields)
        and not relation.holds(*(values[name] for name in relation.fields))
    ]
    return [found[name] for name in sorted(found)] + related


def unknown(name: str, known: Collection[str]) -> str:
    """The sentence for a field that does not exist, with the nearest that does."""
    nearest = difflib.get_close_matches(name, known, n=1)
    # A right name in the wrong section is nearer than a similar path.
    leaf = name.rpartition(".")[2]
    nearest = [k for k in known if k.rpartition(".")[2] == leaf][:1] or nearest
    hint = f"; did you mean {nearest[0]}?" if nearest else ""
    return f"{name} is not a field{hint}"


def flatten(config: Any, prefix: str = "") -> dict[str, Any]:
    """Nested dicts as one dict of dotted names."""
    flat = {}
    for name, value in config.items():
        if hasattr(value, "items"):
            flat |= flatten(value, f"{prefix}{name}.")
        else:
            flat[f"{prefix}{name}"] = value
    return flat


def _type_rule(name: str, default: Any) -> Rule | None:
    """A whole number is a number, too; True and False are neither."""
    if default is None or name in OF_MANY_TYPES:
        return None
    kind, text = TYPES[type(default)]
    is_bool = isinstance(default, bool)
    return Rule(lambda v: isinstance(v, kind) and isinstance(v, bool) == is_bool, text)


def _at_least(low: float) -> Rule:
    return Rule(lambda v: low <= v < math.inf, f"at least {low}")


def _above(low: float) -> Rule:
    return Rule(lambda v: low < v < math.inf, f"above {low}")


def _one_of(known: Collection[str]) -> Rule:
    return Rule(lambda v: v in known, f"one of {', '.join(known)}")


_FRACTION = Rule(lambda v: 0 <= v <= 1, "in [0, 1]")
_DECAY = Rule(lambda v: 0 <= v < 1, "in [0, 1)")
_SHARE = Rule(lambda v: 0 < v <= 1, "in (0, 1]")
_SEED = Rule(lambda v: 0 <= v < 2**32, "in [0, 2^32)")

RULES: dict[str, Rule] = {
    "seed": _SEED,
    "rounds": _at_least(1),
    "cohort_size": _at_least(1),
    "devices": _at_least(0),
    "lanes": Rule(
        lambda v: v == "auto" or (type(v) is int and v >= 1),
        "a whole number, at least 1, or auto",
    ),
    "precision": _one_of(PRECISIONS),
    "reduction": _one_of(REDUCTIONS),
    "client_rows": _one_of(store.STORES),
    "save_every": _at_least(1),
    "keep": _at_least(1),
    "eval.every": _at_least(1),
    "eval.num_clients": _at_least(0),
    "eval.num_examples": _at_least(0),
    "eval.target_accuracy": _FRACTION,
    "data.name": _one_of(DATASETS),
    "data.seed": _SEED,
    "data.num_train": _at_least(0),
    "data.partitioner": _one_of((*PARTITIONERS, "by_client")),
    "data.num_clients": _at_least(1),
    "data.alpha": _above(0),
    "data.size": _at_least(0),
    "data.min_size": _at_least(1),
    "data.classes_per_client": _at_least(1),
    "data.local_val": _one_of(("matched_test", "holdout")),
    "data.augment": _one_of(("none", *AUGMENTATIONS)),
    "data.normalize": _one_of(("none", "cifar10")),
    "model.name": _one_of(MODELS),
    "model.width": _above(0),
    "model.norm": _one_of(("none", "bn", "gn")),
    "model.dropout": _DECAY,
    "model.flops_target": _SHARE,
    "model.keep_ratio": Rule(
        lambda v: v is None or (isinstance(v, int | float) and 0 < v <= 1),
        "in (0, 1], or None to follow model.flops_target",
    ),
    "model.gate_mode": _one_of(MODES),
    "model.gate_rescale": _one_of(RESCALES),
    "model.gate_init": _one_of(("shared", "per_client")),
    "model.gate_bias": Rule(math.isfinite, "finite"),
    "model.lasso_weight": _at_least(0),
    "model.resnet_gating": _one_of(RESNET_GATINGS),
    "client.optimizer": _one_of(OPTIMIZERS),
    "client.lr": _above(0),
    "client.lr_schedule": _one_of(SCHEDULES),
    "client.lr_min": _at_least(0),
    "client.lr_decay": _SHARE,
    "client.momentum": _DECAY,
    "client.weight_decay": _at_least(0),
    "client.epochs": _at_least(1),
    "client.batch_size": _at_least(1),
    "server.optimizer": _one_of(SERVER_OPTIMIZERS),
    "server.lr": _above(0),
    "server.momentum": _DECAY,
    "server.b1": _DECAY,
    "server.b2": _DECAY,
    "server.eps": _above(0),
    "algorithm.name": _one_of(ALGORITHMS),
    "algorithm.mu": _at_least(0),
    "algorithm.control_weights": _one_of(CONTROL_WEIGHTS),
    "algorithm.control_init": _one_of(CONTROL_INITS),
    "algorithm.control_divisor": _one_of(CONTROL_DIVISORS),
    "algorithm.base": _one_of(MASKED_BASES),
    "algorithm.explorer_share": _SHARE,
    "algorithm.explore_epochs": _at_least(1),
    "algorithm.explore_patience": _at_least(1),
    "algorithm.explore_monitor": _one_of(stopping.MONITORS),
    "algorithm.explore_base": _one_of(exploration.EXPLORE_BASES),
    "algorithm.explorer_weighting": _one_of(exploration.WEIGHTINGS),
    "algorithm.start_from": _one_of(START_FROM),
    "algorithm.guidance_norm": _one_of(pruning.NORMALIZATIONS),
    "algorithm.threshold": _DECAY,
    "algorithm.threshold_scope": _one_of(pruning.SCOPES),
    "algorithm.min_keep": _FRACTION,
    "algorithm.structured_rule": _one_of(hybrid.STRUCTURED),
    "algorithm.structured_density": Rule(lambda v: v <= 1, "at most 1"),
    "algorithm.structured_share": _DECAY,
    "algorithm.mask_schedule": _one_of(MASK_SCHEDULES),
    "algorithm.mask_every": _at_least(0),
    "algorithm.agreement_rate": _SHARE,
    "algorithm.agreement_power": _at_least(0),
    "algorithm.agreement_change": _FRACTION,
    "algorithm.agreement_source": _one_of(schedules.SOURCES),
    "algorithm.threshold_start": _DECAY,
    "algorithm.threshold_ramp": _at_least(0),
    "algorithm.server_store": _one_of(masked.STORES),
    "algorithm.ratio": _DECAY,
    "algorithm.channel_share": _DECAY,
    "algorithm.warmup_rounds": _at_least(0),
    "algorithm.adjust_every": _at_least(1),
    "algorithm.prune_share": _DECAY,
    "algorithm.share_decay": _SHARE,
    "algorithm.max_adjustments": _at_least(1),
    "algorithm.constant_time": _above(0),
    "algorithm.byte_time": _at_least(0),
    "algorithm.mac_time": _at_least(0),
}

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
            partitioner not in ("dirichlet", "quantity")
            or num_train < num_clients
            or min_size * num_clients <= num_train
        ),
        "data.min_size must be at most data.num_train / data.num_clients = {2} / {1} "
        "with data.partitioner {3}, got {0}",
    ),
    Relation(
        ("data.classes_per_client", "data.name", "data.partitioner"),
        lambda classes, name, partitioner: (
            partitioner not in ("shards", "pathological")
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
    Relation(
        ("model.name", "data.name", "data.size"),
        lambda model, name, size: (
            model != "vgg11"
            or all((size or n) % 32 == 0 for n in DATASETS[name].image_shape[:2])
        ),
        "model.name vgg11 needs images with sides that are multiples of 32, "
        "got data.name {1!r} and data.size {2}",
    ),
    Relation(
        ("model.name", "data.name"),
        lambda model, name: (model == "next_char_lstm") == (name == "shakespeare"),
        "model.name next_char_lstm and data.name shakespeare need each other, got "
        "{0!r} and {1!r}",
    ),
    Relation(
        ("data.partitioner", "data.name"),
        lambda partitioner, name: (
            (partitioner == "by_client") == DATASETS[name].by_client
        ),
        "data.partitioner must be by_client for shakespeare and femnist, and for them "
        "alone, got {0!r} for {1!r}",
    ),
    Relation(
        ("data.local_val", "data.name"),
        lambda local_val, name: local_val == "holdout" or not DATASETS[name].by_client,
        "data.local_val must be holdout for {1}, which has no test set, got {0!r}",
    ),
    Relation(
        ("data.size", "data.augment", "data.name"),
        lambda size, augment, name: (
            name != "shakespeare" or (size == 0 and augment == "none")
        ),
        "data.size must be 0 and data.augment none for {2}, which is text, got {0} "
        "and {1!r}",
    ),
    Relation(
        ("model.gated", "model.norm", "model.name"),
        lambda gated, norm, name: (
            name != "next_char_lstm" or (not gated and norm == "none")
        ),
        "model.gated must be false and model.norm none for {2}, got {0} and {1!r}",
    ),
    Relation(
        ("compact_training", "algorithm.name"),
        lambda compact, name: not compact or name in MASKED,
        "compact_training must be false with algorithm.name {1}, which has no masks",
    ),
    Relation(
        ("client.lr_min", "client.lr"),
        lambda lr_min, lr: lr_min <= lr,
        "client.lr_min must be at most client.lr = {1}, got {0}",
    ),
    Relation(
        ("client.momentum", "client.optimizer"),
        lambda momentum, optimizer: momentum == 0 or optimizer == "sgd",
        "client.momentum must be 0 with client.optimizer {1}, got {0}",
    ),
    Relation(
        ("client.optimizer", "algorithm.name"),
        lambda optimizer, name: (
            optimizer == "sgd" or name not in ("fednova", "scaffold")
        ),
        "client.optimizer must be sgd with algorithm.name {1}, got {0!r}: {1} divides "
        "by the step mass, which only optimisers linear in the gradient have",
    ),
    Relation(
        ("client.optimizer", "algorithm.base"),
        lambda optimizer, base: optimizer == "sgd" or base != "scaffold",
        "client.optimizer must be sgd with algorithm.base {1}, got {0!r}",
    ),
    Relation(
        ("algorithm.server_store", "algorithm.base"),
        lambda store, base: store == "dense" or base != "scaffold",
        "algorithm.server_store must be dense with algorithm.base {1}, got {0!r}",
    ),
    Relation(
        ("algorithm.threshold_scope", "algorithm.mask_schedule"),
        lambda scope, schedule: scope == "global" or schedule != "agreement",
        "algorithm.threshold_scope must be global with algorithm.mask_schedule {1}, "
        "got {0!r}",
    ),
    Relation(
        ("algorithm.control_divisor", "algorithm.control_weights"),
        lambda divisor, weights: divisor == "num_clients" or weights == "uniform",
        "algorithm.control_divisor must be num_clients with "
        "algorithm.control_weights {1}, got {0!r}",
    ),
)
