"""What README shows runs as it stands."""

import re
from pathlib import Path

import numpy as np

README = (Path(__file__).parent.parent / "README.md").read_text()


def test_the_library_example_learns(capsys):
    (code,) = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    variables = {}
    exec(code, variables)
    losses = [float(line.split()[1]) for line in capsys.readouterr().out.splitlines()]
    assert len(losses) == 10
    assert np.mean(losses[-3:]) < losses[0]
    assert float(variables["accuracy"]) > 0.8


def test_named_files_exist():
    root = Path(__file__).parent.parent
    names = re.findall(r"(?:configs|launch|tests|fedjax_prune)/[\w/]+\.\w+", README)
    assert len(names) > 10
    for name in set(names):
        assert (root / name).exists(), name
