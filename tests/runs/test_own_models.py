"""Runs of Flax classes that a configuration names as FILE.py:CLASS."""

import json
import re
from pathlib import Path

import numpy as np
import pytest

from fedjax_prune.models import own
from fedjax_prune.runs import export, train
from fedjax_prune.runs.learning import make_learning
from fedjax_prune.runs.metrics_log import read_metrics
from fedjax_prune.runs.savings import totals
from fedjax_prune.runs.settings import SettingsError, describe, problems
from fedjax_prune.runs.workdir import WorkdirError, read_config
from launch.flags import load_config
from tests.exported import write_run
from tests.own_files import NETS, write_nets
from tests.small_runs import own_config, plain_config, pruned_config


@pytest.mark.parametrize("cls", ["Small", "Same"])
def test_a_run_goes_from_the_class_to_the_model(tmp_path, cls):
    config = own_config(write_nets(tmp_path), cls, **{"model.hidden": 6})
    workdir = tmp_path / "run"
    assert train.run(config, workdir) == 0
    saved = read_config(workdir)["model"]
    assert saved["file_hash"] == own.file_hash(config.model.name)
    assert saved["hidden"] == 6
    config.rounds = 5
    assert train.run(config, workdir) == 0
    row = train.evaluate_workdir(workdir)
    export.export_model(workdir, tmp_path / "model")
    exported = export.load_model(tmp_path / "model", own=config.model.name)
    assert exported.variables.params["conv"]["kernel"].shape == (3, 3, 1, 6)
    experiment = make_learning(config)
    logits = exported.predict(np.zeros((2, 8, 8, 1), np.uint8))
    assert logits.shape == (2, 10) and row["round"] == 5
    # 3x3 products at 64 places, and the dense layer.
    assert experiment.macs.dense == 9 * 6 * 64 + 6 * 10


def test_a_changed_file_is_named(tmp_path):
    path = write_nets(tmp_path)
    config, workdir = own_config(path), tmp_path / "run"
    assert train.run(config, workdir) == 0
    config.rounds = 6
    write_nets(tmp_path, NETS.replace("relu(self", "tanh(self"))
    with pytest.raises(SettingsError, match=r"model.file_hash is .* but the run in"):
        train.run(config, workdir)
    message = r"model.file_hash must be that of the file of .*nets.py:Small and the mod"
    for use in (
        lambda: train.evaluate_workdir(workdir),
        lambda: export.export_model(workdir, tmp_path / "model"),
    ):
        with pytest.raises(WorkdirError, match=message):
            use()
    write_nets(tmp_path)
    assert train.run(config, workdir) == 0


def test_a_changed_module_beside_the_file_is_named(tmp_path, monkeypatch):
    """`python -m` puts the current folder on the path."""
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "beside_nets.py").write_text("WIDTH = 1\n")
    path = write_nets(tmp_path, NETS + "\nfrom beside_nets import WIDTH\n")
    config, workdir = own_config(path), tmp_path / "run"
    assert train.run(config, workdir) == 0
    config.rounds = 6
    (tmp_path / "beside_nets.py").write_text("WIDTH = 2\n")
    with pytest.raises(SettingsError, match=r"model.file_hash is .* but the run in"):
        train.run(config, workdir)
    with pytest.raises(WorkdirError, match="beside it, of which one has changed"):
        train.evaluate_workdir(workdir)


RUNS = """
from pathlib import Path

Path(__file__).with_name("was-run").touch()
"""


def test_the_file_of_an_exported_class_runs_only_if_it_is_named(tmp_path, monkeypatch):
    path = write_nets(tmp_path, NETS + RUNS)
    write_run(tmp_path / "run", own_config(path))
    export.export_model(tmp_path / "run", tmp_path / "model")
    # The folder names a file that is in the current one.
    monkeypatch.chdir(tmp_path)
    facts = tmp_path / "model" / "model.json"
    assert str(tmp_path) not in facts.read_text()
    (tmp_path / "was-run").unlink()
    # A file is run once in a process.
    own._run.cache_clear()
    write_nets(tmp_path, NETS + RUNS + "CHANGED = True\n")
    refused = [
        (
            None,
            ValueError,
            r"own must be FILE.py:Small.*own='nets.py:Small'\); got None",
        ),
        ("Small", ValueError, r"own must be FILE.py:Small.*; got 'Small'"),
        (f"{path}:Same", ValueError, r"own must be FILE.py:Small.*; got .*Same'"),
        ("not-there.py:Small", ValueError, r"not-there.py cannot be read"),
        (f"{path}:Small", WorkdirError, r"model.json is of another file than that of"),
    ]
    for name, kind, words in refused:
        with pytest.raises(kind, match=words):
            export.load_model(tmp_path / "model", own=name)
    write_nets(tmp_path, NETS + RUNS)
    arrays = tmp_path / "model" / "model.safetensors"
    whole = arrays.read_bytes()
    arrays.write_bytes(whole[:100])
    with pytest.raises(WorkdirError, match=r"model.safetensors cannot be read"):
        export.load_model(tmp_path / "model", own="nets.py:Small")
    arrays.write_bytes(whole)
    # The fields of a configuration are also known by their dotted names.
    described = json.loads(facts.read_text())
    for first in ({}, {"name": "vgg11", "file_hash": ""}):
        config = described["config"]
        model = config["model"] | first
        twice = config | {"model": model, "model.name": "nets.py:Small"}
        facts.write_text(json.dumps(described | {"config": twice}))
        with pytest.raises(WorkdirError, match=r"must have no dots, got 'model.name'"):
            export.load_model(tmp_path / "model")
    facts.write_text(json.dumps(described))
    assert not (tmp_path / "was-run").exists()
    export.load_model(tmp_path / "model", own="nets.py:Small")
    assert (tmp_path / "was-run").exists()
    facts.write_text(facts.read_text().replace("nets.py:Small", "vgg11"))
    with pytest.raises(ValueError, match=r"own must be None for 'vgg11', got 'nets.py"):
        export.load_model(tmp_path / "model", own="nets.py:Small")


def test_an_export_names_no_folder_of_the_user(tmp_path):
    changes = {"data.dir": str(tmp_path / "data"), "rows_dir": str(tmp_path / "rows")}
    config = own_config(write_nets(tmp_path), client_rows="disk", **changes)
    write_run(tmp_path / "run", config)
    export.export_model(tmp_path / "run", tmp_path / "model")
    for file in (tmp_path / "model").iterdir():
        assert str(tmp_path).encode() not in file.read_bytes(), file
    loaded = export.load_model(tmp_path / "model", own=config.model.name)
    assert loaded.facts["config"]["data"]["dir"] == ""


@pytest.mark.parametrize("cls", ["Small", "Same"])
def test_weights_are_pruned_and_channels_say_what_they_need(tmp_path, cls):
    fields = {"explore_epochs": 1, "structured_rule": "off", "threshold": 0.5}
    config = own_config(
        write_nets(tmp_path), cls, pruned_config(fields=fields, rounds=2)
    )
    assert train.run(config, tmp_path / "run") == 0
    exported = export.export_model(tmp_path / "run", tmp_path / "model")
    kernel = np.asarray(exported.variables.params["conv"]["kernel"])
    assert 0.2 < (kernel == 0).mean() < 1
    config.algorithm.structured_rule = "keep_ratio"
    with pytest.raises(
        SettingsError, match=r"structured_rule must be off .* channel_gr"
    ):
        train.run(config, tmp_path / "other")
    config.compact_training = True
    with pytest.raises(
        SettingsError, match=rf"compact_training must be false for .*nets.py:{cls}"
    ):
        train.run(config, tmp_path / "other")


def test_rounds_are_not_compacted_without_layers_to_count(tmp_path):
    method = (
        "    def channel_groups(self, image_shape):\n        return ()\n\n\nclass Same"
    )
    file = write_nets(tmp_path, NETS.replace("\nclass Same", method))
    config = own_config(file, "Small", pruned_config(compact_training=True))
    with pytest.raises(SettingsError, match="Small, because it has no method layers"):
        train.run(config, tmp_path / "run")


def test_a_command_line_brings_the_fields_of_the_class(tmp_path):
    name = f"{write_nets(tmp_path)}:Small"
    config = load_config(
        "quickstart", ["--config.model.hidden=5", f"--config.model.name={name}"]
    )
    assert dict(config.model) == {
        "name": name,
        "file_hash": "",
        "gated": False,
        "hidden": 5,
        "act": "relu",
    }
    shown = {field.name: field for field in describe(config)}
    assert shown["model.hidden"].default == 5
    assert shown["model.act"].words == "Attribute of Small."
    arguments = [f"--config.model.name={name}", "--config.model.width=2"]
    with pytest.raises(
        SettingsError, match=r"model.width .*nets.py:Small are act, hid"
    ):
        load_config("quickstart", [*arguments, "--config.model.hidden=x"])


def test_fields_of_the_library_are_refused_with_those_of_the_class(tmp_path):
    config = plain_config()
    config.model.name = f"{write_nets(tmp_path)}:Small"
    found = problems(config)
    assert any(
        re.search(r"model.norm is not a field: .*nets.py:Small are hidden, act", line)
        for line in found
    )


HEAD = "import flax.linen as nn\n"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (HEAD, r"nets.py must have the Flax class Net, got none"),
        (HEAD + "class Other(nn.Module): pass", r"the Flax class Net, got Other"),
        (HEAD + "class Net: pass", r"the Flax class Net, got none"),
        (HEAD + "x = 1 / 0", r"nets.py: line 2: ZeroDivisionError: division by zero"),
        ("class Net(:", r"nets.py: SyntaxError"),
        (
            HEAD + "class Net(nn.Module):\n  depth: int",
            r"depth of Net must have a default, or be one of num_classes, image_shape",
        ),
        (
            HEAD + "class Net(nn.Module):\n  gated: bool = False",
            r"must have other names than the fields of the section model, got gated",
        ),
    ],
)
def test_a_file_that_cannot_be_used_says_why(tmp_path, text, message):
    config, path = plain_config(), write_nets(tmp_path, text)
    config.model.name = f"{path}:Net"
    [found] = problems(config)
    assert re.search(message, found)


CALL = "\n    @nn.compact\n    def __call__(self, x):\n        "


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("return nn.Dense(7)(x.mean((1, 2)))", r"must return 10 logits, .* got 7"),
        ("return nn.Dense(10)(x.lost)", r"nets.py:Net: line 5: AttributeError"),
        ("raise ValueError('no')", r"nets.py:Net: line 5: ValueError: no"),
        ("return nn.Dense(10)(x)", r"Net must return float logits"),
        (
            "g = self.variable('gates', 'g', nn.initializers.ones, None, (10,))\n"
            "        return nn.Dense(10)(x.mean((1, 2))) * g.value[None]",
            r"must have no collection gates while its attribute gates",
        ),
    ],
)
def test_a_class_that_cannot_be_trained_says_why(tmp_path, body, message):
    text = HEAD + "class Net(nn.Module):" + CALL + body
    with pytest.raises(SettingsError, match=message):
        make_learning(own_config(write_nets(tmp_path, text), "Net"))


NORMED = """
import flax.linen as nn

class Net(nn.Module):
    num_classes: int

    @nn.compact
    def __call__(self, x, train, example_mask):
        x = x.mean((1, 2))
        x = nn.BatchNorm(not train)(x, mask=example_mask[:, None])
        return nn.Dense(self.num_classes)(x)
"""


def test_noise_and_batch_statistics_do_not_go_together(tmp_path):
    config = own_config(write_nets(tmp_path, NORMED), "Net")
    assert make_learning(config).task.groups is None
    config.update({"on_bad_client": "drop"})
    config.privacy.update({"clip_norm": 1.0, "noise_multiplier": 1.0})
    with pytest.raises(SettingsError, match=r"no collection batch_stats with privacy"):
        make_learning(config)


SCALE = """
import flax.linen as nn

class Net(nn.Module):
    num_classes: int

    @nn.compact
    def __call__(self, x):
        scale = self.param("kernel", nn.initializers.normal(), (1, self.num_classes))
        return x.mean((1, 2)) * scale
"""


def test_a_network_without_products_has_no_flops_to_save(tmp_path):
    fields = {"structured_rule": "off", "threshold": 0.5, "warmup_rounds": 0}
    config = own_config(
        write_nets(tmp_path, SCALE), "Net", pruned_config("magnitude", fields)
    )
    assert make_learning(config).macs.dense == 0
    assert train.run(config, tmp_path / "run") == 0
    found = totals(read_metrics(tmp_path / "run"))
    assert np.isnan(found.theoretical) and found.sparsity == 0.5


def test_a_network_whose_arrays_have_other_names_is_not_pruned_in_silence(tmp_path):
    text = SCALE.replace('"kernel"', '"scale"')
    config = own_config(write_nets(tmp_path, text), "Net", pruned_config(rounds=2))
    with pytest.raises(SettingsError, match=r"with the name kernel, .* got scale"):
        make_learning(config)


def test_the_class_of_the_guide_trains(tmp_path):
    guide = (Path(__file__).parents[2] / "launch" / "README.md").read_text()
    [text] = re.findall(r"```python\n(.*?)```", guide, re.DOTALL)
    config = own_config(write_nets(tmp_path, text), **{"model.hidden": 3})
    assert train.run(config, tmp_path / "run") == 0


def test_a_class_without_dtype_has_no_bfloat16(tmp_path):
    config = own_config(write_nets(tmp_path), precision="bfloat16")
    with pytest.raises(SettingsError, match=r"precision must be float32 or tf32 for"):
        make_learning(config)


GATED = """
from fedjax_prune.models.plain import HALVE, PlainNetwork, Plan, Stage

class Wide(PlainNetwork):
    width: float = 1.0
    plan = Plan(stages=(Stage(8, HALVE),), hidden=(8,), drops=(0.0, 0.0), least=2)
"""


def test_a_class_with_gates_has_their_fields(tmp_path):
    """A network of the library's blocks is pruned dynamically and by channels."""
    config = own_config(write_nets(tmp_path, GATED), "Wide")
    config.update_from_flattened_dict({"model.gated": True, "model.flops_target": 0.6})
    config.model.width = 0.5
    learning = make_learning(config)
    assert learning.model.gates.keep_ratio < 1
    assert [group.name for group in learning.task.groups] == ["conv1", "fc1"]
    assert train.run(config, tmp_path / "run") == 0
    assert "eval/client_gated/mean" in train.evaluate_workdir(tmp_path / "run")
    export.export_model(tmp_path / "run", tmp_path / "model")
