"""Federated learning with model pruning, simulated at accelerator scale."""

import signal
import sys

# While `python -m fedjax_prune` is imported, Ctrl-C ends the process at once. The
# exception that Python raises would be lost in an import, or shown as a traceback.
# `launch.errors.exit_code` takes it back. Where it was ignored, it still is.
_handler = signal.getsignal(signal.SIGINT)
if sys.orig_argv[1:3] == ["-m", __name__] and _handler is signal.default_int_handler:
    signal.signal(signal.SIGINT, signal.SIG_DFL)

from fedjax_prune.algorithms import ALGORITHMS
from fedjax_prune.algorithms.autoflip.autoflip import autoflip
from fedjax_prune.algorithms.eflprune import eflprune
from fedjax_prune.algorithms.fedavg import fedavg
from fedjax_prune.algorithms.fednova import fednova
from fedjax_prune.algorithms.fedprox import fedprox
from fedjax_prune.algorithms.fedsnip import fedsnip
from fedjax_prune.algorithms.magnitude import magnitude
from fedjax_prune.algorithms.prunefl import prunefl
from fedjax_prune.algorithms.random_pruning import random_pruning, random_steps
from fedjax_prune.algorithms.scaffold import scaffold
from fedjax_prune.data.augment import make_augment
from fedjax_prune.data.datasets import DATASETS, DataError
from fedjax_prune.data.huggingface import from_huggingface
from fedjax_prune.data.image_folder import from_image_folder
from fedjax_prune.data.load import as_dataset, load
from fedjax_prune.data.own import OwnData, from_arrays, from_npz
from fedjax_prune.data.partition import PARTITIONERS, partition
from fedjax_prune.data.population import to_population
from fedjax_prune.engine import store
from fedjax_prune.engine.contract import ClientProgram, FederatedAlgorithm, Rules
from fedjax_prune.engine.dealing import make_cohort, sample_cohort
from fedjax_prune.engine.devices import Placement, make_placement
from fedjax_prune.engine.evaluate import correct_by_client, correct_examples
from fedjax_prune.engine.hostile import make_hostile
from fedjax_prune.engine.local import train_client
from fedjax_prune.engine.outcome import TrainingError
from fedjax_prune.engine.policy import Policy, make_policy
from fedjax_prune.engine.preparation import prepare
from fedjax_prune.engine.privacy import make_privacy
from fedjax_prune.engine.rounds import make_algorithm, make_round
from fedjax_prune.engine.row_errors import RowsError
from fedjax_prune.engine.server import make_server_tx
from fedjax_prune.engine.solver import LocalSolver, make_solver
from fedjax_prune.engine.store import make_store
from fedjax_prune.engine.transforms import add_control_variates, add_proximal
from fedjax_prune.models import CNN, MODELS, VGG11, ResNet32
from fedjax_prune.models.convolution import convolve
from fedjax_prune.models.costs import keep_ratio_for, macs
from fedjax_prune.models.gates import GateSettings, straight_through, top_k_mask
from fedjax_prune.models.task import make_task
from fedjax_prune.pruning.client_network import (
    client_network,
    make_client_selection,
)
from fedjax_prune.pruning.smaller import gathered_predict
from fedjax_prune.runs.checkpoint import CheckpointError
from fedjax_prune.runs.settings import SettingsError
from fedjax_prune.runs.workdir import WorkdirError
from fedjax_prune.types import (
    Anchor,
    Batch,
    ClientState,
    Cohort,
    Dataset,
    LocalResult,
    Mean,
    Population,
    Probe,
    RoundInputs,
    ServerState,
    Task,
    Total,
    Variables,
)

__version__ = "0.1.0"

__all__ = [
    "ALGORITHMS",
    "CNN",
    "DATASETS",
    "MODELS",
    "PARTITIONERS",
    "VGG11",
    "Anchor",
    "Batch",
    "CheckpointError",
    "ClientProgram",
    "ClientState",
    "Cohort",
    "DataError",
    "Dataset",
    "FederatedAlgorithm",
    "GateSettings",
    "LocalResult",
    "LocalSolver",
    "Mean",
    "OwnData",
    "Placement",
    "Policy",
    "Population",
    "Probe",
    "ResNet32",
    "RoundInputs",
    "RowsError",
    "Rules",
    "ServerState",
    "SettingsError",
    "Task",
    "Total",
    "TrainingError",
    "Variables",
    "WorkdirError",
    "add_control_variates",
    "add_proximal",
    "as_dataset",
    "autoflip",
    "client_network",
    "convolve",
    "correct_by_client",
    "correct_examples",
    "eflprune",
    "fedavg",
    "fednova",
    "fedprox",
    "fedsnip",
    "from_arrays",
    "from_huggingface",
    "from_image_folder",
    "from_npz",
    "gathered_predict",
    "keep_ratio_for",
    "load",
    "macs",
    "magnitude",
    "make_algorithm",
    "make_augment",
    "make_client_selection",
    "make_cohort",
    "make_hostile",
    "make_placement",
    "make_policy",
    "make_privacy",
    "make_round",
    "make_server_tx",
    "make_solver",
    "make_store",
    "make_task",
    "partition",
    "prepare",
    "prunefl",
    "random_pruning",
    "random_steps",
    "sample_cohort",
    "scaffold",
    "store",
    "straight_through",
    "to_population",
    "top_k_mask",
    "train_client",
]
