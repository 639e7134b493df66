"""The rooms of the library: who may import what, and how long files may be."""

import ast
from pathlib import Path

import pytest

PROJECT = Path(__file__).parent.parent
ROOT = PROJECT / "fedjax_prune"

ROOMS = ("data", "models", "engine", "pruning", "algorithms", "runs", "flower")
"""Each may import those to its left and the SHARED files; there are no others."""

SHARED = {"types", "layers", "fields", "shares"}
"""Files that stand before all rooms."""

ONLY_IN = {
    "flax": {"models"},
    "tensorflow_datasets": {"data"},
    "tensorflow": set(),
    "sklearn": {"data"},
    "orbax": {"runs"},
    "tensorboardX": {"runs"},
    "rich": {"runs"},
    "altair": {"runs"},
    "vl_convert": {"runs"},
    "safetensors": {"runs"},
    "jax2onnx": {"runs"},
    "onnxruntime": {"runs"},
    "ml_collections": {"runs"},
    "dp_accounting": {"runs"},
    "fsspec": {"engine"},
    "flwr": {"flower"},
}

MOST_LINES, MOST_LINES_OF_A_FUNCTION = 350, 60


def modules():
    return sorted(ROOT.rglob("*.py"))


def room(path):
    """The room of a file; the name of a file that stands before all rooms."""
    return path.relative_to(ROOT).parts[0].removesuffix(".py")


def imports(path):
    """The modules named in the import lines of a file, inside functions too."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path} imports relatively"
            assert node.module is not None
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def test_the_library_has_these_rooms():
    folders = {p.name for p in ROOT.iterdir() if p.is_dir() and p.name[0] != "_"}
    assert folders == set(ROOMS)
    files = {p.stem for p in ROOT.glob("*.py")}
    assert files == {*SHARED, "__init__", "__main__"}


@pytest.mark.parametrize("name", ROOMS)
def test_a_room_imports_only_rooms_to_its_left(name):
    allowed = {*SHARED, *ROOMS[: ROOMS.index(name) + 1]}
    for path in (ROOT / name).rglob("*.py"):
        for imported in imports(path):
            parts = imported.split(".")
            if parts[0] == "fedjax_prune":
                assert len(parts) > 1, f"{path.name} imports the whole library"
                assert parts[1] in allowed, f"{path.name}: {imported}"


@pytest.mark.parametrize("name", sorted(SHARED))
def test_what_stands_before_the_rooms_imports_none(name):
    for imported in imports(ROOT / f"{name}.py"):
        if imported.startswith("fedjax_prune"):
            assert imported.split(".")[1] in SHARED, imported


@pytest.mark.parametrize("library", ONLY_IN)
def test_libraries_stay_in_their_rooms(library):
    users = {
        room(path)
        for path in modules()
        if any(name.split(".")[0] == library for name in imports(path))
    }
    assert users <= ONLY_IN[library]


def test_the_library_does_not_know_configs_and_launchers():
    for path in modules():
        roots = {name.split(".")[0] for name in imports(path)}
        assert not roots & {"configs", "launch", "tests"}, path.name


def test_tests_do_not_import_each_other():
    for path in (PROJECT / "tests").rglob("test_*.py"):
        for imported in imports(path):
            assert ".test_" not in imported, f"{path.name}: {imported}"


def test_files_stay_short():
    folders = [ROOT, *(PROJECT / name for name in ("configs", "launch", "tests"))]
    files = [PROJECT / "README.md"]
    for folder in folders:
        files += [*folder.rglob("*.py"), *folder.rglob("*.md")]
    lengths = {p: len(p.read_text().splitlines()) for p in files}
    long = {p: n for p, n in lengths.items() if n > MOST_LINES}
    assert {str(p.relative_to(PROJECT)): n for p, n in long.items()} == {}


def test_long_calls_name_their_arguments():
    """Except methods of arrays and of Flax, whose arguments have no names."""
    folders = [ROOT, *(PROJECT / name for name in ("configs", "launch", "tests"))]
    for path in (path for folder in folders for path in folder.rglob("*.py")):
        for call in ast.walk(ast.parse(path.read_text())):
            if isinstance(call, ast.Call) and len(call.args) >= 6:
                name = ast.unparse(call.func)
                assert name.endswith((".reshape", "self.variable")), (
                    f"{path.name}:{call.lineno} {name}"
                )


def test_functions_stay_short():
    """Without their docstrings and the declarations of their arguments."""
    long = {}
    launchers = [*ROOT.parent.glob("launch/**/*.py"), *ROOT.parent.glob("configs/*.py")]
    for path in [*modules(), *launchers]:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.FunctionDef):
                body = node.body[bool(ast.get_docstring(node)) :]
                lines = body[-1].end_lineno - body[0].lineno + 1 if body else 0
                if lines > MOST_LINES_OF_A_FUNCTION:
                    long[f"{path.name}:{node.name}"] = lines
    assert long == {}
