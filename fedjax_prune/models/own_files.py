"""The files of a class of the user's own: where it is, and modules beside it."""

import ast
import hashlib
import importlib
import sys
from collections.abc import Iterator
from pathlib import Path


def files_of(path: Path) -> list[Path]:
    """Follows the imports of a file to modules in its folder and below.

    Only import lines are read, also those inside functions; nothing is run. Modules
    elsewhere, such as installed ones, are not followed, nor is this library.

    Args:
      path: of a Python file that can be read.

    Returns:
      The file, then the others in the order of their paths. A file that Python cannot
      read has no imports.

    Examples:
      >>> import tempfile
      >>> folder = Path(tempfile.mkdtemp())
      >>> _ = (folder / "nets.py").write_text("import flax, blocks")
      >>> _ = (folder / "blocks.py").write_text("import math")
      >>> [file.name for file in files_of(folder / "nets.py")]
      ['nets.py', 'blocks.py']
    """
    first = path.resolve()
    found, waiting = {first}, [first]
    while waiting:
        own = set(_imported(waiting.pop(), first.parent)) - found
        found |= own
        waiting += own
    return [first, *sorted(found - {first})]


def hash_files(path: Path) -> str:
    """Hashes a file and the modules beside it that it imports.

    Args:
      path: of a Python file.

    Returns:
      SHA-256 as hexadecimal digits; of the file alone if it imports no such module.

    Raises:
      OSError: if a file cannot be read.
    """
    content = hashlib.sha256(path.read_bytes())
    first, *others = files_of(path)
    for file in others:
        name = file.relative_to(first.parent).as_posix()
        content.update(f"\0{name}\0".encode() + file.read_bytes())
    return content.hexdigest()


_IMPORTED: dict[Path, str] = {}
"""A module beside a class -> the hash of its file when it was imported."""


def forget_changed(path: Path) -> None:
    """Lets modules beside a file be imported anew, if one of them has changed.

    Python keeps modules that were imported, so a file would run again with old ones.

    Args:
      path: of a Python file that is run after this.

    Raises:
      OSError: if a file cannot be read.
    """
    beside = files_of(path)[1:]
    hashes = {x: hashlib.sha256(x.read_bytes()).hexdigest() for x in beside}
    if any(_IMPORTED.get(file, found) != found for file, found in hashes.items()):
        importlib.invalidate_caches()
        for name, module in list(sys.modules.items()):
            file = getattr(module, "__file__", None)
            if file is not None and Path(file).resolve() in hashes:
                del sys.modules[name]
    _IMPORTED.update(hashes)


def _imported(file: Path, folder: Path) -> Iterator[Path]:
    """The files in the folder and below that a file imports."""
    try:
        tree = ast.parse(file.read_bytes())
    except (SyntaxError, ValueError):
        return
    # Where the folder or a package around it may be imported from.
    around = [folder, *(base for p in sys.path if (base := Path(p).resolve()))]
    around = [base for base in around if folder.is_relative_to(base)]
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names, bases = [alias.name for alias in node.names], around
        elif isinstance(node, ast.ImportFrom):
            module = node.module or ""
            names = [f"{module}.{alias.name}".strip(".") for alias in node.names]
            bases = around
            if node.level:
                bases = [[file, *file.parents][node.level]]
        else:
            continue
        for name in names:
            if name.split(".")[0] != "fedjax_prune":
                found = (_modules(base, name.split(".")) for base in bases)
                first = next(filter(None, found), [])
                yield from (each for each in first if each.is_relative_to(folder))


def _modules(base: Path, parts: list[str]) -> list[Path]:
    """The files that an import of `base/a/b` runs, as far as they exist."""
    found = []
    for number in range(1, len(parts) + 1):
        place = base.joinpath(*parts[:number])
        found += [place.with_suffix(".py"), place / "__init__.py"]
    return [file for file in found if file.is_file()]
