"""What README shows runs as it stands."""

import re
from pathlib import Path

import numpy as np
import pytest

README = (Path(__file__).parent.parent / "README.md").read_text()


def test_the_library_example_learns(capsys):
    (code,) = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    variables = {}
    exec(code, variables)
    losses = [float(line.split()[1]) for line in capsys.readouterr().out.splitlines()]
    assert len(losses) == 10
    assert np.mean(losses[-3:]) < losses[0]
    assert float(variables["accuracy"]) > 0.8


def test_the_library_loop_prepares_and_prunes(capsys):
    """The same loop with FedSNIP, which is FedAvg if nobody prepares it."""
    (code,) = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    assert "fp.scaffold(task" in code
    code = code.replace("fp.scaffold(task", "fp.fedsnip(task")
    variables = {}
    exec(code, variables)
    assert len(capsys.readouterr().out.splitlines()) == 10
    delivered = variables["algorithm"].deliver(variables["state"]).params
    kernels = [np.asarray(layer["kernel"]) for layer in delivered.values()]
    zeros = sum((k == 0).sum() for k in kernels) / sum(k.size for k in kernels)
    assert 0.29 < zeros < 0.32
    without = re.sub(r"state = fp\.prepare.*\n", "", code)
    with pytest.raises(ValueError, match=r"call fedjax_prune\.prepare"):
        exec(without, {})


def test_named_files_exist():
    root = Path(__file__).parent.parent
    names = re.findall(r"(?:configs|launch|tests|fedjax_prune)/[\w/]+\.\w+", README)
    assert len(names) > 10
    for name in set(names):
        assert (root / name).exists(), name
