"""What a run records for its page, and the page that it writes at its end."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fedjax_prune.data.augment import TO_INPUT
from fedjax_prune.models.cnn import CNN
from fedjax_prune.models.gates import GateSettings
from fedjax_prune.models.task import make_selection, make_task
from fedjax_prune.runs import record, recorder, train, verify
from fedjax_prune.runs.learning import make_learning, start
from fedjax_prune.runs.metrics_log import read_metrics
from fedjax_prune.runs.workdir import open_shared_workdir
from fedjax_prune.types import Batch, Dataset
from tests.small_runs import final_state, plain_config, pruned_config, tiny_config


@pytest.fixture(scope="module")
def gated(tmp_path_factory):
    """A gated run of four rounds, two of them evaluated, with and without records."""
    found = {}
    for every in (0, 2):
        folder = tmp_path_factory.mktemp(f"every{every}") / "run"
        config = tiny_config(**{"report.every": every})
        assert train.run(config, folder) == 0
        found[every] = folder
    return found


def test_recording_changes_no_bit(gated):
    states = [final_state(tiny_config(), folder) for folder in gated.values()]
    jax.tree.map(np.testing.assert_array_equal, *states)
    rows = [
        {row["round"]: row for row in read_metrics(folder)} for folder in gated.values()
    ]
    assert verify.row_differences(*rows) == []


def test_without_records_there_is_no_page(gated):
    assert not (gated[0] / "report").exists()


def test_a_run_records_its_clients_and_who_selects_what(gated):
    rows = {row["round"]: row for row in read_metrics(gated[2])}
    records = record.read_records(gated[2], 4)
    assert [found.round for found in records] == [2, 4]
    for found in records:
        row = rows[found.round]
        assert found.clients.tolist() == sorted(found.clients) and found.arrived.all()
        mean = np.average(found.loss, weights=found.examples)
        assert mean == pytest.approx(row["train/loss"], rel=1e-5)
        for name, accuracies in found.accuracies.items():
            assert accuracies.mean() == pytest.approx(row[f"eval/{name}/mean"])
            assert len(accuracies) == len(found.evaluated) == row["eval/clients"]
        for layer, shares in found.selected.items():
            used = (shares > 0).mean()
            assert used == pytest.approx(row[f"gates/{layer}/used"])
            assert shares.max() <= 1 and found.classes[layer].shape == (
                10,
                shares.shape[1],
            )
        assert found.churn == {}


def test_a_run_records_who_holds_which_classes(gated):
    counts = record.read_partition(gated[2])
    assert counts is not None and counts.shape == (5, 10) and counts.sum() == 300


def test_the_summary_names_the_page(tmp_path, capsys):
    pytest.importorskip("altair")
    config = tiny_config(rounds=2, **{"report.every": 1})
    assert train.run(config, tmp_path / "run") == 0
    page = tmp_path / "run" / "report" / "index.html"
    assert str(page) in capsys.readouterr().out.replace("\n", "").replace(" ", "")
    assert page.stat().st_size > 800_000


def test_without_the_extra_the_summary_says_how_to_get_it(
    tmp_path, capsys, monkeypatch
):
    monkeypatch.setattr("fedjax_prune.runs.page.panel.NEEDED", ("not_installed",))
    config = tiny_config(rounds=2, **{"report.every": 1})
    assert train.run(config, tmp_path) == 0
    assert "pip install 'fedjax_prune[report]'" in capsys.readouterr().out
    assert not (tmp_path / "report" / "index.html").exists()
    assert len(record.read_records(tmp_path, 2)) == 2


@pytest.mark.long
def test_a_resumed_run_under_masks_records_how_many_entries_change(tmp_path):
    """Resumed after round 1, which is not recorded, it compares round 2 with that."""
    config = pruned_config(rounds=3, save_every=1, **{"report.every": 2})
    with open_shared_workdir(tmp_path) as folder:
        assert train.train(make_learning(config), folder, 1) == 1
    assert record.recorded_rounds(tmp_path, 3) == []
    # As a killed run leaves it, which was to record every round.
    (tmp_path / "report" / "round-2.npz").touch()
    (tmp_path / "report" / "round-9.npz").touch()
    assert train.run(config, tmp_path) == 0
    assert record.recorded_rounds(tmp_path, 9) == [2, 3]
    first, second = record.read_records(tmp_path, 3)
    assert (first.round, first.churn_since) == (2, 1)
    assert (second.round, second.churn_since) == (3, 2)
    state, _ = final_state(config, tmp_path)
    paths = jax.tree_util.tree_leaves_with_path(state.params)
    names = {"/".join(str(entry.key) for entry in path) for path, _ in paths}
    assert set(first.churn) == set(second.churn) == names
    assert all(0 <= x <= 1 for found in (first, second) for x in found.churn.values())


def test_a_run_that_goes_on_without_records_removes_those_of_lost_rounds(tmp_path):
    config = plain_config(rounds=1, **{"report.every": 1})
    assert train.run(config, tmp_path) == 0
    (tmp_path / "report" / "round-2.npz").touch()
    config = plain_config(rounds=2, **{"report.every": 0})
    assert train.run(config, tmp_path) == 0
    assert record.recorded_rounds(tmp_path, 9) == [1]


def test_rounds_with_hostile_clients_are_recorded_with_their_losses(
    tmp_path, monkeypatch
):
    """Every third round is due; one of five clients attacks, in each round."""
    monkeypatch.setattr(recorder, "MOST_TROUBLED", 1)
    hostile = {"hostile.fraction": 0.2, "hostile.attack": "sign_flip"}
    config = plain_config(rounds=3, cohort_size=5, save_every=1, **hostile)
    config.report.every = 3
    assert train.run(config, tmp_path) == 0
    rows = {row["round"]: row for row in read_metrics(tmp_path)}
    assert all(row["clients/hostile"] for row in rows.values())
    # One such record is enough here; the last round is due.
    assert record.recorded_rounds(tmp_path, 3) == [1, 3]
    first, last = record.read_records(tmp_path, 3)
    mean = np.average(first.loss, weights=first.examples)
    assert mean == pytest.approx(rows[1]["train/loss"], rel=1e-5)
    assert not first.accuracies and not len(first.evaluated) and last.accuracies
    size = (tmp_path / "report" / "round-1.npz").stat().st_size
    assert size < 3000


def test_churn_is_the_share_of_entries_that_differ():
    """By hand: 2 of 6 entries of one array, none of the others."""
    learning = make_learning(pruned_config())
    state, _ = start(learning)
    masks = jax.tree.map(lambda x: jnp.ones(x.shape, bool), state.params)
    new = masks | {
        "fc2": masks["fc2"] | {"bias": masks["fc2"]["bias"].at[:2].set(False)}
    }
    state = state._replace(server=state.server._replace(masks=new))
    size = masks["fc2"]["bias"].size
    changed, copy = recorder.churn_program()(jax.tree.map(jnp.copy, masks), state)
    assert changed.pop("fc2/bias") == pytest.approx(2 / size)
    assert set(map(float, changed.values())) == {0.0}
    jax.tree.map(np.testing.assert_array_equal, copy, new)


def test_examples_by_class_are_the_first_ones_and_padding_is_marked():
    images = np.arange(12, dtype=np.uint8).reshape(12, 1, 1, 1)
    labels = np.array([1] * 10 + [0, 0], np.int32)
    found, real = recorder.by_class(Dataset(images, labels), 3)
    assert found[0, :2].ravel().tolist() == [10, 11]
    assert found[1].ravel().tolist() == list(range(8))
    assert real.sum(axis=1).tolist() == [2, 8, 0]


def test_selected_channels_are_those_that_training_counts():
    """Without dropout, norm and augmentation training and predicting are the same."""
    model = CNN(num_classes=3, width=0.25, norm="none", dropout=0.0)
    model = model.clone(gates=GateSettings(keep_ratio=0.5))
    task = make_task(model, (8, 8, 1))
    variables = task.init(jax.random.key(1))
    rng = np.random.default_rng(0)
    images = rng.integers(0, 255, (6, 8, 8, 1)).astype(np.uint8)
    mask = np.array([1, 1, 1, 1, 0, 1], bool)
    batch = Batch(images, np.zeros(6, np.int32), mask)
    _, (_, sums) = jax.jit(task.loss)(variables, batch, jax.random.key(0))
    select = jax.jit(make_selection(model, to_input=TO_INPUT["image"]))
    found = select(variables, images, mask)
    expected = {
        name.removeprefix("selected/"): x
        for name, x in sums.items()
        if name.startswith("selected/")
    }
    assert found and found.keys() == expected.keys()
    jax.tree.map(np.testing.assert_array_equal, found, expected)
