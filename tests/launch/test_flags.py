"""Switches among the fields, and fields of one's own model, on the command line."""

import pytest

from fedjax_prune.runs.settings import SettingsError
from launch.flags import load_config, overridden, parse

OWN = """
import flax.linen as nn

class Net(nn.Module):
    skip: bool = False

    @nn.compact
    def __call__(self, images):
        return nn.Dense(10)(images.reshape(images.shape[0], -1))
"""


def test_a_field_of_your_own_model_may_be_a_switch(tmp_path):
    (tmp_path / "net.py").write_text(OWN)
    name = f"--config.model.name={tmp_path}/net.py:Net"
    arguments = parse(["prog", "--config.model.skip", name, "--config.rounds", "3"])
    config = load_config("configs/base.py", arguments[1:])
    assert (config.model.skip, config.rounds) == (True, 3)
    arguments = parse(["prog", name, "--noconfig.model.skip"])
    assert load_config("configs/base.py", arguments[1:]).model.skip is False


def test_values_may_look_like_the_beginning_of_an_override():
    arguments = ["--config.data.dir=/home/my-config.d/tfds", "--config.seed=3"]
    config = load_config("configs/base.py", arguments)
    assert config.data.dir == "/home/my-config.d/tfds"
    assert overridden(arguments) == {"data.dir", "seed"}


def test_a_field_that_is_no_switch_needs_a_value():
    arguments = parse(
        [
            "prog",
            "--config.data.dir",
            "--config.hostile.scale",
            "-2.5",
            "--noconfig.model.gated=true",
            "--config.model.gate_first",
            "yes",
            "--config.rounds",
        ]
    )
    with pytest.raises(SettingsError) as error:
        load_config("configs/base.py", arguments[1:])
    assert error.value.problems == [
        "data.dir needs a value: --config.data.dir=VALUE",
        "--noconfig.model.gated has no value, got 'true'",
        "model.gate_first must be true or false, got 'yes'",
        "rounds needs a value: --config.rounds=VALUE",
    ]


def test_a_model_of_the_config_file_that_is_not_there_is_one_mistake(tmp_path):
    (tmp_path / "mine.py").write_text(
        "from . import base\n\ndef get_config():\n    config = base.get_config()\n"
        "    config.model.name = 'nowhere.py:Net'\n    return config\n"
    )
    with pytest.raises(SettingsError) as error:
        load_config(str(tmp_path / "mine.py"), ["--config.rounds=3"])
    assert error.value.problems == [
        "model.name: nowhere.py cannot be read: No such file or directory."
    ]
