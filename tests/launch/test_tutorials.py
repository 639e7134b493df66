"""The tutorials: they run as scripts and open as notebooks."""

import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FEDDP, OWN = (
    ROOT / "launch" / "tutorials" / f"{name}.py" for name in ("feddp", "own_algorithm")
)

pytestmark = pytest.mark.long


def run(script, folder):
    """What a tutorial prints; its files are below the folder."""
    done = subprocess.run(
        [sys.executable, script],
        cwd=folder,
        env=os.environ | {"PYTHONPATH": str(ROOT), "TMPDIR": str(folder)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_feddp_trains_draws_and_exports(tmp_path):
    out = run(FEDDP, tmp_path)
    (folder,) = tmp_path.iterdir()
    assert f"All files of this tutorial are in {folder}\n" in out
    rows = re.findall(r"^\d((?: +\d+){10})$", out, re.MULTILINE)
    counts = [[int(number) for number in row.split()] for row in rows]
    # Scikit-learn has 1,797 digits, of which every fifth is a test image.
    assert len(counts) == 10 and 1400 < sum(map(sum, counts)) < 1500
    dense, kept = re.findall(r"([\d,]+) without gates, ([\d,]+) with", out)[0]
    share = int(kept.replace(",", "")) / int(dense.replace(",", ""))
    assert 0.45 < share < 0.55
    flops = dict(re.findall(r"^(dense|feddp): .* ([\d.]+) GFLOP", out, re.MULTILINE))
    assert float(flops["feddp"]) == pytest.approx(share * float(flops["dense"]), 0.03)
    learned = dict(re.findall(r"^(dense|feddp): ([\d.]+)% of the", out, re.MULTILINE))
    assert all(float(accuracy) > 75 for accuracy in learned.values())
    selected = re.findall(
        r"^conv\d: (\d+) channels, (\d+) kept .*, (\d+) by none, (\d+) by some$",
        out,
        re.MULTILINE,
    )
    assert len(selected) == 2
    for channels, *parts in selected:
        assert int(channels) == sum(map(int, parts))
    [same] = re.findall(r"^Client 0 .* ([\d.]+)% of .* exported: ([\d.]+)%", out, re.M)
    trained, exported = map(float, same)
    # Of the 355 images, one may lie where the two programs round differently.
    assert trained == pytest.approx(exported, abs=100 / 355 + 0.01) and trained > 70
    for name in ("index.html", "accuracy.png", "by_class.png"):
        assert (folder / "report" / name).stat().st_size > 1000


def test_an_algorithm_and_a_score_of_ones_own_train_and_prune(tmp_path):
    out = run(OWN, tmp_path)
    names = ("FedAvg", "FedExP", "movement", "magnitude")
    for name in names:
        found = re.findall(rf"^{name}, round (\d+): ([\d.]+)%", out, re.MULTILINE)
        assert [int(number) for number, _ in found] == [10, 20, 30]
        assert float(found[-1][1]) > 25
    for name in names[2:]:
        left = re.findall(rf"^{name}, .* ([\d.]+)% of the weights left$", out, re.M)
        assert left == ["100.0", "30.0", "30.0"]
    jax, numpy = re.findall(r"^eta ([\d.]+), in NumPy ([\d.]+)$", out, re.MULTILINE)[0]
    assert float(jax) == pytest.approx(float(numpy), abs=2e-4) and float(jax) > 1
    assert out.endswith(
        "{'name': 'fedexp', 'epsilon': 0.001}\n"
        "['algorithm.epsilon must be at least 0, got -1.0']\n"
    )


@pytest.mark.skipif(
    importlib.util.find_spec("jupytext") is None,
    reason="jupytext is not installed: pip install 'fedjax_prune[docs]'",
)
@pytest.mark.parametrize("script", [FEDDP, OWN], ids=["feddp", "own_algorithm"])
def test_a_tutorial_opens_as_a_notebook(script, tmp_path):
    import nbformat

    notebook = tmp_path / "tutorial.ipynb"
    subprocess.run(
        [
            *(sys.executable, "-m", "jupytext", "--to", "notebook"),
            *("--output", notebook, script),
        ],
        check=True,
        capture_output=True,
    )
    read = nbformat.read(notebook, as_version=4)
    nbformat.validate(read)
    kinds = [cell.cell_type for cell in read.cells]
    assert kinds.count("code") == script.read_text().count("\n# %%\n") >= 6
    marked = script.read_text().count("# %% [markdown]\n")
    assert kinds.count("markdown") == marked >= 6
    assert read.cells[0].source.startswith("# ")
    for cell in read.cells:
        assert cell.source.strip()
        if cell.cell_type == "code":
            compile(cell.source, str(script), "exec")
