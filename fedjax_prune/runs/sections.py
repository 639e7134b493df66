"""The fields of a configuration, by section.

The sections `client`, `server` and `algorithm` are declared by their builders. The
sections without a single builder are declared here.
"""

import inspect
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, NamedTuple

from fedjax_prune.algorithms import ALGORITHMS
from fedjax_prune.data.augment import AUGMENTATIONS, NORMALISATIONS
from fedjax_prune.data.datasets import DATASETS, SHAPE
from fedjax_prune.data.partition import PARTITIONERS, partition
from fedjax_prune.data.splitting import NumClients
from fedjax_prune.data.synthetic import generate
from fedjax_prune.engine.devices import REDUCTIONS
from fedjax_prune.engine.hostile import make_hostile
from fedjax_prune.engine.policy import make_policy
from fedjax_prune.engine.privacy import make_privacy
from fedjax_prune.engine.row_folder import PLACES, is_place
from fedjax_prune.engine.server import make_server_tx
from fedjax_prune.engine.solver import make_solver
from fedjax_prune.engine.store import STORES
from fedjax_prune.fields import (
    ABOVE_ZERO,
    FRACTION,
    SEED,
    TYPES,
    Field,
    Relation,
    Rule,
    at_least,
    fields_of,
    one_of,
    relations_of,
)
from fedjax_prune.models import MODELS, own
from fedjax_prune.models.costs import FlopsTarget
from fedjax_prune.models.gates import GateSettings
from fedjax_prune.models.needs import Dropout, Norm, Width
from fedjax_prune.models.precision import PRECISIONS
from fedjax_prune.models.task import LassoWeight

LOGGERS = ("none", "wandb", "mlflow", "trackio")
"""Where rows can be logged: the module that is imported, or none."""


class TopLevel(NamedTuple):
    """The fields outside of all sections."""

    seed: Annotated[int, SEED, "Seed of parameters, gates, cohorts and shuffles."] = 0
    rounds: Annotated[int, at_least(1), "Server updates."] = 100
    cohort_size: Annotated[
        int, at_least(1), "Clients a round, at most data.num_clients."
    ] = 10
    devices: Annotated[
        int, at_least(0), "Devices that lanes are split over; 0 is all of this machine."
    ] = 0
    lanes: Annotated[
        int | str,
        Rule(
            lambda v: v == "auto" or (type(v) is int and 1 <= v < 2**31),
            "a whole number, at least 1 and below 2^31, or auto",
        ),
        "Clients side by side on each device; auto chooses by timing.",
    ] = "auto"
    precision: Annotated[
        str,
        one_of(PRECISIONS),
        "Precision of products and activations; tf32 is for NVIDIA cards.",
    ] = "float32"
    reduction: Annotated[
        str,
        one_of(REDUCTIONS),
        "How messages are added; fixed_order adds them by client id.",
    ] = "all_reduce"
    client_rows: Annotated[
        str, one_of(STORES), "Where client state is kept between rounds."
    ] = "device"
    rows_dir: Annotated[
        str,
        Rule(is_place, PLACES),
        "Folder or address, as gs://bucket/folder, for client_rows disk; a run has a "
        "folder in it. Empty is the workdir.",
    ] = ""
    compact_training: Annotated[
        bool, "Whether rounds run on the smaller model that masks leave."
    ] = False
    save_every: Annotated[int, at_least(1), "Rounds between checkpoints."] = 10
    keep: Annotated[int, at_least(1), "Newest checkpoints that are kept."] = 2
    keep_every: Annotated[
        int,
        at_least(0),
        "Checkpoints of multiples of this round are kept, too; 0 is none.",
    ] = 0
    hash_every: Annotated[
        int,
        at_least(0),
        "Rounds between hashes of the state in the metrics; 0 is none.",
    ] = 0

    logger: Annotated[
        str,
        one_of(LOGGERS),
        "Where rows are logged beside the workdir; needs the extra track.",
    ] = "none"


class Report(NamedTuple):
    """The section `report`."""

    every: Annotated[
        int,
        at_least(0),
        "Rounds between records for the page, which is written at the end if the extra "
        "report is installed; 0 is neither.",
    ] = 10


class Eval(NamedTuple):
    """The section `eval`."""

    every: Annotated[int, at_least(1), "Rounds between evaluations."] = 5
    num_clients: Annotated[
        int,
        at_least(0),
        "Clients evaluated; 0 is the round's cohort and, at the end, all.",
    ] = 0
    num_examples: Annotated[int, at_least(0), "Test examples used; 0 is all."] = 0
    target_accuracy: Annotated[
        float, FRACTION, "Accuracy whose rounds and bytes are reported; 0 is none."
    ] = 0.78


class Data(NamedTuple):
    """The section `data`, without the options of partitioners."""

    name: Annotated[str, one_of(DATASETS), "Data set."] = "cifar10"
    dir: Annotated[
        str,
        "Folder of the TFDS data sets, empty for TFDS_DATA_DIR; for your own data and "
        "for a data set that comes with its clients, the folder of its files.",
    ] = ""
    size: Annotated[
        int, at_least(0), "Pixels a side that images are scaled to; 0 is as stored."
    ] = 0
    num_train: Annotated[
        int,
        at_least(0),
        "Training examples used, the first ones or, of your own data, random ones; 0 "
        "is all.",
    ] = 0
    local_val: Annotated[
        str,
        one_of(("matched_test", "holdout")),
        "A client's validation set: test examples of its classes, which are no ground "
        "for a choice of settings, or training examples that are held out.",
    ] = "matched_test"
    augment: Annotated[
        str,
        one_of(("none", *AUGMENTATIONS)),
        "Augmentation of training images; crop also flips, jitter flips and changes "
        "colours, code is jitter that also flips letters and digits.",
    ] = "crop"
    normalize: Annotated[
        str, one_of(NORMALISATIONS), "Data set whose mean and deviation scale pixels."
    ] = "none"
    seed: Annotated[int, SEED, "Seed of the partition and of validation sets."] = 2020
    partitioner: Annotated[
        str,
        one_of((*PARTITIONERS, "by_client")),
        "How examples are dealt to clients; by_client keeps the data set's clients.",
    ] = "dirichlet"
    num_clients: NumClients = 10
    classes: Annotated[
        Sequence[str], "Classes of your own data; empty reads them from the data."
    ] = ()
    image_shape: Annotated[
        str, SHAPE, "Shape of your own examples; empty reads it from the data."
    ] = ""


class Model(NamedTuple):
    """The section `model`, without its gates."""

    name: Annotated[
        str,
        Rule(
            lambda v: v in MODELS or own.is_own(v),
            f"{one_of(MODELS).text}, or FILE.py:CLASS of a Flax class of your own",
        ),
        "Network.",
    ] = "vgg11"
    file_hash: Annotated[
        str,
        "SHA-256 of the file of your own class and of the modules beside it that it "
        "imports; empty computes it.",
    ] = ""
    width: Width = 1.0
    norm: Norm = "none"
    dropout: Dropout = 0.5
    gated: Annotated[
        bool, "Whether gates choose channels, example by example (dynamic pruning)."
    ] = True
    flops_target: FlopsTarget = 0.5
    keep_ratio: Annotated[
        float | None,
        Rule(
            lambda v: v is None or (TYPES[float].holds(v) and ABOVE_ZERO.holds(v)),
            f"{ABOVE_ZERO.text}, or None to follow model.flops_target",
        ),
        "Share of the channels kept.",
    ] = None
    gate_init: Annotated[
        str,
        one_of(("shared", "per_client")),
        "Whether all clients begin with the same gates.",
    ] = "shared"
    lasso_weight: LassoWeight = 1e-8


_GATES = fields_of(GateSettings)

SECTIONS: Mapping[str, Mapping[str, Field]] = {
    "": fields_of(TopLevel) | fields_of(make_policy),
    "eval": fields_of(Eval),
    "report": fields_of(Report),
    "data": fields_of(partition) | fields_of(generate) | fields_of(Data),
    "model": fields_of(Model)
    | {
        "gate_mode": _GATES["mode"],
        "gate_rescale": _GATES["rescale"],
        "gate_first": _GATES["first"],
        "gate_input_grad": _GATES["input_grad"],
        "gate_bias": _GATES["bias"],
        "resnet_gating": _GATES["resnet"],
    },
    "client": fields_of(make_solver),
    "server": fields_of(make_server_tx),
    "privacy": fields_of(make_privacy),
    "hostile": fields_of(make_hostile),
}
"""Section ("" for the top level) -> its fields; `algorithm` is not included."""

ALGORITHM = Field(str, one_of(ALGORITHMS), "Federated algorithm.", "scaffold")


OWN_FIELDS = ("name", "file_hash", "gated")
"""Fields of the section `model` that a class of the user's own has, too."""


def model_fields(name: Any) -> Mapping[str, Field]:
    """The fields of the section `model`.

    Args:
      name: of the model. A class of the user's own has the fields that are its
        attributes, and those of gates if it `has_gates`.

    Raises:
      ValueError: if the class cannot be loaded, or an attribute has a field's name.
    """
    fields = SECTIONS["model"]
    if not own.is_own(name):
        return fields
    found = own.load_class(name)
    if found.has_gates:
        not_gates = {"width", "norm", "dropout"}
        shared = {k: v for k, v in fields.items() if k not in not_gates}
    else:
        shared = {k: fields[k] for k in OWN_FIELDS}
        never = Rule(lambda v: v is False, f"false for {name}, which has no gates")
        shared["gated"] = shared["gated"]._replace(rule=never)
    shared["name"] = shared["name"]._replace(default=name)
    shared["gated"] = shared["gated"]._replace(default=False)
    if taken := sorted(shared.keys() & found.fields.keys()):
        raise ValueError(
            f"the attributes of {name} must have other names than the fields of the "
            f"section model, got {', '.join(taken)}."
        )
    return {**shared, **found.fields}


RELATED: Mapping[str, tuple[Relation, ...]] = {
    "": relations_of(make_policy),
    "client": relations_of(make_solver),
    "server": relations_of(make_server_tx),
    "privacy": relations_of(make_privacy),
}
"""Section -> the relations between its fields, with the names of its builder."""


def written(value: Any) -> str:
    """A value as it is written on the command line.

    Examples:
      >>> written(True), written(("a", "b")), written(0.1)
      ('true', 'a,b', '0.1')
    """
    if isinstance(value, bool):
        return str(value).lower()
    return ",".join(map(str, value)) if isinstance(value, tuple | list) else str(value)


def algorithm_fields(name: Any) -> dict[str, Field]:
    """The fields of the section `algorithm`, `name` alone if the name is unknown.

    Raises:
      TypeError: if a keyword of the algorithm's builder is no field with a default.
    """
    if not isinstance(name, str) or name not in ALGORITHMS:
        return {"name": ALGORITHM}
    build = ALGORITHMS[name].build
    own = fields_of(build)
    for keyword, parameter in inspect.signature(build).parameters.items():
        if parameter.kind != parameter.KEYWORD_ONLY:
            continue
        if keyword not in own or parameter.default is parameter.empty:
            raise TypeError(
                f"{keyword} of {name} must be a field, Annotated[type, rule, words] "
                f"with a default, got {parameter}."
            )
    return {"name": ALGORITHM} | own
