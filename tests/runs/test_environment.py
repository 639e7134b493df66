"""What is written of the environment of each start."""

import json
import subprocess

import jax
import pytest

from fedjax_prune.runs import environment
from fedjax_prune.runs.workdir import WorkdirError
from tests.small_runs import build, tiny_config


@pytest.fixture(scope="module")
def experiment():
    return build(tiny_config())


def test_an_entry_says_with_what_a_start_computes(experiment, monkeypatch):
    monkeypatch.setenv("JAX_SOMETHING", "1")
    monkeypatch.setenv("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    monkeypatch.setenv("SECRET", "x")
    entry = environment.describe(experiment.config, 3, experiment.data.hashes)
    assert json.loads(json.dumps(entry)) == entry
    assert entry["finished"] == 3
    assert entry["fields"] == {
        "rounds": 4,
        "save_every": 2,
        "keep": 2,
        "keep_every": 0,
        "hash_every": 0,
        "devices": 1,
        "lanes": 2,
        "client_rows": "device",
        "rows_dir": "",
        "data.dir": "",
        "eval.every": 2,
        "eval.num_clients": 2,
        "eval.num_examples": 60,
        "eval.target_accuracy": experiment.config.eval.target_accuracy,
        "report.every": 0,
        "logger": "none",
    }
    named = {"python", "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy"}
    assert entry["versions"].keys() == named | {"fedjax_prune"}
    assert entry["versions"]["jax"] == jax.__version__
    assert entry["devices"] == {jax.devices()[0].device_kind: len(jax.devices())}
    assert entry["processes"] == 1
    flags = entry["flags"]
    assert flags["JAX_SOMETHING"] == "1" and "SECRET" not in flags
    assert flags["XLA_PYTHON_CLIENT_PREALLOCATE"] == "false"
    assert entry["data"] == experiment.data.hashes
    assert entry["data"].keys() == {"train", "test", "population"}
    assert all(entry["machine"].values()) and entry["started"].endswith("+00:00")


def test_each_start_has_an_entry(experiment, tmp_path):
    assert environment.read(tmp_path) == []
    for finished in (0, 2):
        environment.record(tmp_path, experiment.config, finished, {})
    assert [entry["finished"] for entry in environment.read(tmp_path)] == [0, 2]


DAMAGED = [
    "no json",
    '{"finished": 1}',
    "[1]",
    '[{"finished": "1", "fields": {}}]',
    '[{"finished": 1, "fields": {}, "versions": "x"}]',
]


@pytest.mark.parametrize("text", DAMAGED)
def test_a_damaged_file_is_named(tmp_path, text):
    (tmp_path / environment.FILE).write_text(text)
    with pytest.raises(WorkdirError, match=r"environment.json (cannot|is damaged)"):
        environment.read(tmp_path)


def test_a_damaged_file_is_put_aside(experiment, tmp_path):
    (tmp_path / environment.FILE).write_text("[1]")
    with pytest.warns(UserWarning, match=r"is kept as .*environment.json.damaged"):
        environment.record(tmp_path, experiment.config, 2, {})
    assert len(environment.read(tmp_path)) == 1
    assert (tmp_path / "environment.json.damaged").read_text() == "[1]"


def test_the_commit_of_a_checkout(tmp_path):
    def git(*command):
        identity = ("-c", "user.name=a", "-c", "user.email=a@b")
        done = subprocess.run(
            ["git", *identity, *command],
            cwd=tmp_path,
            capture_output=True,
            check=True,
            text=True,
        )
        return done.stdout.strip()

    assert environment.commit_of(tmp_path) is None
    git("init", "--quiet")
    assert environment.commit_of(tmp_path) is None
    (tmp_path / "file").write_text("1")
    git("add", "file")
    git("commit", "--quiet", "--message=first")
    git("tag", "v1")
    assert environment.commit_of(tmp_path) == git("rev-parse", "HEAD")
    (tmp_path / "file").write_text("2")
    assert environment.commit_of(tmp_path) == git("rev-parse", "HEAD") + "-dirty"
    # A folder below a checkout is no checkout: it may be an installation.
    (tmp_path / "below").mkdir()
    assert environment.commit_of(tmp_path / "below") is None
