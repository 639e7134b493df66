"""What a run learns with: network, task, solver and algorithm. It needs no data."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax

from fedjax_prune.algorithms import ALGORITHMS
from fedjax_prune.data.augment import AUGMENTATIONS, TO_INPUT, make_augment
from fedjax_prune.data.datasets import DatasetInfo, info_of
from fedjax_prune.engine.contract import FederatedAlgorithm
from fedjax_prune.engine.keys import seed_key
from fedjax_prune.engine.server import make_server_tx
from fedjax_prune.engine.solver import make_solver
from fedjax_prune.models import MODELS, costs, own
from fedjax_prune.models.gates import GateSettings
from fedjax_prune.models.modules import without_gates
from fedjax_prune.models.precision import PRECISIONS
from fedjax_prune.models.task import make_task
from fedjax_prune.runs.completed import completed
from fedjax_prune.runs.settings import told_of
from fedjax_prune.types import ClientState, Config, ServerState, Task, Tree


class Learning(NamedTuple):
    """What a run learns with, fixed by its configuration.

    Attributes:
      config: already checked, with what the user's own files hold.
      image_shape: (height, width, channels) of the images that the network reads.
      model: the network as trained, gated or plain, one of MODELS or of the user's own.
      task: of that network.
      dense_task: of the same network without gates, on the same params.
      algorithm: the federated algorithm.
    """

    config: Config
    image_shape: tuple[int, int, int]
    model: Any
    task: Task
    dense_task: Task
    algorithm: FederatedAlgorithm

    @property
    def macs(self) -> costs.Macs:
        """The multiply-accumulates of the network for one image."""
        return costs.macs_of(self.task.layers)

    @property
    def has_gates(self) -> bool:
        """Whether the network has gates; with keep ratio 1 it has none."""
        return bool(jax.tree.leaves(self.task.shapes.personal))


def make_learning(config: Config, model: Any = None) -> Learning:
    """Builds what a run learns with.

    Args:
      config: already checked.
      model: the network to use; None builds the one that `config.model` describes.

    Raises:
      SettingsError: if the network cannot read images of that size or lacks the layers
        that the algorithm names, or a builder refuses its fields. The message begins
        with the sections of these fields. Of a class of the user's own it has what the
        class raises.
      DataError: if the user's own data cannot be read.
    """
    config = completed(config)
    fields = dict(config.algorithm)
    with told_of("model and data"):
        model = make_model(config) if model is None else model
        task = task_of(config, model)
        dense_task = task_of(config, without_gates(model))
        # Networks of MODELS have no personal arrays without gates.
        if own.is_own(config.model.name):
            _check_shared(config, dense_task)
        for method in ("channel_groups", "layers"):
            if config.compact_training and not callable(getattr(model, method, None)):
                raise ValueError(
                    f"compact_training must be false for {config.model.name}, because "
                    f"it has no method {method}."
                )
    with told_of("client"):
        solver = make_solver(**config.client)
    with told_of("server"):
        server_tx = make_server_tx(**config.server)
    with told_of("model, data and algorithm"):
        make = ALGORITHMS[fields.pop("name")]
        algorithm = make(task, solver, server_tx, **fields)
    return Learning(
        config=config,
        image_shape=image_shape_of(config),
        model=model,
        task=task,
        dense_task=dense_task,
        algorithm=algorithm,
    )


def make_model(config: Config) -> Any:
    """The network that `config.model` describes, for the images of `config.data`."""
    fields = config.model
    if own.is_own(fields.name):
        model = _own_model(config)
    else:
        model = MODELS[fields.name](
            num_classes=data_info(config).num_classes,
            width=fields.width,
            norm=fields.norm,
            dropout=fields.dropout,
            dtype=PRECISIONS[config.precision].dtype,
        )
    if not fields.gated:
        return model
    gates = GateSettings(
        keep_ratio=1.0,
        mode=fields.gate_mode,
        rescale=fields.gate_rescale,
        bias=fields.gate_bias,
        first=fields.gate_first,
        input_grad=fields.gate_input_grad,
        resnet=fields.resnet_gating,
    )
    if not fields.keep_ratio and not callable(getattr(model, "layers", None)):
        raise ValueError(
            f"model.keep_ratio must be given for {fields.name}, which has no method "
            "layers to compute it of model.flops_target."
        )
    keep_ratio = fields.keep_ratio or costs.keep_ratio_for(
        model.clone(gates=gates), image_shape_of(config), fields.flops_target
    )
    return model.clone(gates=gates._replace(keep_ratio=keep_ratio))


def macs_for(config: Config) -> costs.Macs:
    """The multiply-accumulates for one image in the network of a configuration.

    Raises:
      ValueError: as `task_of` and what the network's class raises.
    """
    return costs.macs_of(task_of(config, make_model(config)).layers)


def task_of(config: Config, model: Any) -> Task:
    """The task of a network, with the augmentation that `config.data` asks for.

    Raises:
      ValueError: as `make_task`, and for another number of logits than of classes.
    """
    info, image_shape = data_info(config), image_shape_of(config)
    augment = None
    if config.data.augment != "none":
        fields = AUGMENTATIONS[config.data.augment]
        augment = make_augment(image_shape, **{"flip": info.flip} | fields)
    is_own = own.is_own(config.model.name)
    try:
        task = make_task(
            model,
            image_shape,
            to_input=TO_INPUT[info.kind],
            augment=augment,
            normalize=config.data.normalize,
            lasso_weight=config.model.lasso_weight if config.model.gated else 0.0,
        )
    except Exception as error:
        if not is_own or not own.is_theirs(config.model.name, error):
            raise
        raise ValueError(own.told(config.model.name, error)) from error
    if is_own:
        _check_own(config, task)
    return task


def _own_model(config: Config) -> Any:
    """The network of a class of the user's own.

    Raises:
      ValueError: if the class does not have what the configuration asks for.
    """
    found, precision = own.load_class(config.model.name), PRECISIONS[config.precision]
    if "dtype" not in found.attributes and config.precision == "bfloat16":
        raise ValueError(
            f"precision must be float32 or tf32 for {found.name}, which has no "
            "attribute dtype, got 'bfloat16'."
        )
    facts = {
        "num_classes": data_info(config).num_classes,
        "image_shape": image_shape_of(config),
        "dtype": precision.dtype,
    }
    return found.build(config.model, facts)


def _check_own(config: Config, task: Task) -> None:
    """Refuses a network that does not fit the other fields.

    Raises:
      ValueError: for another number of logits than of classes, and for model state
        with noise.
    """
    variables = task.shapes
    image = jax.ShapeDtypeStruct((1, *image_shape_of(config)), "uint8")
    name, wanted = config.model.name, data_info(config).num_classes
    found = jax.eval_shape(task.predict, variables, image).shape[1]
    if found != wanted:
        raise ValueError(
            f"{name} must return {wanted} logits, one for each class, got {found}: "
            "give it the attribute num_classes, which is filled in."
        )
    if jax.tree.leaves(variables.model_state) and config.privacy.clip_norm:
        raise ValueError(
            f"{name} must have no collection batch_stats with privacy.clip_norm "
            f"{config.privacy.clip_norm}: noise could make a variance negative."
        )


def _check_shared(config: Config, dense_task: Task) -> None:
    """Refuses a network that has personal arrays without its gates.

    Raises:
      ValueError: because the shared network is evaluated, which has none.
    """
    if jax.tree.leaves(dense_task.shapes.personal):
        raise ValueError(
            f"{config.model.name} must have no collection gates while its attribute "
            "gates is None, as without model.gated and wherever the network without "
            "gates is evaluated."
        )


def data_info(config: Config) -> DatasetInfo:
    """What is known of the data set of `config.data`."""
    data = config.data
    return info_of(data.name, data.classes, data.image_shape)


def image_shape_of(config: Config) -> tuple[int, int, int]:
    """(height, width, channels) of the images that the network reads."""
    height, width, channels = data_info(config).image_shape
    return config.data.size or height, config.data.size or width, channels


def start(learning: Learning) -> tuple[ServerState, ClientState]:
    """The state before the first round, and the row of a client never seen."""
    key = init_key(learning.config)
    return learning.algorithm.init(key), learning.algorithm.row(key)


def start_shapes(learning: Learning) -> tuple[ServerState, ClientState]:
    """The shapes of what `start` returns."""
    return jax.eval_shape(lambda: start(learning))


def first_row(learning: Learning, client_id: jax.Array) -> ClientState:
    """The row of a client before anything is trained.

    Args:
      learning: of the run.
      client_id: [] int32.
    """
    row = learning.algorithm.rules.row(init_key(learning.config))
    own = own_personal(learning)
    return row if own is None else row._replace(personal=own(client_id))


def own_personal(learning: Learning) -> Callable[[jax.Array], Tree] | None:
    """What each client's personal parameters are before the first round.

    Returns:
      client id [] int32 -> personal parameters if `model.gate_init` is per_client,
      else None: all clients then start with those of `start`'s row.
    """
    fields = learning.config.model
    if not fields.gated or fields.gate_init != "per_client":
        return None

    def draw(client_id: jax.Array) -> Tree:
        key = jax.random.fold_in(init_key(learning.config), client_id)
        return learning.task.init(key).personal

    return draw


def init_key(config: Config) -> jax.Array:
    """The key of everything drawn before round 1; rounds use other ones."""
    return jax.random.fold_in(seed_key(config.seed), 2**32 - 1)
