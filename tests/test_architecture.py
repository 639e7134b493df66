"""Who may import what: the order below is the reading order of the library."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent / "fedjax_prune"

ORDER = [
    *(
        "types",
        "channels",
        "selection",
        "stopping",
        "transforms",
        "initializers",
        "precision",
        "gates",
        "winograd",
        "convolution",
        "models",
    ),
    *(
        "pruning",
        "hybrid",
        "agreement",
        "transport",
        "compact",
        "lanes",
        "placement",
        "data",
        "costs",
        "solver",
        "task",
        "client",
        "rounds",
        "server",
        "evaluate",
        "store",
    ),
    *("algorithms", "settings", "workdir", "checkpoint", "console"),
    *(
        "experiment",
        "liveness",
        "capacity",
        "programs",
        "compaction",
        "ledger",
        "report",
        "outcome",
        "preparation",
        "resume",
        "train",
        "export",
    ),
]

ONLY_IN = {
    "flax": {"gates", "models", "compact", "task", "experiment"},
    "tensorflow_datasets": {"data"},
    "tensorflow": {"data"},
    "orbax": {"checkpoint"},
    "tensorboardX": {"workdir"},
    "rich": {"console"},
    "ml_collections": {"report", "train", "export"},
}


def modules():
    return sorted(p for p in ROOT.rglob("*.py") if p != ROOT / "__init__.py")


def imports(path):
    """The modules named in the import lines of a file, inside functions too."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path} imports relatively"
            yield node.module
            if node.module == "fedjax_prune":
                yield from (f"fedjax_prune.{alias.name}" for alias in node.names)


def idea(path):
    return path.relative_to(ROOT).parts[0].removesuffix(".py")


def test_every_module_has_a_place():
    assert {idea(path) for path in modules()} == set(ORDER)


@pytest.mark.parametrize("path", modules(), ids=lambda p: str(p.relative_to(ROOT)))
def test_imports_point_to_the_left(path):
    own = ORDER.index(idea(path))
    for name in imports(path):
        parts = name.split(".")
        if parts[0] == "fedjax_prune" and len(parts) > 1:
            other = ORDER.index(parts[1])
            assert other < own or parts[1] == idea(path), f"{path.name}: {name}"


@pytest.mark.parametrize("library", ONLY_IN)
def test_libraries_stay_in_their_modules(library):
    users = {
        idea(path)
        for path in modules()
        if any(name.split(".")[0] == library for name in imports(path))
    }
    assert users <= ONLY_IN[library]


ALGORITHMS = [
    "fedavg",
    *("fedprox", "fednova", "scaffold"),
    *("masked", "exploration", "schedules"),
    *("autoflip", "eflprune", "fedsnip", "magnitude", "prunefl"),
    "random_pruning",
]


def test_algorithms_are_built_on_earlier_ones():
    folder = ROOT / "algorithms"
    assert {path.stem for path in folder.glob("[a-z]*.py")} == set(ALGORITHMS)
    for path in folder.glob("[a-z]*.py"):
        for name in imports(path):
            if name.startswith("fedjax_prune.algorithms."):
                other = ALGORITHMS.index(name.split(".")[2])
                assert other < ALGORITHMS.index(path.stem), f"{path.name}: {name}"


def test_the_library_does_not_know_configs_and_launchers():
    for path in modules():
        roots = {name.split(".")[0] for name in imports(path)}
        assert not roots & {"configs", "launch", "tests"}, path.name


def test_files_stay_short():
    long = {p.name: n for p in modules() if (n := len(p.read_text().split("\n"))) > 401}
    assert long == {}
