"""Every field with its default: FedDP on CIFAR-10, ten clients, VGG-11.

    python -m fedjax_prune train --config=base --workdir=runs/base

An algorithm's name after a colon brings that algorithm's fields:
`--config=base:fedprox`. Any field can be changed on the command line:
`--config.client.epochs=2`; `--help` lists all of them. Defaults are declared beside
what they configure; this file changes one of them, the weight decay of the clients.
"""

from collections.abc import Collection, Mapping, Sequence
from typing import Any

from ml_collections import ConfigDict
from ml_collections.config_dict import FieldReference

from fedjax_prune.runs import settings


def parts(
    text: str, choices: Mapping[str, Collection[str]], last: Sequence[str] = ()
) -> list[str]:
    """The parts of a config string, which commas separate.

    Args:
      text: the string.
      choices: name of each part -> what it may be.
      last: defaults of the last parts, which the string may leave out.

    Raises:
      ValueError: if a part is unknown, or there are too few or too many.
    """
    given, required = text.split(","), len(choices) - len(last)
    names = list(choices)
    if not required <= len(given) <= len(choices):
        optional = "".join(f"[,{name}" for name in names[required:])
        form = ",".join(names[:required]) + optional + "]" * len(last)
        listed = "; ".join(f"{name}: {', '.join(c)}" for name, c in choices.items())
        raise ValueError(f"The config string must be {form}, got {text!r}. {listed}.")
    chosen = [*given, *last[len(given) - required :]]
    wrong = [
        f"{name} must be one of {', '.join(known)}, got {part!r}"
        for part, (name, known) in zip(chosen, choices.items(), strict=True)
        if part not in known
    ]
    if wrong:
        raise ValueError("; ".join(wrong))
    return chosen


def algorithm(name: str) -> ConfigDict:
    """The section `algorithm` with the defaults of one algorithm.

    Raises:
      ValueError: if the name is unknown.
    """
    return ConfigDict(settings.default_config(name)["algorithm"])


def model(name: str) -> ConfigDict:
    """The section `model` with the defaults of one network.

    Args:
      name: of the library's, or FILE.py:CLASS of a class of your own, whose attributes
        are the fields.

    Raises:
      SettingsError: if the class cannot be loaded.
    """
    return ConfigDict(settings.default_model(name))


def get_config(algorithm_name: str = "scaffold") -> Any:
    """A ConfigDict of every field.

    Raises:
      ValueError: if the name is unknown.
    """
    values = settings.default_config(algorithm_name)
    # May also be a number.
    values["lanes"] = FieldReference(values["lanes"], field_type=object)
    config: Any = ConfigDict(values)
    config.client.weight_decay = 5e-4
    return config
