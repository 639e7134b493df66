"""The federated algorithms, by name."""

from fedjax_prune.algorithms.autoflip import autoflip
from fedjax_prune.algorithms.eflprune import eflprune
from fedjax_prune.algorithms.fedavg import fedavg
from fedjax_prune.algorithms.fednova import fednova
from fedjax_prune.algorithms.fedprox import fedprox
from fedjax_prune.algorithms.fedsnip import fedsnip
from fedjax_prune.algorithms.magnitude import magnitude
from fedjax_prune.algorithms.prunefl import prunefl
from fedjax_prune.algorithms.random_pruning import random_pruning, random_steps
from fedjax_prune.algorithms.scaffold import scaffold

ALGORITHMS = {
    "fedavg": fedavg,
    "fednova": fednova,
    "fedprox": fedprox,
    "scaffold": scaffold,
    "autoflip": autoflip,
    "random_pruning": random_pruning,
    "random_steps": random_steps,
    "prunefl": prunefl,
    "eflprune": eflprune,
    "fedsnip": fedsnip,
    "magnitude": magnitude,
}
"""name -> builder(task, solver, server_tx, **fields) -> FederatedAlgorithm."""
