"""The API reference: every public name and every module, readable without a network."""

import importlib.util
import inspect
import re
import subprocess
import sys
from pathlib import Path

import pytest

import fedjax_prune

ROOT = Path(__file__).parents[2]

pytestmark = [
    pytest.mark.long,
    pytest.mark.skipif(
        importlib.util.find_spec("pdoc") is None,
        reason="pdoc is not installed: pip install 'fedjax_prune[docs]'",
    ),
]


@pytest.fixture(scope="module")
def pages(tmp_path_factory):
    """Path of each page below the folder -> its text."""
    folder = tmp_path_factory.mktemp("reference") / "docs"
    done = subprocess.run(
        [sys.executable, "-m", "launch.docs", f"--out={folder}"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    expected = (0, f"{folder}/index.html\n", "")
    assert (done.returncode, done.stdout, done.stderr) == expected
    return {
        str(path.relative_to(folder)): path.read_text()
        for path in folder.rglob("*.html")
    }


def page_of(module):
    return f"{module.replace('.', '/')}.html"


def entries(page):
    """What a page describes -> the text of it."""
    sections = re.split(r'<section id="', page)[1:]
    return {name: text for name, _, text in (s.partition('"') for s in sections)}


def test_every_module_has_a_page_that_the_first_page_names(pages):
    names = set()
    for path in (ROOT / "fedjax_prune").rglob("*.py"):
        parts = path.relative_to(ROOT).with_suffix("").parts
        names.add(".".join(parts).removesuffix(".__init__"))
    names.remove("fedjax_prune.__main__")
    assert pages.keys() == {"index.html", *map(page_of, names)}
    listed = re.findall(r'<li><a href="([^"]+)">', pages["index.html"])
    assert set(listed) == set(map(page_of, names))


def test_every_public_name_is_described(pages):
    described = entries(pages["fedjax_prune.html"])
    for name in fedjax_prune.__all__:
        value = getattr(fedjax_prune, name)
        if inspect.ismodule(value):
            assert page_of(value.__name__) in pages
            continue
        if isinstance(value, dict):
            # A table is described on the page of the module that has it.
            assert name in described
            found = [e[name] for e in map(entries, pages.values()) if name in e]
            assert any('class="docstring"' in entry for entry in found), name
            continue
        assert 'class="docstring"' in described[name], name
        doc = inspect.getdoc(value) or ""
        for head, shown in (("Args", "Arguments"), ("Returns", "Returns")):
            if inspect.isfunction(value) and f"\n{head}:\n" in doc:
                assert f">{shown}:</h6>" in described[name], name
        for error in re.findall(r"\nRaises:\n  (\w+):", doc):
            assert f"<strong>{error}:</strong>" in described[name], name


def test_a_page_loads_nothing_from_elsewhere(pages):
    for name, text in pages.items():
        for tag in re.findall(r"<(?:script|link|img|iframe)\b[^>]*>", text):
            assert "http" not in tag or "data:" in tag, f"{name}: {tag}"
        assert "@import" not in text and "url(http" not in text
