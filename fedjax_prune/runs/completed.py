"""Fields of a configuration that say what the user's files hold.

They are empty until a run begins. Then they are filled in and written to `config.json`,
so that a run whose files have changed is refused, and a model can be exported without
the data, unless a client's data choose its channels.
"""

import copy
from typing import Any

from fedjax_prune.data.datasets import DATASETS
from fedjax_prune.data.own_splits import facts_of
from fedjax_prune.models import own
from fedjax_prune.runs import settings
from fedjax_prune.types import Config


def completed(config: Config) -> Config:
    """Fills in the fields of `workdir.FILLED_IN` that are empty.

    Args:
      config: already checked.

    Returns:
      The configuration, checked again if a field was filled in.

    Raises:
      DataError: if the data cannot be read.
      SettingsError: if what they hold does not fit the other fields.
    """
    values = settings.flatten(config)
    found: dict[str, Any] = {}
    name = values["data.name"]
    if DATASETS[name].own and not values["data.image_shape"]:
        facts = facts_of(name, values["data.dir"], values["data.size"])
        found["data.classes"] = facts.classes
        found["data.image_shape"] = facts.shape
    model = values["model.name"]
    if own.is_own(model) and not values["model.file_hash"]:
        found["model.file_hash"] = own.file_hash(model)
    if not found:
        return config
    config = copy.deepcopy(config)
    with config.unlocked():
        config.update_from_flattened_dict(found)
    settings.check(config)
    return config
