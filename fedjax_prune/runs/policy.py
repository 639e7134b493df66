"""The policy of a run's rounds, and the placement that has it."""

from fedjax_prune.engine.devices import Placement, make_placement
from fedjax_prune.engine.policy import Policy, make_policy
from fedjax_prune.fields import fields_of
from fedjax_prune.types import Config


def policy_of(config: Config) -> Policy:
    """The policy that a configuration describes.

    Args:
      config: already checked.
    """
    return make_policy(**{name: config[name] for name in fields_of(make_policy)})


def placement_of(config: Config) -> Placement:
    """Where a run's rounds run, and by which policy.

    Args:
      config: already checked, with `devices` as a number.
    """
    policy = policy_of(config)
    return make_placement(config.devices, config.reduction, policy=policy)
