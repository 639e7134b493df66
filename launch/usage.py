"""What `--help` prints: what a launcher does, its flags, the fields it can set.

Each section fits a screen of 40 lines and 100 columns. `--help=SECTION` prints one.
"""

import re
import textwrap
from string import digits
from types import ModuleType
from typing import Any

from absl import flags

from fedjax_prune.algorithms import ALGORITHMS
from fedjax_prune.engine.policy import make_policy
from fedjax_prune.fields import fields_of
from fedjax_prune.runs import settings
from fedjax_prune.runs.sections import written

from . import config_file

LINES, WIDTH = 40, 100
"""Of a screen."""
_LEFT = 30
"""Columns of names."""

USAGE, GENERAL, POLICY, ALGORITHM = "usage", "general", "policy", "algorithm"
"""Sections that are not sections of a configuration, and the one that may change."""

WORDS = {
    GENERAL: "what every run has",
    POLICY: "clients that fail or send bad updates",
    "eval": "what is evaluated, and when",
    "report": "what is recorded for the page of a run",
    "data": "the examples, and how they are dealt to clients",
    "model": "the network and its gates",
    "client": "local training",
    "server": "what the server does with the mean of the updates",
    "privacy": "noise on the sum of the updates",
    "hostile": "clients that attack",
    ALGORITHM: "its fields; [P] paper, [C] its code, [R] reconstructed",
}
"""Section -> what its fields are about."""

_HELP = re.compile(r"--?(?:h|help|helpshort|helpfull)(?:=(.*))?")


def asked(argument: str) -> str | None:
    """The section that an argument asks for, empty for all; None if it asks for none.

    Examples:
      >>> asked("--help"), asked("--help=client"), asked("--helpless")
      ('', 'client', None)
    """
    match = _HELP.fullmatch(argument)
    return None if match is None else match[1] or ""


def text(launcher: ModuleType, config: Any, section: str) -> str:
    """What `--help` prints.

    Args:
      launcher: the module that was started.
      config: whose fields are listed; None for a launcher without a configuration.
      section: a name in `sections`, or of an algorithm, whose fields are then listed.
        Empty for all sections.

    Raises:
      SettingsError: if there is no such section.
    """
    known = sections(launcher, config)
    if not section:
        return "\n\n".join(known.values())
    if section in known:
        parts = (p for n, p in known.items() if section in (n, n.rstrip(digits)))
        return "\n\n".join(parts)
    if config is not None and section in ALGORITHMS:
        parts = sections(launcher, settings.default_config(section))
        own = (part for name, part in parts.items() if name.startswith(ALGORITHM))
        return "\n\n".join(own)
    names = [*known, *ALGORITHMS] if config is not None else known
    raise settings.SettingsError(
        [f"--help must name one of {', '.join(names)}, got {section!r}"]
    )


def sections(launcher: ModuleType, config: Any) -> dict[str, str]:
    """Name of each section of the help -> its text.

    A section of fields that does not fit a screen has parts: algorithm, algorithm2.
    """
    usage = [(launcher.__doc__ or "").strip(), "", "Flags:"]
    for flag in flags.FLAGS.get_key_flags_for_module(launcher):
        usage += _entry(_shown(flag), (flag.help or "") + _allowed(flag))
    if config is None:
        return {USAGE: "\n".join(usage)}
    bundled, names = ", ".join(config_file.bundled()), ", ".join(WORDS)
    usage += ["", *_wrapped(f"CONFIG is a Python file, or one of {bundled}.")]
    usage += _wrapped(
        "Its fields follow by section with their values, which are those of base where "
        f"no CONFIG is given. --help=SECTION prints one: {names}. --help=autoflip "
        "prints the fields of that algorithm."
    )
    found = {USAGE: "\n".join(usage)}
    fields: dict[str, list[list[str]]] = {}
    for field in settings.describe(config):
        section, name = _place(field.name)
        allowed = field.allowed[0].upper() + field.allowed[1:]
        fields.setdefault(section, []).append(
            _entry(f"{name}={written(field.default)}", f"{field.words} {allowed}.")
        )
    for section, entries in fields.items():
        for number, part in enumerate(_parts(entries), 1):
            name = f"{section}{number}" if number > 1 else section
            found[name] = "\n".join([_title(section, name), *part])
    return found


def _parts(entries: list[list[str]]) -> list[list[str]]:
    """Lines of entries, in as few parts of about the same length as fit a screen."""
    total = sum(map(len, entries))
    num_parts = -(-total // (LINES - 4))
    parts, done = [[] for _ in range(num_parts)], 0
    for entry in entries:
        parts[done * num_parts // total] += entry
        done += len(entry)
    return parts


def _place(field: str) -> tuple[str, str]:
    """The section of the help that has a field, and its name there."""
    section, _, name = field.rpartition(".")
    if section:
        return section, name
    return POLICY if name in fields_of(make_policy) else GENERAL, name


def _title(section: str, name: str) -> str:
    prefix = "" if section in (GENERAL, POLICY) else f"{section}."
    return f"{name}: {WORDS[section]}; --config.{prefix}NAME=VALUE"


def _shown(flag: flags.Flag) -> str:
    return f"--[no]{flag.name}" if flag.boolean else f"--{flag.name}"


def _allowed(flag: flags.Flag) -> str:
    """The default of a flag and the range that it has, in brackets."""
    default = "" if flag.default in (None, "", []) else f"default {flag.default}"
    ranged = "" if flag.boolean else flag.parser.syntactic_help
    known = ", ".join(filter(None, (default, ranged)))
    return f" ({known})" if known else ""


def _entry(name: str, words: str) -> list[str]:
    """A name and a description of it, in two columns."""
    first, *more = _wrapped(" ".join(words.split()), WIDTH - _LEFT) or [""]
    lines = [f"{'':{_LEFT}}{line}" for line in more]
    if len(name) + 3 > _LEFT:
        return [f"  {name}", f"{'':{_LEFT}}{first}", *lines]
    return [f"{f'  {name}':{_LEFT}}{first}".rstrip(), *lines]


def _wrapped(words: str, width: int = WIDTH) -> list[str]:
    return textwrap.wrap(words, width, break_on_hyphens=False)
