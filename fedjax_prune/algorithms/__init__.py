"""Algorithms: the table of all of them, by name.

Examples:
  >>> import fedjax_prune as fp
  >>> [name for name, entry in fp.ALGORITHMS.items() if entry.needs_step_mass]
  ['fednova', 'scaffold']
"""

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

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
from fedjax_prune.engine.contract import FederatedAlgorithm


class Algorithm(NamedTuple):
    """A builder of an algorithm and facts about it. It is called like the builder.

    Attributes:
      build: (task, solver, server_tx, **fields) -> FederatedAlgorithm; it declares its
        fields, as `fields.fields_of` reads them, and the relations between them.
      needs_step_mass: whether it divides by the step mass, which only client optimisers
        linear in the gradient have.
      has_masks: whether it prunes parameters of the shared model.
      channels_field: its field that says which channels are removed, `off` or 0 for
        none; empty if it removes none.
      base_field: its field that names an entry of ALGORITHMS whose rounds it runs, so
        that it has this entry's need of the step mass; empty if it has no such field.
      weights_field: its field that says how clients count in what they send, `uniform`
        or in another way; empty if it has no such field.
      equal_shares: its fields that say what a client counts in a total, with the values
        for which each counts 1 / num_clients.
      needs_mean: its fields that have a value for which the server needs a mean over
        clients, with that value.
      not_private: why its rounds cannot be differentially private; empty if they can.
    """

    build: Callable[..., FederatedAlgorithm]
    needs_step_mass: bool = False
    has_masks: bool = False
    channels_field: str = ""
    base_field: str = ""
    weights_field: str = ""
    equal_shares: Mapping[str, str] = MappingProxyType({})
    needs_mean: Mapping[str, str] = MappingProxyType({})
    not_private: str = ""

    def __call__(self, *args: Any, **fields: Any) -> FederatedAlgorithm:
        return self.build(*args, **fields)


_PREPARES = "the clients of its preparation send what has no bound and no noise"

ALGORITHMS = {
    "fedavg": Algorithm(fedavg),
    "fedprox": Algorithm(fedprox),
    "fednova": Algorithm(
        fednova,
        needs_step_mass=True,
        not_private="its server multiplies by a step mass, which noise makes negative",
    ),
    "scaffold": Algorithm(
        scaffold,
        needs_step_mass=True,
        weights_field="control_weights",
        equal_shares=MappingProxyType(
            {"control_weights": "uniform", "control_divisor": "num_clients"}
        ),
        not_private="its clients keep control variates, and the accounting of drawn "
        "cohorts is for clients that keep nothing between rounds",
    ),
    "autoflip": Algorithm(
        autoflip,
        has_masks=True,
        channels_field="structured_rule",
        base_field="base",
        needs_mean=MappingProxyType({"agreement_source": "update_sign"}),
        not_private=_PREPARES,
    ),
    "random_pruning": Algorithm(
        random_pruning, has_masks=True, base_field="base", not_private=_PREPARES
    ),
    "random_steps": Algorithm(random_steps),
    "prunefl": Algorithm(prunefl, has_masks=True, not_private=_PREPARES),
    "eflprune": Algorithm(eflprune, has_masks=True, channels_field="channel_share"),
    "fedsnip": Algorithm(fedsnip, has_masks=True, not_private=_PREPARES),
    "magnitude": Algorithm(magnitude, has_masks=True, channels_field="structured_rule"),
}
"""For each name, the builder of the algorithm and what it needs of other settings."""
