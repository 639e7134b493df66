"""The apps that Flower starts, named in launch/flower/pyproject.toml.

The run's configuration in Flower names one of this library in `config`. `overrides` has
further fields, "rounds=20 client.lr=0.05", with quotes as in a shell around values that
have spaces. Every other key is a field, too, except for those of
`fedjax_prune.flower.server.serve`.
"""

import os
import shlex
from collections.abc import Mapping
from typing import Any

from fedjax_prune.fields import fields_of
from fedjax_prune.flower.client import make_client_app
from fedjax_prune.flower.server import make_server_app, serve
from fedjax_prune.runs.settings import SettingsError
from fedjax_prune.types import Config

from . import runtime
from .flags import load_config

CONFIG, OVERRIDES = "config", "overrides"


def read_config(given: Mapping[str, Any]) -> Config:
    """Reads the configuration of a run.

    Args:
      given: what Flower has as the run's configuration.

    Raises:
      SettingsError: with every mistake in it.
    """
    own = {CONFIG, OVERRIDES, *fields_of(serve)}
    fields = [f"{name}={value}" for name, value in given.items() if name not in own]
    overrides = str(given.get(OVERRIDES, ""))
    try:
        fields += shlex.split(overrides)
    except ValueError as error:
        raise SettingsError(
            [f"{OVERRIDES} must be fields as in a shell, got {overrides!r}: {error}"]
        ) from error
    arguments = [f"--config.{field}" for field in fields]
    return load_config(str(given.get(CONFIG, "")), arguments)


# A node trains one client at a time, in a process of its own for each message.
os.environ.setdefault("JAX_NUM_CPU_DEVICES", "1")
runtime.configure()
client = make_client_app(read_config)
server = make_server_app(read_config)
