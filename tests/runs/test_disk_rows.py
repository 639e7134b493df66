"""Runs with the rows of clients on disk: equal to others bit for bit, also resumed."""

import resource
import shutil

import jax
import numpy as np
import pytest

from fedjax_prune.engine.rows_on_disk import RowsError
from fedjax_prune.runs import checkpoint, train
from fedjax_prune.runs.checkpoint import CheckpointError
from fedjax_prune.runs.learning import make_learning
from fedjax_prune.runs.metrics_log import read_metrics
from fedjax_prune.runs.start import of_newest, restore
from tests.small_runs import final_state, pruned_config, tiny_config
from tests.toys import all_rows


@pytest.fixture(scope="module")
def on_device(tmp_path_factory):
    """Gates and control variates; a run that is not resumed."""
    workdir = tmp_path_factory.mktemp("device")
    config = tiny_config()
    assert train.run(config, workdir) == 0
    return final_state(config, workdir), read_metrics(workdir)


@pytest.mark.parametrize(
    "kinds",
    [
        ("disk", "disk"),
        ("device", "disk"),
        pytest.param(("disk", "device"), marks=pytest.mark.long),
        pytest.param(("disk", "host"), marks=pytest.mark.long),
    ],
)
def test_no_bit_depends_on_where_rows_are(kinds, on_device, tmp_path):
    """The run stops after two of four rounds and goes on, with rows elsewhere."""
    for rounds, kind in zip((2, 4), kinds, strict=True):
        config = tiny_config(rounds=rounds, client_rows=kind)
        assert train.run(config, tmp_path) == 0
    state = final_state(config, tmp_path)
    jax.tree.map(np.testing.assert_array_equal, on_device[0], state)
    last = [rows[-1] for rows in (on_device[1], read_metrics(tmp_path))]
    accuracies = [{k: v for k, v in r.items() if k.startswith("eval/")} for r in last]
    assert accuracies[0] == accuracies[1] != {}
    assert train.evaluate_workdir(tmp_path)["round"] == 4


@pytest.mark.long
def test_gates_of_their_own_are_drawn_when_a_client_is_seen(tmp_path):
    """And for those who were never seen when the rows move to the devices."""
    fields = {"model.gate_init": "per_client", "cohort_size": 2}
    whole = tiny_config(rounds=2, **fields)
    assert train.run(whole, tmp_path / "whole") == 0
    for rounds, kind in ((1, "disk"), (2, "device")):
        config = tiny_config(rounds=rounds, client_rows=kind, **fields)
        assert train.run(config, tmp_path / "moved") == 0
    jax.tree.map(
        np.testing.assert_array_equal,
        final_state(whole, tmp_path / "whole"),
        final_state(config, tmp_path / "moved"),
    )


def test_a_checkpoint_holds_the_index_and_the_workdir_the_rows(tmp_path):
    """Files are removed when the next checkpoint begins and no other names them."""

    def saved(round):
        folder = tmp_path / "checkpoints" / str(round) / "rows"
        assert [file.name for file in folder.iterdir()] == ["index.npz"]
        with np.load(folder / "index.npz") as index:
            assert len(index["clients"]) <= 5
            return set(index["names"].tolist())

    named = {}
    for round in (1, 2, 3):
        config = tiny_config(rounds=round, save_every=1, keep=1, client_rows="disk")
        assert train.run(config, tmp_path) == 0
        named[round] = saved(round)
    files = {file.name for file in (tmp_path / "rows").iterdir()}
    assert files == named[2] | named[3] != named[3]


def test_rows_after_a_damaged_checkpoint(on_device, tmp_path):
    """A file that only the newest checkpoint names: the run goes on from round 2."""
    config = tiny_config(rounds=3, client_rows="disk")
    assert train.run(config, tmp_path) == 0
    newest = max((tmp_path / "rows").iterdir(), key=lambda f: f.stat().st_mtime_ns)
    damaged = bytearray(newest.read_bytes())
    damaged[100] ^= 1
    newest.write_bytes(damaged)
    config = tiny_config(client_rows="disk")
    with pytest.warns(UserWarning, match=r"3 is damaged: rows .* not what was"):
        assert train.run(config, tmp_path) == 0
    jax.tree.map(
        np.testing.assert_array_equal, on_device[0], final_state(config, tmp_path)
    )
    # The damaged one is none of the two newest, which stay.
    assert checkpoint.rounds(tmp_path / "checkpoints") == [2, 4]
    assert (tmp_path / "checkpoints" / "3.damaged").is_dir()


@pytest.mark.long
def test_what_a_live_run_replaces_is_read_anew(tmp_path):
    """All clients take part, so the rows of each round replace those before."""
    fields = {"cohort_size": 5, "client_rows": "disk", "save_every": 1, "keep": 1}

    def train_until(rounds):
        assert train.run(tiny_config(rounds=rounds, **fields), tmp_path) == 0

    def read_while_the_run_goes_on():
        state, rows = restore(make_learning(tiny_config()), tmp_path)
        train_until(3)
        return int(state.round), all_rows(rows)

    train_until(1)
    with pytest.raises(RowsError, match=r"rows cannot be read: No such file"):
        read_while_the_run_goes_on()
    shutil.rmtree(tmp_path)
    train_until(1)
    round, _ = of_newest(tmp_path, read_while_the_run_goes_on)
    assert round == 3


def test_a_run_that_replaces_faster_than_is_read_is_named(tmp_path):
    folder = tmp_path / "checkpoints"

    def fail():
        (folder / f"{len(checkpoint.rounds(folder)) + 1}").mkdir(parents=True)
        raise CheckpointError("cut")

    said = f"^The run in {tmp_path} goes on and replaces its checkpoints faster than"
    with pytest.raises(CheckpointError, match=rf"{said} they are read: try again\.$"):
        of_newest(tmp_path, fail)


def test_what_no_run_has_replaced_is_read_once(tmp_path):
    """The checkpoint is damaged, and there is no newer one."""
    folder = tmp_path / "checkpoints"
    (folder / "1").mkdir(parents=True)
    with pytest.raises(CheckpointError, match=r"manifest.json cannot be read"):
        of_newest(tmp_path, lambda: checkpoint.restore(folder, {}))


def test_a_full_disk_ends_the_run_with_the_last_checkpoint(tmp_path):
    """A limit on the size of files stands for it, as in test_full_disk.py."""
    config = tiny_config(rounds=2, client_rows="disk")
    assert train.run(config, tmp_path) == 0
    row_file = next((tmp_path / "rows").iterdir())
    config = tiny_config(client_rows="disk")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (row_file.stat().st_size - 1, limits[1]))
    said = rf"^The rows of a round cannot be written in {tmp_path}/rows: File too large"
    try:
        with pytest.raises(RowsError, match=said):
            train.run(config, tmp_path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert checkpoint.rounds(tmp_path / "checkpoints") == [2]
    assert not list((tmp_path / "rows").glob(".*"))
    assert train.run(config, tmp_path) == 0


@pytest.mark.long
def test_explorers_on_two_devices(tmp_path):
    """AutoFLIP keeps the deviation of each explorer."""
    for kind in ("device", "disk"):
        config = pruned_config(rounds=1, client_rows=kind)
        assert train.run(config, tmp_path / kind) == 0
    jax.tree.map(
        np.testing.assert_array_equal,
        final_state(config, tmp_path / "device"),
        final_state(config, tmp_path / "disk"),
    )
