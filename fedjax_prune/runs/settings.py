"""Finds every mistake in a configuration before anything is loaded or compiled.

Each field is checked against its declaration (`sections`, `fields`). Then fields that
must fit together are checked against `relations`.
"""

import difflib
import json
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, NamedTuple

from fedjax_prune.algorithms import ALGORITHMS
from fedjax_prune.fields import Field
from fedjax_prune.models import own
from fedjax_prune.runs.relations import relations_for
from fedjax_prune.runs.sections import (
    ALGORITHM,
    OWN_FIELDS,
    SECTIONS,
    algorithm_fields,
    model_fields,
)

ALWAYS = {"algorithm.name", "data.name", "model.name"}
"""Fields that every version has and that say what the other ones are for."""

_OFTEN_CALLED = {
    "learning_rate": "lr",
    "clients_per_round": "cohort_size",
    "local_epochs": "epochs",
}
"""What users of other libraries call a field -> its name here."""


class SettingsError(ValueError):
    """A configuration that cannot be run.

    Attributes:
      problems: one sentence per mistake; `str` of the error has one on each line.

    Examples:
      >>> try:
      ...     check(default_config() | {"rounds": 0})
      ... except fedjax_prune.SettingsError as error:
      ...     print(error.problems)
      ['rounds must be at least 1, got 0']
    """

    def __init__(self, problems: list[str]):
        super().__init__("\n".join(problems))
        self.problems = problems


class Description(NamedTuple):
    """A field as `--help` shows it.

    Attributes:
      name: with its section, `client.lr`.
      default: its value in the configuration that is described.
      allowed: what its values must be.
      words: what it is.
    """

    name: str
    default: Any
    allowed: str
    words: str


@contextmanager
def told_of(what: str) -> Iterator[None]:
    """Prefixes the message of an error with what is wrong, such as a section.

    Raises:
      SettingsError: for a ValueError.
    """
    try:
        yield
    except ValueError as error:
        raise SettingsError([f"{what}: {error}"]) from error


def default_config(algorithm: str = ALGORITHM.default) -> dict[str, Any]:
    """Every field with its declared default, as nested dicts.

    Args:
      algorithm: a name in ALGORITHMS; the section `algorithm` has its fields.

    Raises:
      ValueError: if the name is unknown.
    """
    if unmet := ALGORITHM.unmet(algorithm):
        raise ValueError(f"algorithm must be {unmet}, got {algorithm!r}.")
    config = _defaults(SECTIONS[""])
    config |= {name: _defaults(fields) for name, fields in SECTIONS.items() if name}
    own = _defaults(algorithm_fields(algorithm))
    return config | {"algorithm": own | {"name": algorithm}}


def default_model(name: str) -> dict[str, Any]:
    """The section `model` with its defaults.

    Args:
      name: of one of MODELS, or FILE.py:CLASS.

    Raises:
      SettingsError: if the class cannot be loaded.
    """
    with told_of("model.name"):
        return _defaults(model_fields(name)) | {"name": name}


def describe(config: Any) -> list[Description]:
    """Describes the fields of a configuration.

    Args:
      config: a ConfigDict or nested dicts.

    Returns:
      A description of each field that exists, in the order of declaration.

    Raises:
      SettingsError: if a class of the user's own cannot be loaded.
    """
    values = flatten(config)
    return [
        Description(name, values[name], field.text, field.words)
        for name, field in declared(values).items()
        if name in values
    ]


def read(config: Any, name: str, text: str) -> Any:
    """The value that a field is given on the command line.

    Args:
      config: has the field.
      name: of the field, with its section.
      text: what follows the equals sign.

    Raises:
      SettingsError: if the text is not of the field's type, there is no such field, or
        a class of the user's own cannot be loaded.
    """
    fields = declared(flatten(config))
    if name not in fields:
        raise SettingsError([unknown(name, fields, flatten(config).get("model.name"))])
    value = fields[name].read(text)
    if mistyped := fields[name].mistyped(value):
        raise SettingsError([f"{name} must be {mistyped}, got {value!r}"])
    return value


def check(config: Any) -> None:
    """Refuses a configuration with mistakes.

    Args:
      config: a ConfigDict or nested dicts.

    Raises:
      SettingsError: with every mistake.
    """
    if found := problems(config):
        raise SettingsError(found)


def problems(config: Any) -> list[str]:
    """Lists every mistake in a configuration.

    Args:
      config: a ConfigDict or nested dicts.

    Returns:
      One sentence per mistake, with the field, what it must be and its value.
    """
    values = flatten(config)
    try:
        fields = declared(values)
    except SettingsError as error:
        return error.problems
    found = {
        name: unknown(name, fields, values.get("model.name"))
        for name in values.keys() - fields.keys()
        # The fields of an unknown algorithm cannot be checked.
        if not name.startswith("algorithm.") or _knows_algorithm(values)
    }
    for name, field in fields.items():
        if name not in values:
            found[name] = f"{name} is missing; its default is {field.default!r}"
        elif unmet := field.unmet(values[name]):
            found[name] = f"{name} must be {unmet}, got {values[name]!r}"
    related = [
        unmet
        for relation in relations_for(values)
        # The rest is skipped: a field has a mistake already or is missing.
        if all(name in values and name not in found for name in relation.fields)
        and (unmet := relation.unmet(values))
    ]
    return [found[name] for name in sorted(found)] + related


def declared(values: Mapping[str, Any]) -> dict[str, Field]:
    """The fields that a configuration must have.

    Args:
      values: dotted name -> value; `algorithm.name` selects the algorithm's fields. If
        it is missing, the default algorithm's fields are taken. `model.name` selects
        the fields of a class of the user's own.

    Returns:
      dotted name -> Field.

    Raises:
      SettingsError: if that class cannot be loaded.
    """
    algorithm = algorithm_fields(values.get("algorithm.name", ALGORITHM.default))
    with told_of("model.name"):
        model = model_fields(values.get("model.name"))
    return {
        f"{section}.{name}".removeprefix("."): field
        for section, fields in {
            **SECTIONS,
            "model": model,
            "algorithm": algorithm,
        }.items()
        for name, field in fields.items()
    }


def gained(values: Mapping[str, Any]) -> dict[str, Any]:
    """The fields that a configuration lacks since the library has gained them.

    They count as their defaults, so a new field must have the default that does what
    was done before. A value that is written always counts, also if its default has
    changed since.

    Args:
      values: dotted name -> value, of an earlier version.

    Returns:
      Dotted name -> default as JSON has it. Nothing if a field of ALWAYS is missing:
      then the configuration is not that of an earlier version but damaged. Nothing,
      either, if a class of the user's own cannot be loaded.
    """
    if not values.keys() >= ALWAYS:
        return {}
    try:
        fields = declared(values)
    except SettingsError:
        return {}
    missing = {name: fields[name].default for name in fields.keys() - values.keys()}
    return json.loads(json.dumps(missing))


def unknown(name: str, known: Collection[str], model: Any = None) -> str:
    """The message for an unknown field, with what it is a field of or the nearest name.

    Args:
      name: of the field.
      known: names of all fields.
      model: name of the model; a class of the user's own is told with its attributes.
    """
    if own.is_own(model) and name.startswith("model."):
        inside = [k.removeprefix("model.") for k in known if k.startswith("model.")]
        theirs = ", ".join(k for k in inside if k not in OWN_FIELDS) or "none"
        return f"{name} is not a field: the attributes of {model} are {theirs}"
    section, _, leaf = name.rpartition(".")
    leaf = leaf.lstrip("-")
    leaf = _OFTEN_CALLED.get(leaf, leaf)
    if section == "algorithm" and "algorithm.name" in known:
        owners = [a for a in ALGORITHMS if leaf in algorithm_fields(a)]
        if owners:
            listed = ", ".join(owners)
            return f"{name} is not a field of this algorithm, but of {listed}"
    # The same name in another section is a better hint than a similar path.
    same = [k for k in known if k.rpartition(".")[2] == leaf]
    if f"{section}.{leaf}" in same:
        same = [f"{section}.{leaf}"]
    nearest = same[:1] or difflib.get_close_matches(name, known, n=1)
    hint = f"; did you mean {nearest[0]}?" if nearest else ""
    return f"{name} is not a field{hint}"


def flatten(config: Any, prefix: str = "") -> dict[str, Any]:
    """Nested dicts as one dict of dotted names."""
    flat = {}
    for name, value in config.items():
        if hasattr(value, "items"):
            flat |= flatten(value, f"{prefix}{name}.")
        else:
            flat[f"{prefix}{name}"] = value
    return flat


def _defaults(fields: Mapping[str, Field]) -> dict[str, Any]:
    return {name: field.default for name, field in fields.items()}


def _knows_algorithm(values: Mapping[str, Any]) -> bool:
    name = values.get("algorithm.name", ALGORITHM.default)
    return not ALGORITHM.unmet(name)
