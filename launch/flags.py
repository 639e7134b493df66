"""Reads the command line so that all mistakes in it are reported at once.

The flag library stops at the first mistake, so the config file is loaded first and
every override is then parsed on its own.
"""

import difflib
import re
import sys
from collections import deque
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
_FLAG = re.compile(r"--?[A-Za-z]")
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
    asked = [a for a in map(usage.asked, argv) if a is not None]
    plain, overrides = [], []
    waiting = deque(argument for argument in argv if usage.asked(argument) is None)
    while waiting:
        argument = waiting.popleft()
        is_override = _OVERRIDE.match(argument)
        # Which fields are switches, depends on the algorithm and the model.
        if (
            is_override
            and "=" not in argument
            and waiting
            and not _FLAG.match(waiting[0])
        ):
            argument += f"={waiting.popleft()}"
        (overrides if is_override else plain).append(argument)
    try:
        rest = flags.FLAGS(plain, known_only=True)
        if asked:
            print(_help(asked[-1], overrides))
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
    found = list(found)
    try:
        config = _changed(config_file.load(path), arguments, found)
    except settings.SettingsError as error:
        # One of these may be a misspelt --config; others may be fields.
        unknown = [a for a in arguments if not _OVERRIDE.match(a)]
        found += [m for m in not_arguments(unknown) if m.endswith(" --config?")]
        raise settings.SettingsError([*found, *error.problems]) from error
    found += settings.problems(config)
    if found:
        raise settings.SettingsError(list(dict.fromkeys(found)))
    return config.lock()


def not_arguments(given: Sequence[str], others: Sequence[str] = ()) -> list[str]:
    """One message for each unknown argument, with the nearest one that is known.

    Args:
      given: arguments that the launcher does not know.
      others: arguments that it knows, beside its flags.
    """
    launcher = flags.FLAGS.get_key_flags_for_module(sys.modules["__main__"])
    every = [f"--{f.name}" for f in launcher] or ["--config", "--workdir"]
    found = []
    for name in (argument.partition("=")[0] for argument in given):
        # `--seed` is the flag `--seeds`, where there is one, and no field.
        flag = difflib.get_close_matches(name, every, n=1, cutoff=0.85)
        found.append(settings.unknown(name, flag or [*every, *others]))
    return [message.replace("a field", "an argument") for message in found]


def overridden(arguments: Sequence[str]) -> set[str]:
    """The fields that arguments `--config.field=value` and `--noconfig.field` set."""
    given = filter(_OVERRIDE.match, arguments)
    return {_assignment(argument).partition("=")[0] for argument in given}


def _assignment(argument: str) -> str:
    """What an argument has after its `--config.`, whatever its value holds."""
    return _OVERRIDE.sub("", argument, count=1)


def _help(section: str, overrides: Sequence[str]) -> str:
    """What `--help=SECTION` prints, with the fields as the command line sets them."""
    config, found = None, []
    if "config" in flags.FLAGS:
        path = flags.FLAGS["config"].value or "base"
        config = _changed(config_file.load(path), overrides, found)
    if found:
        raise settings.SettingsError(found)
    return usage.text(sys.modules["__main__"], config, section)


def _changed(config: Any, arguments: Sequence[str], found: list[str]) -> Any:
    """Applies overrides; `found` gets the mistakes in them."""
    # First, because others may set fields of the new algorithm or model.
    for argument in sorted(arguments, key=lambda a: not _NAMES.search(a)):
        try:
            config = _apply(config, argument)
        except settings.SettingsError as error:
            found += error.problems
    return config


def _apply(config: Any, argument: str) -> Any:
    field, _, text = _assignment(argument).partition("=")
    known = settings.flatten(config)
    if not _OVERRIDE.match(argument):
        overrides = [f"--config.{name}" for name in known]
        raise settings.SettingsError(not_arguments([argument], overrides))
    negated = argument.lstrip("-").startswith("no")
    if negated and "=" in argument:
        raise settings.SettingsError([f"--noconfig.{field} has no value, got {text!r}"])
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
    declared = settings.declared(known)
    if field not in declared:
        others = [name for name in known if name in declared]
        raise settings.SettingsError([settings.unknown(field, others, model)])
    if "=" not in argument:
        if declared[field].type is not bool:
            raise settings.SettingsError(
                [f"{field} needs a value: --config.{field}=VALUE"]
            )
        text = "false" if negated else "true"
    config.update_from_flattened_dict({field: settings.read(config, field, text)})
    return config
