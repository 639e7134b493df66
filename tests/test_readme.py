"""What README shows runs as it stands, and what it names exists."""

import ast
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest

import fedjax_prune
from fedjax_prune.pruning import guidance
from fedjax_prune.runs import settings

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
ADDING = (ROOT / "fedjax_prune" / "algorithms" / "README.md").read_text()
(LOOP,) = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
(FEDDYN,) = re.findall(r"```python\n(.*?)```", ADDING, re.DOTALL)
GUIDES = (
    "README.md",
    "configs/README.md",
    *(str(path.relative_to(ROOT)) for path in ROOT.glob("configs/results/*.md")),
    "fedjax_prune/runs/README.md",
    "launch/README.md",
    "launch/benchmark/README.md",
    "fedjax_prune/algorithms/README.md",
)

TRIAL = """
import fedjax_prune as fp
from fedjax_prune.runs import settings

config = settings.default_config("feddyn")
print(fp.__file__)
print(config["algorithm"])
settings.check(config)
config["algorithm"]["alpha"] = 0.0
print(settings.problems(config))
"""


def test_the_library_example_learns(capsys):
    variables = {}
    exec(LOOP, variables)
    *lines, last = capsys.readouterr().out.splitlines()
    losses = [float(line.split()[1]) for line in lines]
    assert len(losses) == 10 and last.endswith("% of the training examples")
    assert np.mean(losses[-3:]) < losses[0]
    assert float(variables["accuracy"]) > 0.8


EXPLORES = ", explore_epochs=2, structured_rule='off'"
SHARES = {
    "fedsnip": ("", 0.29, 0.32),
    "autoflip": (EXPLORES, 0.29, 0.32),
    "random_pruning": (EXPLORES, 0.29, 0.32),
    "prunefl": (", max_adjustments=2", 0.01, 0.99),
}
"""Name -> its further arguments, and bounds of the share that it prunes."""


@pytest.mark.parametrize(
    "name",
    # What each prepares is tested with the algorithms, the loop is the same.
    [
        pytest.param(n, marks=() if n in ("autoflip", "prunefl") else pytest.mark.long)
        for n in SHARES
    ],
)
def test_the_library_loop_prepares_and_prunes(name, capsys):
    """The same loop with methods that train unpruned if nobody prepares them."""
    made = "fp.scaffold(task, solver, fp.make_server_tx()"
    assert made in LOOP
    fields, least, most = SHARES[name]
    code = LOOP.replace(made, made.replace("scaffold", name) + fields)
    variables = {}
    exec(code, variables)
    assert len(capsys.readouterr().out.splitlines()) == 11
    delivered = variables["algorithm"].deliver(variables["state"]).params
    kernels = [np.asarray(layer["kernel"]) for layer in delivered.values()]
    zeros = sum((k == 0).sum() for k in kernels) / sum(k.size for k in kernels)
    assert least < zeros < most
    without = re.sub(r"state = fp\.prepare.*\n", "", code)
    with pytest.raises(ValueError, match=r"call fedjax_prune\.prepare"):
        exec(without, {})


def test_the_algorithm_is_the_tested_file():
    """tests/algorithms/test_feddyn.py compares that file with numpy."""
    assert (ROOT / "tests" / "feddyn.py").read_text() == FEDDYN
    _, _, code = FEDDYN.split('"""', 2)
    assert len([line for line in code.splitlines() if line.strip()]) <= 60


@pytest.mark.long
def test_the_algorithm_is_added_as_its_guide_says(tmp_path):
    """A file, an import and an entry are enough; the algorithm is found by its name."""
    library, ignored = tmp_path / "fedjax_prune", shutil.ignore_patterns("__pycache__")
    for package in ("fedjax_prune", "configs", "launch"):
        shutil.copytree(ROOT / package, tmp_path / package, ignore=ignored)
    (library / "algorithms" / "feddyn.py").write_text(FEDDYN)
    (entry,) = re.findall(r'`("feddyn": .*?)`', ADDING)
    names = library / "algorithms" / "__init__.py"
    text = names.read_text()
    first, table = text.index("from fedjax_prune"), "ALGORITHMS = {\n"
    assert table in text
    text = f"{text[:first]}from fedjax_prune.algorithms.feddyn import feddyn\n" + (
        text[first:].replace(table, f"{table}    {entry}\n")
    )
    names.write_text(text)
    loop = LOOP.replace("range(10)", "range(1)")
    loop = loop.replace("fp.scaffold(task", 'fp.ALGORITHMS["feddyn"](task')

    def run(*command):
        done = subprocess.run(
            [sys.executable, *command],
            cwd=tmp_path,
            env=os.environ | {"PYTHONPATH": str(tmp_path)},
            capture_output=True,
            text=True,
            timeout=300,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    where, fields, problems, round_one, accuracy = run("-c", TRIAL + loop).splitlines()
    assert where == str(library / "__init__.py")
    assert ast.literal_eval(fields) == {"name": "feddyn", "alpha": 0.1}
    assert problems == "['algorithm.alpha must be above 0, got 0.0']"
    number, loss = round_one.split()
    assert number == "1"
    assert 0 < float(loss) < 2 * np.log(3)
    assert accuracy.endswith("% of the training examples")
    (flags,) = re.findall(r"`(--config=.*?feddyn.*?)` trains", ADDING)
    short = ("rounds=1", "lanes=1", "devices=1", "model.gated=false", "cohort_size=2")
    short = (*(f"--config.{field}" for field in short), "--workdir=run")
    out = run("-m", "fedjax_prune", "train", *flags.split(), *short)
    assert "feddyn, " in out and "1 of 1" in out


def test_a_pruning_score_is_one_function(monkeypatch):
    monkeypatch.setitem(guidance.NORMALIZATIONS, "root", jnp.sqrt)
    deviations = {"kernel": jnp.array([0.0, 4.0, 9.0])}
    scores = guidance.guidance_matrix(deviations, normalization="root")
    np.testing.assert_array_equal(scores["kernel"], [0, 2, 3])
    config = settings.default_config("autoflip")
    config["algorithm"]["guidance_norm"] = "root"
    assert not [p for p in settings.problems(config) if "guidance_norm" in p]


def test_readme_is_short():
    assert len(README.splitlines()) <= 200


@pytest.mark.parametrize("guide", GUIDES)
def test_named_files_exist(guide):
    text = (ROOT / guide).read_text()
    names = re.findall(r"\b(?:configs|launch|tests|fedjax_prune)/[\w/]+\.\w+", text)
    assert names
    for name in names:
        assert (ROOT / name).exists(), name
    for link in re.findall(r"\]\((?!https)(.*?)(?:#.*?)?\)", text):
        assert (ROOT / guide).parent.joinpath(link).exists(), link


@pytest.mark.parametrize("guide", GUIDES)
def test_named_modules_exist(guide):
    package = Path(fedjax_prune.__file__).parent.parent
    for name in re.findall(r"\bfedjax_prune((?:\.\w+)+)", (ROOT / guide).read_text()):
        parts = ["fedjax_prune", *name.strip(".").split(".")]
        assert any(
            package.joinpath(*parts[:n]).with_suffix(".py").exists()
            or package.joinpath(*parts[:n], "__init__.py").exists()
            for n in range(len(parts), len(parts) - 2, -1)
        ), name
