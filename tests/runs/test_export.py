"""Exported models: the run's own logits, under the final masks, in smaller arrays."""

import json
import shutil
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fedjax_prune.models.costs import num_entries, tree_bytes
from fedjax_prune.pruning.enforce import apply_masks
from fedjax_prune.runs import train
from fedjax_prune.runs.checkpoint import CheckpointError
from fedjax_prune.runs.export import export_model, load_model
from fedjax_prune.runs.metrics_log import read_metrics
from fedjax_prune.runs.replay import compare_workdirs
from fedjax_prune.runs.settings import SettingsError
from fedjax_prune.runs.workdir import WorkdirError
from fedjax_prune.types import Variables
from tests.small_runs import build, final_state, pruned_config


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A run whose masks of the last round are not those of all explorers."""
    workdir = tmp_path_factory.mktemp("run")
    config = pruned_config(rounds=2, **{"model.width": 0.5})
    assert train.run(config, workdir) == 0
    state, _ = final_state(config, workdir)
    return config, workdir, state


@pytest.fixture(scope="module")
def exported(finished, tmp_path_factory):
    _, workdir, _ = finished
    folder = tmp_path_factory.mktemp("model")
    export_model(workdir, folder)
    return folder


def delivered(config, state, masks):
    """Logits of the whole model under some masks."""
    experiment = build(config)
    images = jnp.asarray(experiment.data.test.images[:20])
    params = apply_masks(masks, state.params)
    variables = Variables(params, {}, state.model_state)
    return images, experiment.learning.task.predict(variables, images)


@pytest.mark.parametrize("kind", ["compact", "masked"])
def test_the_final_masks_and_the_same_logits(finished, kind, tmp_path):
    config, workdir, state = finished
    masks, now = state.server.guide, state.server.masks
    differs = jax.tree.map(lambda a, b: bool((a != b).any()), masks, now)
    assert any(jax.tree.leaves(differs))
    images, wanted = delivered(config, state, masks)
    chosen = export_model(workdir, tmp_path, kind=kind)
    exported = load_model(tmp_path)
    np.testing.assert_allclose(exported.predict(images), wanted, rtol=1e-5, atol=1e-5)
    sizes = tree_bytes(exported.variables.params), tree_bytes(state.params)
    assert sizes[0] < 0.6 * sizes[1] if kind == "compact" else sizes[0] == sizes[1]
    assert exported.model == chosen.model and chosen.kind == kind
    jax.tree.map(np.testing.assert_array_equal, exported.variables, chosen.variables)


def test_a_card_says_what_was_written_and_what_it_costs(finished, tmp_path):
    config, workdir, state = finished
    export_model(workdir, tmp_path)
    facts = json.loads((tmp_path / "model.json").read_text())
    kept = sum(int(mask.sum()) for mask in jax.tree.leaves(state.server.guide))
    full = num_entries(state.params)
    assert facts["size"]["sparsity"] == pytest.approx(1 - kept / full)
    assert facts["size"]["parameters_of_full_network"] == full
    assert facts["size"]["parameters"] < full
    assert facts["macs"]["computed"] < facts["macs"]["of_full_network"]
    row = read_metrics(workdir)[-1]
    assert facts["accuracy"]["round"] == row["round"] == 2
    assert facts["accuracy"]["eval/headline"] == row["eval/headline"]
    assert facts["output"]["labels"] == list("0123456789")
    assert facts["config"]["model"]["width"] == config.model.width
    assert facts["training"]["starts"][0]["versions"]["jax"] == jax.__version__
    card = (tmp_path / "README.md").read_text()
    size = (tmp_path / "model.safetensors").stat().st_size
    assert f"model.safetensors: {size:,} bytes" in card
    assert f"eval/examples: {config.eval.num_examples:,}" in card
    assert facts["what"] in card and "autoflip" in card
    assert str(workdir) not in card
    assert str(Path.cwd()).encode() not in (tmp_path / "model.stablehlo").read_bytes()


def test_what_cannot_be_exported_or_read(finished, tmp_path):
    _, workdir, _ = finished
    (tmp_path / "file").write_text("")
    with pytest.raises(WorkdirError, match="must be a new or an empty folder"):
        export_model(workdir, tmp_path)
    with pytest.raises(WorkdirError, match=r"model.json cannot be read"):
        load_model(tmp_path)
    with pytest.raises(WorkdirError, match="no run was started here"):
        export_model(tmp_path, tmp_path / "model")
    (tmp_path / "config.json").write_text((workdir / "config.json").read_text())
    with pytest.raises(CheckpointError, match="has no checkpoint"):
        export_model(tmp_path, tmp_path / "model")
    wrong: list[dict[str, Any]] = [
        {"format": "tf"},
        {"input_dtype": "int8"},
        {"batch_size": -1},
        {"batch_size": 2**31},
    ]
    for change in wrong:
        with pytest.raises(SettingsError, match=f"{next(iter(change))} must be "):
            export_model(workdir, tmp_path / "model", **change)
    with pytest.raises(WorkdirError, match="must not be in the checkpoints of the run"):
        export_model(workdir, workdir / "checkpoints" / "7")
    assert not (workdir / "checkpoints" / "7").exists()
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    with pytest.raises(WorkdirError, match="got a link to itself"):
        export_model(workdir, tmp_path / "loop")
    (tmp_path / "loop").unlink()
    assert {f.name for f in tmp_path.iterdir()} == {"file", "config.json"}


def test_arrays_of_another_network_are_refused(finished, tmp_path):
    _, workdir, _ = finished
    export_model(workdir, tmp_path / "small")
    export_model(workdir, tmp_path / "large", kind="masked")
    arrays = tmp_path / "small" / "model.safetensors"
    whole = arrays.read_bytes()
    for data, words in (
        ((tmp_path / "large" / "model.safetensors").read_bytes(), "another network"),
        (whole[: len(whole) // 2], "cannot be read"),
        (b"", "cannot be read"),
    ):
        arrays.write_bytes(data)
        with pytest.raises(WorkdirError, match=f"model.safetensors .*{words}"):
            load_model(tmp_path / "small")
    arrays.unlink()
    with pytest.raises(WorkdirError, match=r"model\.safetensors is missing"):
        load_model(tmp_path / "small")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda facts: [], "is not what an export writes"),
        (lambda facts: {}, "is not what an export writes: KeyError 'config'"),
        (lambda facts: facts | {"config": 3}, "is not what an export writes"),
        (
            lambda facts: facts | {"config": {"seed": 0}},
            r"model.json is damaged or .*: \w.* is missing",
        ),
        (lambda facts: facts | {"format": "tf"}, "format must be one of safetensors"),
        (lambda facts: facts | {"kind": []}, "kind must be one of dense"),
        (lambda facts: facts | {"architecture": {"left": 3}}, "is not what an export"),
        (
            lambda facts: facts | {"architecture": {"left": {"conv1": 0}}},
            "left must be counts",
        ),
        (
            lambda facts: facts | {"input": {"shape": [1], "dtype": "uint8"}},
            "shape four numbers",
        ),
    ],
)
def test_a_damaged_or_foreign_export_is_one_error(exported, change, words, tmp_path):
    shutil.copytree(exported, tmp_path, dirs_exist_ok=True)
    file = tmp_path / "model.json"
    file.write_text(json.dumps(change(json.loads(file.read_text()))))
    with pytest.raises(WorkdirError, match=words):
        load_model(tmp_path)
    file.write_text("")
    with pytest.raises(WorkdirError, match="cannot be read"):
        load_model(tmp_path)


@pytest.mark.parametrize(
    "read", [train.evaluate_workdir, lambda workdir: export_model(workdir, "model")]
)
@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("{", r"cannot be read: "),
        ("[]", r"must hold the fields of a configuration, got \[\]"),
        ("3", r"must hold the fields of a configuration, got 3"),
        ("null", r"must hold the fields of a configuration, got None"),
        ("{}", r"is damaged or of another version: .* is missing; .*; \.\.\.\.$"),
        (
            ("width", "breadth"),
            r".* version: model\.breadth is not a field; did you mean model\.\w+\?\.$",
        ),
        (
            ("rounds", "round_count"),
            r".* version: round_count is not a field[^;]*(; did you mean \w+\?)?\.$",
        ),
        (("0.5", "-0.5"), r".* version: .* must be .*, got -0\.5"),
    ],
)
def test_a_damaged_or_older_configuration_is_one_error(
    finished, read, text, words, tmp_path, monkeypatch
):
    _, workdir, _ = finished
    if isinstance(text, tuple):
        text = (workdir / "config.json").read_text().replace(*text)
    (tmp_path / "config.json").write_text(text)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(WorkdirError, match=f"{tmp_path}/config.json {words}"):
        read(tmp_path)
    assert [f.name for f in tmp_path.iterdir()] == ["config.json"]


def test_a_run_of_a_version_with_fewer_fields_is_evaluated_and_exported(
    finished, tmp_path
):
    _, workdir, _ = finished
    shutil.copytree(workdir, tmp_path / "old")
    file = tmp_path / "old" / "config.json"
    values = json.loads(file.read_text())
    # The run has the defaults of these fields.
    del values["on_bad_client"], values["data"]["alpha"]
    file.write_text(json.dumps(values))
    assert train.evaluate_workdir(tmp_path / "old") == train.evaluate_workdir(workdir)
    export_model(tmp_path / "old", tmp_path / "model")
    described = json.loads((tmp_path / "model" / "model.json").read_text())
    del described["config"]["on_bad_client"]
    (tmp_path / "model" / "model.json").write_text(json.dumps(described))
    assert load_model(tmp_path / "model").model.width == 0.5
    assert compare_workdirs(tmp_path / "old", workdir).equal


def test_a_model_is_lowered_for_another_platform(finished, tmp_path):
    """The second convolution reads 8 channels, so a CPU convolves it by `lax`."""
    _, workdir, _ = finished
    export_model(workdir, tmp_path, kind="masked")
    images = jnp.zeros((4, 8, 8, 1), jnp.uint8)
    for platform, words in ((None, True), ("cpu", True), ("tpu", False)):
        predict = jax.jit(load_model(tmp_path, platform=platform).predict)
        lowered = jax.export.export(predict, platforms=[platform or "cpu"])(images)
        assert ("stablehlo.convolution" in lowered.mlir_module()) == words
    with pytest.raises(ValueError, match="platform must be one of"):
        load_model(tmp_path, platform="gpus")
