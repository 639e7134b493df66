"""The relations between fields of a configuration that must fit together.

Relations within one section are declared by the section's builder. A data set, a model
and an algorithm declare their own needs: in the entry of DATASETS, in the method
`needs` and in the entry of ALGORITHMS. This file collects all of them, and declares
those that cross sections.
"""

from collections.abc import Mapping
from typing import Any

from fedjax_prune.algorithms import ALGORITHMS, Algorithm
from fedjax_prune.data.datasets import DATASETS, info_of
from fedjax_prune.data.partition import OPTIONS
from fedjax_prune.engine.policy import ORDERED
from fedjax_prune.engine.solver import LINEAR
from fedjax_prune.fields import Relation, fields_of, relations_of
from fedjax_prune.models import MODELS, own
from fedjax_prune.models.needs import Needs
from fedjax_prune.runs.sections import ALGORITHM, RELATED, SECTIONS
from fedjax_prune.shares import num_in

_BY_CLIENT = ", ".join(name for name, info in DATASETS.items() if info.by_client)
_OWN = " or ".join(name for name, info in DATASETS.items() if info.own)

_READERS = "; ".join(
    f"{kind}: {', '.join(n for n in MODELS if MODELS[n].needs().kind == kind)}"
    for kind in ("image", "text", "vector")
)


def _needs(model: str) -> Needs | None:
    """What a model can work with; None if a class of the user's own does not say."""
    if not own.is_own(model):
        return MODELS[model].needs()
    cls: Any = own.load_class(model).cls
    return cls.needs() if hasattr(cls, "needs") else None


def _by_client(name: str, partitioner: str) -> bool:
    """Whether clients have their own examples."""
    return (
        partitioner == "by_client" if DATASETS[name].own else DATASETS[name].by_client
    )


def _step_mass(field: str) -> Relation:
    """The relation of the client optimiser to the algorithm that a field names."""
    return Relation(
        ("client.optimizer", field),
        lambda optimizer, name: (
            optimizer in LINEAR or not ALGORITHMS[name].needs_step_mass
        ),
        f"client.optimizer must be {' or '.join(LINEAR)} with {field} {{1}}, got "
        "{0!r}: {1} divides by the step mass, which only optimisers linear in the "
        "gradient have",
    )


def _private(field: str, wanted: Any, why: str) -> Relation:
    """The relation of a field that has one value only in private runs."""
    shown = str(wanted).lower()
    return Relation(
        (field, "privacy.clip_norm"),
        lambda value, clip_norm: not clip_norm or value == wanted,
        f"{field} must be {shown} with privacy.clip_norm {{1}}, got {{0!r}}: {why}",
    )


RELATIONS = (
    Relation(
        ("cohort_size", "data.num_clients"),
        lambda cohort_size, num_clients: cohort_size <= num_clients,
        "cohort_size must be at most data.num_clients = {1}, got {0}",
    ),
    Relation(
        ("rows_dir", "client_rows"),
        lambda rows_dir, client_rows: not rows_dir or client_rows == "disk",
        "rows_dir must be empty with client_rows {1}, got {0!r}: only disk has files",
    ),
    Relation(
        ("keep_every", "save_every"),
        lambda keep_every, save_every: keep_every % save_every == 0,
        "keep_every must be 0 or a multiple of save_every = {1}, got {0}",
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
        ("data.classes_per_client", "data.name", "data.partitioner", "data.classes"),
        lambda per_client, name, partitioner, classes: (
            "classes_per_client" not in OPTIONS.get(partitioner, ())
            or per_client <= (info_of(name, classes).num_classes or per_client)
        ),
        "data.classes_per_client must be at most the number of classes of {1}, got {0}",
    ),
    Relation(
        ("data.normalize", "data.name", "data.image_shape"),
        lambda normalize, name, shape: (
            normalize == "none" or info_of(name, shape=shape).image_shape[-1] in (0, 3)
        ),
        "data.normalize must be none for {1}, which has no colour images, got {0!r}",
    ),
    Relation(
        ("model.name", "data.name", "data.image_shape"),
        lambda model, name, shape: (
            (needs := _needs(model)) is None
            or (DATASETS[name].own and not shape)
            or needs.kind == info_of(name, shape=shape).kind
        ),
        f"model.name must suit the kind of data.name {{1}} ({_READERS}), got {{0!r}}",
    ),
    Relation(
        ("data.partitioner", "data.name"),
        lambda partitioner, name: (
            DATASETS[name].own
            or (partitioner == "by_client") == DATASETS[name].by_client
        ),
        f"data.partitioner must be by_client for {_BY_CLIENT}, and for them and your "
        "own data alone, got {0!r} for {1!r}",
    ),
    Relation(
        ("data.local_val", "data.name", "data.partitioner"),
        lambda local_val, name, partitioner: (
            local_val == "holdout" or not _by_client(name, partitioner)
        ),
        "data.local_val must be holdout for {1}, whose clients have their own "
        "examples, got {0!r}",
    ),
    Relation(
        ("data.dir", "data.name"),
        lambda folder, name: bool(folder) or not DATASETS[name].own,
        "data.dir must name the folder of your data for data.name {1}, got {0!r}",
    ),
    Relation(
        ("data.classes", "data.image_shape", "data.name"),
        lambda classes, shape, name: (
            bool(classes) == bool(shape)
            if DATASETS[name].own
            else not (classes or shape)
        ),
        f"data.classes and data.image_shape must be empty, or both be given for "
        f"{_OWN}, got {{0}} and {{1!r}} for {{2!r}}",
    ),
    Relation(
        ("data.num_train", "data.name", "data.partitioner"),
        lambda num_train, name, partitioner: (
            num_train == 0 or not DATASETS[name].own or partitioner != "by_client"
        ),
        "data.num_train must be 0 for {1} with data.partitioner {2}, whose clients "
        "have their own examples, got {0}",
    ),
    Relation(
        ("data.num_train", "data.name"),
        lambda num_train, name: num_train == 0 or not DATASETS[name].generated,
        "data.num_train must be 0 for {1}, whose size follows from data.num_clients "
        "and data.client_size, got {0}",
    ),
    Relation(
        ("data.size", "data.augment", "data.name", "data.image_shape"),
        lambda size, augment, name, shape: (
            info_of(name, shape=shape).kind == "image"
            or (size == 0 and augment == "none")
        ),
        "data.size must be 0 and data.augment none for {2}, which has no images, got "
        "{0} and {1!r}",
    ),
    Relation(
        ("compact_training", "algorithm.name"),
        lambda compact, name: not compact or bool(ALGORITHMS[name].channels_field),
        "compact_training must be false with algorithm.name {1}, which removes no "
        "channels",
    ),
    Relation(
        ("trim_fraction", "aggregator", "cohort_size"),
        lambda fraction, aggregator, cohort_size: (
            aggregator != "trimmed_mean" or num_in(fraction, cohort_size) > 0
        ),
        "trim_fraction must be at least 1 / cohort_size = 1 / {2} with aggregator {1}, "
        "got {0}",
    ),
    Relation(
        ("hostile.fraction", "data.num_clients"),
        lambda fraction, num_clients: not fraction or num_in(fraction, num_clients) > 0,
        "hostile.fraction must be 0 or at least 1 / data.num_clients = 1 / {1}, got "
        "{0}",
    ),
    _private("aggregator", "mean", "the noise is for a sum"),
    _private("on_bad_client", "drop", "a round must not tell who has arrived"),
    _private("model.gated", False, "clients must keep nothing between rounds"),
    Relation(
        ("model.norm", "privacy.clip_norm"),
        lambda norm, clip_norm: not clip_norm or norm != "bn",
        "model.norm must not be bn with privacy.clip_norm {1}: noise could make a "
        "variance negative",
    ),
    _step_mass("algorithm.name"),
)
"""The relations of every configuration that cross sections or come from its kinds."""


_WARMUP = Relation(
    ("algorithm.warmup_rounds", "rounds"),
    lambda warmup, rounds: warmup < rounds,
    "algorithm.warmup_rounds must be below rounds = {1}, or nothing is pruned, got {0}",
)


def relations_for(values: Mapping[str, Any]) -> list[Relation]:
    """Lists the relations between the fields of a configuration.

    Args:
      values: dotted name -> value; `model.name` and `algorithm.name` select what is
        theirs, nothing if they are unknown.
    """
    found = list(RELATIONS)
    for section, relations in RELATED.items():
        found += [r.within(section) if section else r for r in relations]
    found += _of_model(values.get("model.name"))
    found += _of_algorithm(values.get("algorithm.name"))
    return found


def _of_model(name: Any) -> list[Relation]:
    if SECTIONS["model"]["name"].unmet(name):
        return []
    needs = _needs(name)
    same_file = Relation(
        ("model.file_hash",),
        lambda digest: (
            not digest or (own.is_own(name) and digest == own.file_hash(name))
        ),
        f"model.file_hash must be that of the file of {name} and the modules beside "
        "it, of which one has changed, got {0!r}"
        if own.is_own(name)
        else f"model.file_hash must be empty for {name}, got {{0!r}}",
    )
    if needs is None:
        return [same_file]

    def fits(data: str, size: int, shape: str) -> bool:
        info = info_of(data, shape=shape)
        unknown = info.own and not shape
        sides = (size or n for n in info.image_shape[:2])
        return unknown or info.kind != needs.kind or all(map(needs.sides.holds, sides))

    images = Relation(
        ("data.name", "data.size", "data.image_shape"),
        fits,
        f"model.name {name} needs images {needs.sides.text}, got data.name {{0!r}} "
        "and data.size {1}",
    )
    return [same_file, images, *(r.within("model") for r in needs.relations(name))]


def _of_algorithm(name: Any) -> list[Relation]:
    if ALGORITHM.unmet(name):
        return []
    entry = ALGORITHMS[name]
    found = [relation.within("algorithm") for relation in relations_of(entry.build)]
    if entry.not_private:
        private = " or ".join(n for n, a in ALGORITHMS.items() if not a.not_private)
        found.append(
            Relation(
                ("algorithm.name", "privacy.clip_norm"),
                lambda name, clip_norm: not clip_norm,
                f"algorithm.name must be {private} with privacy.clip_norm {{1}}, got "
                f"{{0!r}}: {entry.not_private}",
            )
        )
    if entry.channels_field:
        found.append(
            Relation(
                ("compact_training", f"algorithm.{entry.channels_field}"),
                lambda compact, removed: not compact or removed not in ("off", 0),
                "compact_training must be false with "
                f"algorithm.{entry.channels_field} {{1}}, which removes no channels",
            )
        )
    found += _of_policies(entry)
    if "warmup_rounds" in fields_of(entry.build):
        found.append(_WARMUP)
    if entry.base_field:
        found.append(_step_mass(f"algorithm.{entry.base_field}"))
    return found


def _of_policies(entry: Algorithm) -> list[Relation]:
    """The relations of an algorithm's fields to how messages are added up."""
    found = []
    if entry.weights_field:
        found.append(
            Relation(
                (f"algorithm.{entry.weights_field}", "aggregator"),
                lambda weights, aggregator: (
                    weights == "uniform" or aggregator not in ORDERED
                ),
                f"algorithm.{entry.weights_field} must be uniform with aggregator "
                "{1}, which counts all clients the same, got {0!r}",
            )
        )
    for field, mean in entry.needs_mean.items():
        found.append(
            Relation(
                (f"algorithm.{field}", "aggregator"),
                lambda value, aggregator, mean=mean: (
                    value != mean or aggregator not in ORDERED
                ),
                f"algorithm.{field} must not be {mean} with aggregator {{1}}: it needs "
                "a mean over clients",
            )
        )
    bounds = {"aggregator": "norm_clipping", "on_bad_client": "clip"}
    for field, equal in entry.equal_shares.items():
        for other, bounding in bounds.items():
            found.append(
                Relation(
                    (f"algorithm.{field}", other),
                    lambda share, policy, equal=equal, bounding=bounding: (
                        share == equal or policy != bounding
                    ),
                    f"algorithm.{field} must be {equal} with {other} {{1}}, which "
                    "bounds all clients the same, got {0!r}",
                )
            )
    return found
