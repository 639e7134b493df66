"""Exported models: the run's own logits, under the final masks, in smaller arrays."""

import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fedjax_prune.models.costs import tree_bytes
from fedjax_prune.pruning.enforce import apply_masks
from fedjax_prune.runs import train
from fedjax_prune.runs.checkpoint import CheckpointError
from fedjax_prune.runs.experiment import build
from fedjax_prune.runs.export import export_model, load_model
from fedjax_prune.runs.replay import compare_workdirs
from fedjax_prune.runs.workdir import WorkdirError
from fedjax_prune.types import Variables
from tests.small_runs import final_state, pruned_config


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A run whose masks of the last round are not those of all explorers."""
    workdir = tmp_path_factory.mktemp("run")
    config = pruned_config(rounds=2, **{"model.width": 0.5})
    assert train.run(config, workdir) == 0
    state, _ = final_state(config, workdir)
    return config, workdir, state


def delivered(config, state, masks):
    """Logits of the whole model under some masks."""
    experiment = build(config)
    images = jnp.asarray(experiment.data.test.images[:20])
    params = apply_masks(masks, state.params)
    variables = Variables(params, {}, state.model_state)
    return images, experiment.learning.task.predict(variables, images)


@pytest.mark.parametrize("compact", [True, False])
def test_the_final_masks_and_the_same_logits(finished, compact, tmp_path):
    config, workdir, state = finished
    masks, now = state.server.guide, state.server.masks
    differs = jax.tree.map(lambda a, b: bool((a != b).any()), masks, now)
    assert any(jax.tree.leaves(differs))
    images, wanted = delivered(config, state, masks)
    exported = export_model(workdir, tmp_path, compact=compact)
    np.testing.assert_allclose(exported.predict(images), wanted, rtol=1e-5, atol=1e-5)
    sizes = tree_bytes(exported.variables.params), tree_bytes(state.params)
    assert sizes[0] < 0.6 * sizes[1] if compact else sizes[0] == sizes[1]
    again = load_model(tmp_path)
    assert again.model == exported.model
    np.testing.assert_array_equal(again.predict(images), exported.predict(images))


def test_what_cannot_be_exported_or_read(finished, tmp_path):
    _, workdir, _ = finished
    (tmp_path / "file").write_text("")
    with pytest.raises(WorkdirError, match="must be a new or an empty folder"):
        export_model(workdir, tmp_path)
    with pytest.raises(WorkdirError, match=r"model.json cannot be read"):
        load_model(tmp_path)
    with pytest.raises(WorkdirError, match="no run was started here"):
        export_model(tmp_path, tmp_path / "model")
    assert not (tmp_path / "model").exists()
    (tmp_path / "config.json").write_text((workdir / "config.json").read_text())
    with pytest.raises(CheckpointError, match="has no checkpoint"):
        export_model(tmp_path, tmp_path / "model")
    assert not (tmp_path / "model").exists()


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "cannot be read"),
        ("[]", "must hold `config` and `left`"),
        ("{}", "must hold `config` and `left`"),
        ('{"config": 3, "left": {}}', "must hold `config` and `left`"),
        (
            '{"config": {"seed": 0}, "left": {}}',
            r"model.json is damaged or .*: \w.* is missing",
        ),
        ('{"config": CONFIG, "left": 3}', "must hold `config` and `left`"),
        ('{"config": CONFIG, "left": {"conv1": 0}}', "left must be counts"),
    ],
)
def test_a_damaged_or_foreign_export_is_one_error(finished, text, words, tmp_path):
    _, workdir, _ = finished
    config = (workdir / "config.json").read_text()
    (tmp_path / "model.json").write_text(text.replace("CONFIG", config))
    with pytest.raises(WorkdirError, match=words):
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
    export_model(workdir, tmp_path, compact=False)
    images = jnp.zeros((4, 8, 8, 1), jnp.uint8)
    for platform, words in ((None, True), ("cpu", True), ("tpu", False)):
        predict = jax.jit(load_model(tmp_path, platform=platform).predict)
        lowered = jax.export.export(predict, platforms=[platform or "cpu"])(images)
        assert ("stablehlo.convolution" in lowered.mlir_module()) == words
    with pytest.raises(ValueError, match="platform must be one of"):
        load_model(tmp_path, platform="gpus")
