"""A run that goes on among lost or changed files says so, or is refused."""

import json
import shutil

import pytest
import sklearn.datasets

from fedjax_prune.runs import train
from fedjax_prune.runs.checkpoint import CheckpointError, latest
from fedjax_prune.runs.export import export_model
from fedjax_prune.runs.metrics_log import read_metrics
from fedjax_prune.runs.workdir import read_config
from tests.small_runs import plain_config


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("finished")
    assert train.run(plain_config(rounds=2), workdir) == 0
    return workdir


@pytest.fixture
def workdir(finished, tmp_path):
    """A run of two rounds, to be changed."""
    return shutil.copytree(finished, tmp_path / "run")


def rewritten(file, change):
    values = json.loads(file.read_text())
    change(values)
    file.write_text(json.dumps(values))


def reverse_the_data(monkeypatch):
    images, labels = sklearn.datasets.load_digits(return_X_y=True)
    monkeypatch.setattr(
        sklearn.datasets, "load_digits", lambda **_: (images[::-1], labels[::-1])
    )


def test_the_checkpoint_knows_its_config_where_the_file_is_gone(workdir):
    (workdir / "config.json").unlink()
    before = (workdir / "metrics.jsonl").read_bytes()
    said = (
        rf"{workdir}/checkpoints/2 is of another run: client.lr is 0.2, but it was "
        r"saved with 0.1; seed is 5, but it was saved with 0. Use the old values"
    )
    changed = plain_config(rounds=3, seed=5, **{"client.lr": 0.2})
    with pytest.raises(CheckpointError, match=said):
        train.run(changed, workdir)
    assert not (workdir / "config.json").exists()
    assert (workdir / "metrics.jsonl").read_bytes() == before
    # With the old ones it goes on.
    assert train.run(plain_config(rounds=3), workdir) == 0
    assert latest(workdir / "checkpoints") == 3
    assert read_config(workdir)["rounds"] == 3


def test_fields_that_may_change_may_also_do_so_where_the_file_is_gone(workdir):
    (workdir / "config.json").unlink()
    changes = {"eval.every": 1, "eval.num_examples": 50, "keep": 5, "save_every": 1}
    assert train.run(plain_config(rounds=3, **changes), workdir) == 0
    assert [row["round"] for row in read_metrics(workdir)] == [1, 2, 3]


def test_changed_data_are_refused(workdir, monkeypatch):
    reverse_the_data(monkeypatch)
    said = (
        r"checkpoints/2 is of another run: the training examples are not those of its "
        r"rounds; the test examples are not those of its rounds; the examples that the "
        r"clients hold are not those of its rounds\. Use the old values and data"
    )
    with pytest.raises(CheckpointError, match=said):
        train.run(plain_config(rounds=3), workdir)
    with pytest.raises(CheckpointError, match=said):
        train.evaluate_workdir(workdir)
    assert latest(workdir / "checkpoints") == 2
    assert len(read_metrics(workdir)) == 2


def test_an_edited_config_is_no_help_to_evaluate_or_export(workdir, tmp_path):
    rewritten(workdir / "config.json", lambda config: config["client"].update(lr=0.2))
    said = "client.lr is 0.2, but it was saved with 0.1"
    with pytest.raises(CheckpointError, match=said):
        train.evaluate_workdir(workdir)
    with pytest.raises(CheckpointError, match=said):
        export_model(workdir, tmp_path / "model")
    assert not (tmp_path / "model").exists()


def test_export_needs_no_data(workdir, tmp_path, monkeypatch):
    monkeypatch.setattr(sklearn.datasets, "load_digits", None)
    assert export_model(workdir, tmp_path / "model").round == 2


def test_a_checkpoint_that_knows_no_origin_goes_on(workdir):
    def forget(manifest):
        for name in ("config", "data", "checksum"):
            del manifest[name]

    rewritten(workdir / "checkpoints" / "2" / "manifest.json", forget)
    assert train.run(plain_config(rounds=3), workdir) == 0
    manifest = json.loads((workdir / "checkpoints/3/manifest.json").read_text())
    assert manifest["config"]["seed"] == 0
    assert set(manifest["data"]) == {"train", "test", "population"}


def test_a_finished_run_says_which_rows_are_missing(workdir):
    file = workdir / "metrics.jsonl"
    first, _ = file.read_text().splitlines(True)
    file.write_text(first)
    with pytest.warns(UserWarning, match=r"metrics.jsonl: no row of round 2\.$"):
        assert train.run(plain_config(rounds=2), workdir) == 0
    file.unlink()
    with pytest.warns(UserWarning, match=r"metrics.jsonl: no row of rounds 1 to 2\.$"):
        assert train.run(plain_config(rounds=3), workdir) == 0
    assert [row["round"] for row in read_metrics(workdir)] == [3]


def test_rows_of_removed_checkpoints_are_kept_aside(workdir):
    """One round more than a killed run can have: the save of round 1 had ended."""
    file = workdir / "metrics.jsonl"
    before = file.read_bytes() + b'{"round": 3}\n'
    file.write_bytes(before)
    shutil.rmtree(workdir / "checkpoints")
    rewritten(workdir / "config.json", lambda config: config.update(save_every=1))
    with pytest.warns(UserWarning, match=r"rows of round 3, but no checkpoint\. The "):
        assert train.run(plain_config(rounds=1, save_every=1), workdir) == 0
    assert (workdir / "metrics.jsonl.damaged").read_bytes() == before
    assert [row["round"] for row in read_metrics(workdir)] == [1]
