"""What an import costs, and what an installed library holds."""

import ast
import configparser
import subprocess
import sys
from pathlib import Path

import fedjax_prune

ROOT = Path(__file__).parents[2]

SLOW = {
    "altair",
    "array_record",
    "flax.nnx",
    "grain",
    "orbax",
    "scipy",
    "sklearn",
    "tensorboardX",
    "tensorflow",
    "tensorflow_datasets",
    "tensorstore",
    "vl_convert",
}
"""Needed by runs alone, or by one data set."""


def test_library_and_launchers_import_nothing_slow_before_they_are_used():
    """So `--help` takes hardly longer than to import JAX and Flax."""
    code = "import launch.sweep, sys; print(*sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    imported = set(done.stdout.split())
    assert "fedjax_prune" in imported
    assert imported & SLOW == set()


def test_all_errors_are_exported():
    for name in (
        "CheckpointError",
        "DataError",
        "SettingsError",
        "TrainingError",
        "WorkdirError",
    ):
        assert name in fedjax_prune.__all__
        assert issubclass(getattr(fedjax_prune, name), Exception)


def test_every_public_name_exists():
    for name in fedjax_prune.__all__:
        assert getattr(fedjax_prune, name) is not None
    assert sorted(set(fedjax_prune.__all__)) == sorted(fedjax_prune.__all__)


def test_an_installation_has_every_package_and_one_version():
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg")
    folders = {file.parent for file in ROOT.glob("fedjax_prune/**/__init__.py")}
    inside = {".".join(folder.relative_to(ROOT).parts) for folder in folders}
    beside = {"fedjax_prune.configs", "fedjax_prune.launch"}
    assert set(setup["options"]["packages"].split()) == inside | beside
    # Read by setuptools without importing the library.
    assert setup["metadata"]["version"] == "attr: fedjax_prune.__version__"
    tree = ast.parse((ROOT / "fedjax_prune/__init__.py").read_text())
    (version,) = (
        ast.literal_eval(node.value)
        for node in tree.body
        if isinstance(node, ast.Assign)
        and ast.unparse(node.targets[0]) == "__version__"
    )
    assert version == fedjax_prune.__version__
    assert (ROOT / "fedjax_prune" / "py.typed").is_file()
