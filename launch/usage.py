"""What `--help` prints: what a launcher does, its flags, the fields it can set."""

import sys
from collections.abc import Iterator
from typing import Any

from absl import flags

from fedjax_prune.runs import settings

from . import config_file

HELP = {"--help", "-help", "-h", "--helpshort", "--helpfull"}
"""Arguments that ask for help."""


def show(full: bool) -> None:
    """Prints the help of the launcher that runs.

    Args:
      full: with the flags of other libraries.

    Raises:
      SettingsError: if `--config` names something that cannot be loaded.
    """
    print((sys.modules["__main__"].__doc__ or "").strip())
    print("\nFlags:")
    for flag in flags.FLAGS.get_key_flags_for_module(sys.argv[0]):
        print(f"  --{flag.name}: {flag.help}" + _default(flag.default))
    if "config" in flags.FLAGS:
        print("\nConfigurations: a Python file, or one of", end=" ")
        print(", ".join(config_file.bundled()))
        print("\nFields, each with its default, as --config.NAME=VALUE:")
        config = config_file.load(flags.FLAGS["config"].value or "base")
        print("\n".join(_field_lines(config)))
    if full:
        print("\nFlags of other libraries:")
        print(flags.FLAGS.get_help())


def _field_lines(config: Any) -> Iterator[str]:
    for name, default, rule, words in settings.describe(config):
        yield f"  {name}={written(default)}"
        yield f"      {words} It must be {rule}."


def _default(value: Any) -> str:
    return "" if value in (None, "", []) else f" (default: {value})"


def written(value: Any) -> str:
    """A value as it is written on the command line."""
    if isinstance(value, bool):
        return str(value).lower()
    return ",".join(value) if isinstance(value, tuple) else str(value)
