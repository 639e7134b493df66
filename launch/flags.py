"""Reads the command line so that all mistakes in it are reported at once.

The flag library stops at the first mistake, so the config file is loaded first and
every override is then parsed on its own.
"""

import re
import sys
from collections.abc import Sequence
from typing import Any

from absl import flags
from ml_collections import ConfigDict

from fedjax_prune.algorithms import ALGORITHMS
from fedjax_prune.models import own
from fedjax_prune.runs import console, settings

from . import config_file, usage
from .errors import open_standard_streams

_OVERRIDE = re.compile(r"--?(no)?config\.")
_NAMES = re.compile(r"config\.(algorithm|model)\.name=")


def parse(argv: Sequence[str]) -> list[str]:
    """Parses the defined flags and leaves everything else; for `absl.app.run`.

    Ends the process after `--help`, and after a flag that cannot be parsed.

    Args:
      argv: the program and its arguments.

    Returns:
      The program, arguments that are neither flags nor overrides, and the overrides
      as `--config.field=value`.
    """
    open_standard_streams()
    asked = usage.HELP & set(argv)
    plain, overrides = [], []
    waiting = (argument for argument in argv if argument not in asked)
    for argument in waiting:
        is_override = _OVERRIDE.match(argument)
        if is_override and "=" not in argument and not _is_switch(argument):
            argument += f"={next(waiting, '')}"
        (overrides if is_override else plain).append(argument)
    try:
        rest = flags.FLAGS(plain, known_only=True)
        if asked:
            usage.show("--helpfull" in asked)
            sys.stdout.flush()
            sys.exit(0)
    except BrokenPipeError:  # such as `--help | head`
        console.discard(sys.stdout)
        sys.exit(1)
    except (flags.Error, settings.SettingsError) as error:
        console.print_error(str(error))
        sys.exit(1)
    return [*rest, *overrides]


def load_config(
    path: str | None, arguments: Sequence[str], found: Sequence[str] = ()
) -> Any:
    """Loads a config file, applies the overrides and checks the result.

    Args:
      path: of a Python file with `get_config`, or the name of a bundled one; what
        follows a colon is its argument.
      arguments: what `parse` left; `--config.algorithm.name` brings that algorithm's
        fields with their defaults, and `--config.model.name` those of a class of the
        user's own.
      found: mistakes that the caller knows of, reported with the others.

    Returns:
      The configuration, a locked ConfigDict.

    Raises:
      SettingsError: with every mistake in the arguments and the configuration.
    """
    try:
        config = config_file.load(path)
    except settings.SettingsError as error:
        raise settings.SettingsError([*found, *error.problems]) from error
    found = list(found)
    # First, because others may set fields of the new algorithm or model.
    for argument in sorted(arguments, key=lambda a: not _NAMES.search(a)):
        try:
            config = _apply(config, argument)
        except settings.SettingsError as error:
            found += error.problems
    found += settings.problems(config)
    if found:
        raise settings.SettingsError(found)
    return config.lock()


def overridden(arguments: Sequence[str]) -> set[str]:
    """The fields that arguments `--config.field=value` and `--noconfig.field` set."""
    given = filter(_OVERRIDE.match, arguments)
    return {_OVERRIDE.sub("", argument).partition("=")[0] for argument in given}


def _apply(config: Any, argument: str) -> Any:
    field, _, text = _OVERRIDE.sub("", argument).partition("=")
    known = settings.flatten(config)
    if not _OVERRIDE.match(argument):
        every = ["--config", "--workdir", *(f"--config.{name}" for name in known)]
        message = settings.unknown(argument.partition("=")[0], every)
        raise settings.SettingsError([message.replace("a field", "an argument")])
    if field == "algorithm.name" and text in ALGORITHMS:
        if text != known.get("algorithm.name"):
            config.algorithm = ConfigDict(settings.default_config(text)["algorithm"])
        return config
    model = known.get("model.name")
    # Classes of the user's own have other fields than the library's.
    if (
        field == "model.name"
        and text != model
        and (own.is_own(text) or own.is_own(model))
    ):
        config.model = ConfigDict(settings.default_model(text))
        return config
    if field not in known:
        raise settings.SettingsError([settings.unknown(field, known, model)])
    if "=" not in argument:
        text = "false" if argument.lstrip("-").startswith("no") else "true"
    config.update_from_flattened_dict({field: settings.read(config, field, text)})
    return config


def _is_switch(argument: str) -> bool:
    """Whether the field is true or false, so that its name alone sets it."""
    field = _OVERRIDE.sub("", argument)
    # Which algorithm is meant is known only after all arguments are read.
    return any(
        name == field and declared.type is bool
        for algorithm in ALGORITHMS
        for name, declared in settings.declared({"algorithm.name": algorithm}).items()
    )
