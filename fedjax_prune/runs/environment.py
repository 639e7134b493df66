"""`environment.json`: with what each start of a run has computed.

It is a list with an entry for each start that has trained, the first start first.
"""

import datetime
import importlib.metadata
import json
import os
import platform
import subprocess
import sys
import warnings
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax

from fedjax_prune.engine import processes
from fedjax_prune.runs.files import WorkdirError, free_name, replace
from fedjax_prune.runs.settings import flatten
from fedjax_prune.runs.workdir import is_changeable
from fedjax_prune.types import Config

FILE = "environment.json"

_PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy")
_FLAGS = ("JAX_", "XLA_", "LIBTPU_", "NVIDIA_TF32")
"""What names of environment variables begin with that change what is computed."""
_PATIENCE = 10
"""Seconds that git may take."""


def record(
    workdir: Path, config: Config, finished: int, hashes: Mapping[str, str]
) -> None:
    """Appends an entry for a start of a run; a damaged file is put aside.

    Args:
      workdir: of the run.
      config: of the run, with `devices` and `lanes` as numbers where they are known.
      finished: rounds done before.
      hashes: of its data, as `RunData` has them; {} if the data are elsewhere.
    """
    try:
        before = read(workdir)
    except WorkdirError as error:
        aside = free_name(workdir / FILE)
        (workdir / FILE).replace(aside)
        warnings.warn(f"{error} It is kept as {aside}.", stacklevel=2)
        before = []
    text = json.dumps([*before, describe(config, finished, hashes)], indent=2)
    replace(workdir / FILE, f"{text}\n".encode())


def read(workdir: Path) -> list[dict[str, Any]]:
    """The entries of a run, oldest first; none if there is no file.

    Raises:
      WorkdirError: if the file is not such a list.
    """
    file = workdir / FILE
    if not file.exists():
        return []
    try:
        entries = json.loads(file.read_text())
    except (OSError, ValueError) as error:
        raise WorkdirError(f"{file} cannot be read: {error}.") from error
    if not isinstance(entries, list) or not all(map(_is_entry, entries)):
        raise WorkdirError(f"{file} is damaged: it must hold a list of starts.")
    return entries


def describe(
    config: Config, finished: int, hashes: Mapping[str, str]
) -> dict[str, Any]:
    """The entry of a start.

    Args:
      config: of the run.
      finished: rounds done before.
      hashes: of its data.

    Returns:
      `started`, the time in UTC; `finished`; `fields`, those of the configuration that
      another start may change; `versions`; `commit`, as `commit_of`; `machine`;
      `processes`, their number; `devices` of all of them, kind -> number; `flags`,
      environment variables; `data`, their hashes.
    """
    versions = {"python": platform.python_version()}
    versions |= {name: _version(name) for name in _PACKAGES}
    package = sys.modules["fedjax_prune"]
    fields = flatten(config)
    return {
        "started": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "finished": finished,
        "fields": {k: v for k, v in fields.items() if is_changeable(k)},
        "versions": versions | {"fedjax_prune": package.__version__},
        "commit": commit_of(Path(__file__).parents[2]),
        "machine": {"system": platform.platform(), "processor": _processor()},
        "processes": processes.count(),
        "devices": dict(Counter(device.device_kind for device in jax.devices())),
        "flags": {k: v for k, v in sorted(os.environ.items()) if k.startswith(_FLAGS)},
        "data": dict(hashes),
    }


def commit_of(project: Path) -> str | None:
    """The commit of a checkout; None for an installation or without git.

    Args:
      project: folder that holds the library; of a checkout, its root.

    Returns:
      40 digits, with `-dirty` after them if a file that git knows was changed.
    """
    # An installation may lie inside a checkout of something else.
    if not (project / ".git").exists():
        return None
    command = ["git", "describe", "--always", "--dirty", "--exclude=*", "--abbrev=40"]
    try:
        done = subprocess.run(
            command,
            cwd=project,
            # Nothing is written, so that other git commands can run meanwhile.
            env=os.environ | {"GIT_OPTIONAL_LOCKS": "0"},
            capture_output=True,
            check=True,
            text=True,
            timeout=_PATIENCE,
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()


def _is_entry(value: Any) -> bool:
    return (
        isinstance(value, dict)
        and type(value.get("finished")) is int
        and isinstance(value.get("fields"), dict)
        and isinstance(value.get("versions", {}), dict)
    )


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        # Such as a nightly release, which has another name.
        return "unknown"


def _processor() -> str:
    """The model of the processor, whose instructions decide how XLA rounds."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = (line.partition(":")[2].strip() for line in lines if "model name" in line)
    return next(names, platform.processor() or platform.machine())
