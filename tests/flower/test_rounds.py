"""Rounds of Flower's apps are those of a simulation."""

import jax
import numpy as np
import pytest

flwr = pytest.importorskip("flwr")

from configs import base, synthetic
from fedjax_prune.engine.outcome import TrainingError
from fedjax_prune.flower.client import make_client_app
from fedjax_prune.flower.examples import load_share
from fedjax_prune.flower.kept import LostRowError, read_rows
from fedjax_prune.flower.nodes import MissingNodesError
from fedjax_prune.flower.server import serve
from fedjax_prune.runs.learning import make_learning
from tests.flower_grid import MemoryGrid, simulate
from tests.small_runs import PRUNED_FIELDS, plain_config, tiny_config
