"""Which modules of the user's own count as parts of a class, and which do not."""

import hashlib
import sys

import pytest

from fedjax_prune.models import own
from fedjax_prune.models.own_files import files_of, hash_files
from tests.own_files import NETS, write_nets

FILES = {
    "nets.py": """
import math, os.path
import flax.linen as nn
from fedjax_prune.models import blocks as ours
import blocks
from pack.inner import thing
from pack import other, THREE


def late():
    import later
""",
    "blocks.py": "import nets\nimport outside\n",
    "later.py": "",
    "unused.py": "",
    "math.txt": "",
    "pack/__init__.py": "from .deep import x\nTHREE = 3\n",
    "pack/inner.py": "from . import sibling\nfrom ..blocks import y\n",
    "pack/other.py": "",
    "pack/sibling.py": "this is no Python",
    "pack/deep/__init__.py": "from ..inner import thing\nfrom ...outside import x\n",
    "pack/unused.py": "",
    "fedjax_prune/models/blocks.py": "",
    "flax/linen.txt": "",
    "../outside.py": "",
}


@pytest.fixture
def folder(tmp_path):
    """A folder of modules, and a module beside it."""
    for name, text in FILES.items():
        file = tmp_path / "mine" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
    return tmp_path / "mine"


def names(folder, file="nets.py"):
    return [str(each.relative_to(folder)) for each in files_of(folder / file)]


OWN = [
    "nets.py",
    "blocks.py",
    "later.py",
    "pack/__init__.py",
    "pack/deep/__init__.py",
    "pack/inner.py",
    "pack/other.py",
    "pack/sibling.py",
]


def test_imports_are_followed_in_the_folder_and_below(folder):
    assert names(folder) == OWN
    assert names(folder, "later.py") == ["later.py"]


def test_a_folder_that_is_a_package_is_found_from_around_it(folder, monkeypatch):
    (folder / "nets.py").write_text("from mine.pack import other\nimport outside\n")
    assert names(folder) == ["nets.py"]
    monkeypatch.syspath_prepend(folder.parent)
    assert names(folder)[:2] == ["nets.py", "blocks.py"]
    assert "pack/other.py" in names(folder) and "pack/unused.py" not in names(folder)


def test_installed_packages_below_the_folder_are_not_followed(folder, monkeypatch):
    installed = folder / ".venv" / "site-packages"
    installed.mkdir(parents=True)
    (installed / "installed.py").write_text("")
    (folder / "nets.py").write_text("import installed\n")
    monkeypatch.syspath_prepend(installed)
    assert names(folder) == ["nets.py"]


@pytest.mark.parametrize("name", OWN)
def test_each_of_the_files_changes_the_hash(folder, name):
    before = hash_files(folder / "nets.py")
    file = folder / name
    file.write_text(file.read_text() + "\n# changed\n")
    assert hash_files(folder / "nets.py") != before


def test_no_other_file_changes_it(folder):
    before = hash_files(folder / "nets.py")
    for name in FILES.keys() - set(OWN):
        (folder / name).write_text("changed = True")
    assert hash_files(folder / "nets.py") == before


def test_a_file_alone_has_the_hash_of_its_content(folder):
    content = (folder / "later.py").read_bytes()
    assert hash_files(folder / "later.py") == hashlib.sha256(content).hexdigest()


def test_changed_modules_beside_the_file_are_imported_anew(tmp_path, monkeypatch):
    """Also those that have not changed themselves but import one that has."""
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    (tmp_path / "inner_nets.py").write_text("WIDTH = 1\n")
    (tmp_path / "outer_nets.py").write_text("from inner_nets import WIDTH\n")
    path = write_nets(tmp_path, NETS + "\nfrom outer_nets import WIDTH\n")

    def width():
        cls = own.load_class(f"{path}:Small").cls
        return sys.modules[cls.__module__].WIDTH

    assert width() == 1
    (tmp_path / "inner_nets.py").write_text("WIDTH = 2\n")
    assert width() == 2
