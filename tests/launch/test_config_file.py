"""Configurations are found by name or path and never confused with others."""

from pathlib import Path

import pytest

from fedjax_prune.runs.settings import SettingsError
from launch import config_file
from launch.flags import load_config

OWN = """
from . import quickstart

def get_config(text="7"):
    config = quickstart.get_config()
    config.rounds = int(text)
    return config
"""


def written(folder, name="own.py", code=OWN):
    folder.mkdir(exist_ok=True)
    (folder / name).write_text(code)
    return str(folder / name)


@pytest.mark.parametrize("name", config_file.bundled())
def test_bundled_configurations_have_names(name, tmp_path, monkeypatch):
    file = config_file.BUNDLED / f"{name}.py"
    monkeypatch.chdir(tmp_path)
    assert config_file.load(name) == config_file.load(str(file))


def test_a_name_takes_a_string():
    config = load_config("feddp_cpu:mnist,fedavg,30", [])
    assert (config.algorithm.name, config.data.num_clients) == ("fedavg", 30)


@pytest.mark.parametrize(
    "folder", ["plain", "a:b", "a:b.py:c", "dots.in.it", "runs[1]"]
)
@pytest.mark.parametrize("name", ["own.py", "my-own.v2.py", "own:1.py"])
def test_a_file_of_the_user_builds_on_the_bundled_ones(tmp_path, folder, name):
    path = written(tmp_path / folder, name)
    assert load_config(path, []).rounds == 7
    assert load_config(f"{path}:9", ["--config.seed=3"]).rounds == 9


def test_a_file_beside_it_comes_before_the_bundled_one(tmp_path):
    nearer = OWN.replace("quickstart", "base").replace("int(text)", "5")
    written(tmp_path, "quickstart.py", nearer)
    path = written(tmp_path, code="from .quickstart import get_config")
    assert load_config(path, []).rounds == 5
    elsewhere = written(tmp_path / "elsewhere")
    assert load_config(elsewhere, []).rounds == 7


@pytest.mark.parametrize(
    ("path", "told"),
    [
        (None, "--config must be a Python file that exists, or one of autoflip, "),
        ("configs/none.py", "got 'configs/none.py'"),
        ("quickstat", "quickstart, synthetic, got 'quickstat'; did you mean quickst"),
        ("hostile:mean,no", "ATTACK must be one of sign_flip, "),
        ("launch/test.sh", "got 'launch/test.sh'"),
        ("configs/feddp.py:x", "METHOD,MODEL,CLIENTS, got 'x'"),
        ("configs/quickstart.py:x", "quickstart.py:x: quickstart.py takes no string"),
    ],
)
def test_a_config_that_cannot_be_used(path, told):
    with pytest.raises(SettingsError) as error:
        load_config(path, [])
    assert told in str(error.value)


@pytest.mark.parametrize(
    ("code", "told"),
    [
        ("def get_config(text): return text", "own.py needs :STRING after it"),
        ("rounds = 3", "has no attribute 'get_config'"),
        ("\nimport configs_of_nobody", "line 2: ModuleNotFoundError: No module named"),
        ("def get_config(): pass", "get_config must return a ConfigDict, got None"),
        ("def get_config(:", "SyntaxError: invalid syntax (own.py, line 1)"),
        (
            "from . import base\n"
            "def get_config():\n"
            "  config = base.get_config()\n"
            "  config.round.x = 3\n",
            "line 4: AttributeError: ",
        ),
    ],
)
def test_mistakes_in_a_file_are_reported_in_one_line(tmp_path, code, told):
    path = written(tmp_path, code=code)
    with pytest.raises(SettingsError) as error:
        load_config(path, [])
    assert str(error.value).startswith(f"--config={path}: ")
    assert told in error.value.problems[0].replace("\n", " ")
    assert len(error.value.problems) == 1


def test_an_algorithm_is_named_where_the_config_has_none(tmp_path):
    code = OWN.replace("    return", "    del config.algorithm\n    return")
    path = written(tmp_path, code=code)
    config = load_config(path, ["--config.algorithm.name=fedprox"])
    assert config.algorithm.to_dict() == {"name": "fedprox", "mu": 0.01}


def test_a_package_of_the_user_is_not_taken_for_ours(tmp_path, monkeypatch):
    written(tmp_path / "configs", "__init__.py", "raise RuntimeError")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    path = written(tmp_path)
    assert load_config(str(Path(path).relative_to(tmp_path)), []).rounds == 7


def test_a_misspelt_config_is_told_beside_the_missing_one():
    with pytest.raises(SettingsError) as error:
        load_config(None, ["--confg=quickstart"])
    first, second = error.value.problems
    assert first == "--confg is not an argument; did you mean --config?"
    assert second.startswith("--config must be a Python file that exists")
