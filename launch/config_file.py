"""Finds a configuration by name or path and calls its `get_config`."""

import difflib
import hashlib
import importlib.util
import inspect
import os
import sys
import traceback
from pathlib import Path
from types import ModuleType
from typing import Any

from ml_collections import ConfigDict

from fedjax_prune.runs.settings import SettingsError

BUNDLED = Path(__file__).parent.parent / "configs"
"""The library's own configurations: beside the launchers, installed or not."""


def load(path: str | None) -> Any:
    """Calls `get_config` of a configuration.

    Args:
      path: NAME of a bundled configuration, or a Python file; with `:STRING` after it,
        `get_config` is called with that string.

    Returns:
      What `get_config` returns, a ConfigDict.

    Raises:
      SettingsError: if there is no such file, or it cannot be used.
    """
    file, text = _split(path or "")
    try:
        get_config = load_module(file).get_config
        parameters = inspect.signature(get_config).parameters.values()
        if text is not None and not parameters:
            raise SettingsError([f"--config={path}: {file.name} takes no string"])
        if text is None and any(p.default is p.empty for p in parameters):
            raise SettingsError(
                [f"--config={path}: {file.name} needs :STRING after it"]
            )
        config = get_config() if text is None else get_config(text)
    except SettingsError:
        raise
    except ValueError as error:
        raise SettingsError([f"--config={path}: {error}"]) from error
    # The file is the user's own code: whatever it raises is a mistake in it.
    except Exception as error:
        where = _line_of(error, file)
        reason = f"{type(error).__name__}: {error}"
        raise SettingsError([f"--config={path}: {where}{reason}"]) from error
    if not isinstance(config, ConfigDict):
        raise SettingsError(
            [f"--config={path}: get_config must return a ConfigDict, got {config!r}"]
        )
    return config


def load_module(file: Path) -> ModuleType:
    """Runs a configuration file as a member of a package made of its folder.

    So `from . import base` finds the file beside it, or else the bundled one, and
    never a package that happens to have the same name.

    Args:
      file: an existing Python file.
    """
    folder = file.resolve().parent
    digest = hashlib.sha256(str(folder).encode()).hexdigest()[:16]
    package = ModuleType(f"fedjax_prune_configs_{digest}")
    package.__path__ = [str(folder), str(BUNDLED)]
    sys.modules.setdefault(package.__name__, package)
    # A dot in the file's name would be read as a package.
    name = f"{package.__name__}.{file.stem.replace('.', '_')}"
    spec = importlib.util.spec_from_file_location(name, file)
    assert spec is not None and spec.loader is not None  # it ends in .py
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


def bundled() -> list[str]:
    """The names of the bundled configurations."""
    return sorted(file.stem for file in BUNDLED.glob("[a-z]*.py"))


def _split(path: str) -> tuple[Path, str | None]:
    """The file and the string after it; colons may be in either."""
    ends = [len(path), *(i for i in reversed(range(len(path))) if path[i] == ":")]
    for end in ends:
        text = path[end + 1 :] if end < len(path) else None
        file = Path(os.path.expanduser(path[:end]))
        if file.suffix == ".py" and file.is_file():
            return file, text
        if path[:end] in bundled():
            return BUNDLED / f"{path[:end]}.py", text
    known = ", ".join(bundled())
    nearest = difflib.get_close_matches(path.partition(":")[0], bundled(), n=1)
    hint = f"; did you mean {nearest[0]}?" if nearest else ""
    raise SettingsError(
        [
            "--config must be a Python file that exists, or one of "
            f"{known}, got {path!r}{hint}"
        ]
    )


def _line_of(error: Exception, file: Path) -> str:
    """The last line of the file that led to the error, as a prefix."""
    lines = [
        frame.lineno
        for frame in traceback.extract_tb(error.__traceback__)
        if Path(frame.filename).name == file.name
    ]
    return f"line {lines[-1]}: " if lines else ""
