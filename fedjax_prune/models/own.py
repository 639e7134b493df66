"""Model classes of the user's own, which a configuration names as FILE.py:CLASS.

The attributes of the class become fields of the section `model`, as the keywords of an
algorithm's builder become fields of the section `algorithm`. Of an NNX class they are
the arguments of `__init__`.
"""

import functools
import importlib.util
import inspect
import re
import sys
import traceback
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Annotated, Any, NamedTuple, get_args, get_origin, get_type_hints

import flax.linen as nn

from fedjax_prune.fields import ANY, TYPES, Field, Rule
from fedjax_prune.models.own_files import forget_changed, hash_files

FACTS = ("num_classes", "image_shape", "dtype")
"""Attributes that are filled in, if the class has them."""
KEPT = ("gates", "left")
"""Attributes that keep their defaults until a run has gates or removes channels."""
_NOT_ASKED = ("self", "name", "parent", "rngs")


class OwnClass(NamedTuple):
    """A model class of the user's own.

    Attributes:
      name: FILE.py:CLASS.
      cls: a linen or an NNX class.
      fields: its attributes that a configuration can set.
      attributes: names of all of them.
    """

    name: str
    cls: type
    fields: Mapping[str, Field]
    attributes: tuple[str, ...]

    @property
    def has_gates(self) -> bool:
        """Whether it can be gated: a linen class whose `gates` are None by default."""
        return issubclass(self.cls, nn.Module) and getattr(self.cls, "gates", 0) is None

    def build(self, values: Mapping[str, Any], facts: Mapping[str, Any]) -> nn.Module:
        """Makes a model.

        Args:
          values: name of each field -> its value.
          facts: name of each of FACTS -> its value.

        Returns:
          A linen module, of an NNX class the wrapped one.

        Raises:
          ValueError: with what the class raises.
        """
        given = {name: _frozen(values[name]) for name in self.fields}
        given |= {name: facts[name] for name in FACTS if name in self.attributes}
        if not issubclass(self.cls, nn.Module):
            from flax import nnx

            return nnx.bridge.to_linen(self.cls, **given)
        try:
            return self.cls(**given)
        except Exception as error:
            raise ValueError(told(self.name, error)) from error


def is_own(name: Any) -> bool:
    """Whether the name of a model names a file and a class in it.

    Examples:
      >>> is_own("nets.py:Small"), is_own("vgg11")
      (True, False)
    """
    return isinstance(name, str) and _parts(name) is not None


def without_folder(name: str) -> str:
    """Shortens the path of a class to the name of its file.

    Examples:
      >>> without_folder("work/nets.py:Small")
      'nets.py:Small'
    """
    return Path(name).name


def file_hash(name: str) -> str:
    """Hashes the file of a class and the modules beside it that it imports.

    Args:
      name: FILE.py:CLASS.

    Returns:
      SHA-256 as hexadecimal digits.

    Raises:
      ValueError: if a file cannot be read.
    """
    path = _file(name)
    try:
        return hash_files(path)
    except OSError as error:
        raise ValueError(f"{path} cannot be read: {error.strerror}.") from error


def load_class(name: str) -> OwnClass:
    """Runs a file and reads the attributes of a class in it.

    Args:
      name: FILE.py:CLASS. A file runs once in a process unless it or a module beside
        it that it imports changes.

    Raises:
      ValueError: if the file cannot be run, has no such class, or an attribute has
        neither a default nor a name of FACTS and KEPT.
    """
    from flax import nnx

    path, (_, wanted) = _file(name), _parts(name) or ("", "")
    module = _run(path.resolve(), file_hash(name))
    kinds = (nn.Module, nnx.Module)
    found = {
        each: cls
        for each, cls in vars(module).items()
        if isinstance(cls, type)
        and issubclass(cls, kinds)
        and cls.__module__ == module.__name__
    }
    if wanted not in found:
        raise ValueError(
            f"{path} must have the Flax class {wanted}, got "
            f"{', '.join(found) or 'none'}."
        )
    return OwnClass(name, found[wanted], *_attributes(path, found[wanted]))


def is_theirs(name: str, error: Exception) -> bool:
    """Whether the user's code has led to an error; ours are ValueErrors."""
    return not isinstance(error, ValueError) or bool(_lines(_file(name), error))


def told(name: str, error: Exception) -> str:
    """Says what the user's code has raised, with the last line of it that ran."""
    return f"{name}: {_what(_file(name), error)}"


def _what(path: Path, error: Exception) -> str:
    """The last line of a file that led to an error, and the error."""
    lines = _lines(path, error)
    where = f"line {lines[-1]}: " if lines else ""
    reason = str(error).strip().partition("\n")[0]
    return f"{where}{type(error).__name__}: {reason}"


def _lines(path: Path, error: Exception) -> list[int | None]:
    """The lines of a file that led to an error, the last one last."""
    frames = traceback.extract_tb(error.__traceback__)
    file = path.resolve()
    return [frame.lineno for frame in frames if Path(frame.filename) == file]


def _attributes(path: Path, cls: type) -> tuple[dict[str, Field], tuple[str, ...]]:
    """Lists the attributes of a class: those of a configuration, and all."""
    asked = cls if issubclass(cls, nn.Module) else cls.__init__
    try:
        hints = get_type_hints(asked, include_extras=True)
    except Exception as error:
        raise ValueError(
            f"{path}: the annotations of {cls.__name__}: {error}"
        ) from error
    parameters = inspect.signature(cls.__init__).parameters.values()
    named = [
        p
        for p in parameters
        if p.name not in _NOT_ASKED and p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)
    ]
    fields = {}
    for p in named:
        # A `gates` or `left` of another meaning, such as a number, is like any other.
        is_number = isinstance(p.default, int | float | str)
        if p.name in FACTS or (p.name in KEPT and not is_number):
            continue
        if p.default is p.empty:
            raise ValueError(
                f"{path}: {p.name} of {cls.__name__} must have a default, or be one of "
                f"{', '.join(FACTS)}, which are filled in."
            )
        field = _field(cls, hints.get(p.name, type(p.default)), p.default)
        if field is not None:
            fields[p.name] = field
    return fields, tuple(p.name for p in named)


def _field(cls: type, hint: Any, default: Any) -> Field | None:
    """Declares an attribute; None if a configuration cannot hold it."""
    words = f"Attribute of {cls.__name__}."
    rule = ANY
    if get_origin(hint) is Annotated:
        hint, *more = get_args(hint)
        rule = next((x for x in more if isinstance(x, Rule)), ANY)
        words = next((x for x in more if isinstance(x, str)), words)
    if get_origin(hint) in (tuple, list, Sequence) and get_args(hint)[:1] == (str,):
        hint = Sequence[str]
    fits = hint in TYPES and TYPES[hint].holds(default)
    return Field(hint, rule, words, default) if fits or rule is not ANY else None


def _frozen(value: Any) -> Any:
    # A configuration that was read from a file has lists.
    return tuple(value) if isinstance(value, list) else value


def _parts(name: str) -> tuple[str, str] | None:
    match = re.fullmatch(r"(.+\.py):([A-Za-z_]\w*)", name)
    return (match[1], match[2]) if match else None


def _file(name: str) -> Path:
    file, _ = _parts(name) or ("", "")
    return Path(file).expanduser()


@functools.cache
def _run(path: Path, digest: str) -> ModuleType:
    """Runs a file as a module of its own name, so that no other one is replaced."""
    name = f"fedjax_prune_own_{digest[:16]}"
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None and spec.loader is not None, "the file ends in .py"
    module = importlib.util.module_from_spec(spec)
    forget_changed(path)
    # The annotations of its classes are read there.
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    # It is the user's own code: whatever it raises is a mistake in it.
    except Exception as error:
        del sys.modules[name]
        raise ValueError(f"{path}: {_what(path, error)}") from error
    return module
