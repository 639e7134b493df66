"""Whole runs with masks: preparation, files, resuming, compaction, tables."""

import signal

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import autoflip
from fedjax_prune.engine.outcome import TrainingError
from fedjax_prune.runs import (
    checkpoint,
    compact_rounds,
    experiment,
    savings,
    tables,
    train,
)
from fedjax_prune.runs.learning import make_learning
from fedjax_prune.runs.metrics import ACCURACY
from fedjax_prune.runs.metrics_log import read_metrics
from fedjax_prune.runs.policy import placement_of
from fedjax_prune.runs.settings import SettingsError, problems
from tests.small_runs import (
    PRUNED_FIELDS,
    final_state,
    pruned_config,
    undocumented,
)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("whole")
    config = pruned_config(hash_every=4)
    assert train.run(config, workdir) == 0
    return config, workdir


def test_rows_tell_what_is_pruned_and_sent(whole):
    _, workdir = whole
    rows = read_metrics(workdir)
    assert [row["round"] for row in rows] == [0, 1, 2, 3, 4]
    assert [row["round"] for row in rows if "hash/state" in row] == [0, 4]
    first, *rounds = rows
    assert first["clients"] == 5
    assert first["bytes/down"] == first["bytes/up"] == 5 * 4 * 1034
    assert first["flops/realisable"] == first["flops/dense"]
    for row in rounds:
        assert undocumented(row) == []
        assert row["sparsity/prunable"] >= 0.3
        assert row["flops/realisable"] < 0.6 * row["flops/dense"]
        assert row["flops/hybrid"] <= row["flops/theoretical"] < row["flops/dense"]
        assert row["bytes/down"] + row["bytes/up"] < row["bytes/dense"]
        assert row["bytes_spec/up"] == row["bytes/up"]
        # Half of 4, 8 and 16 channels and hidden units.
        assert row["channels/conv1"] == 2 and row["channels/fc1"] == 8
    totals = savings.totals(rows)
    assert totals.sent > 0 and totals.sent_all < totals.sent
    assert savings.has_masks(workdir)
    accuracies = [row[ACCURACY] for row in rows if ACCURACY in row]
    sparsity = np.mean([row["sparsity/all"] for row in rounds])
    table = tables.pruning_table({"autoflip": [workdir]})
    assert len(accuracies) == 2 and table.splitlines()[2].startswith(
        f"| autoflip | 1 | {np.mean(accuracies):.1%} |  | {max(accuracies):.1%} | "
        f"{sparsity:.1%} | "
    )
    words = savings.in_words(rows)
    assert f"{rows[-1]['sparsity/all']:.1%} of the parameters" in words["pruned"]
    done, dense = (
        sum(row[f"flops/{kind}"] for row in rounds) for kind in ("realisable", "dense")
    )
    assert words["compute saved"].startswith(f"{1 - done / dense:.1%} of the FLOPs")
    assert words["with round 0"].endswith("what came before round 1 included")


def test_a_stop_while_exploring_says_how_to_go_on(tmp_path, monkeypatch, capsys):
    prepare = train.prepare

    def interrupted(*args, stop):
        signal.raise_signal(signal.SIGINT)
        return prepare(*args, stop=stop)

    monkeypatch.setattr(train, "prepare", interrupted)
    assert train.run(pruned_config(), tmp_path) == train.INTERRUPTED
    assert [row["round"] for row in read_metrics(tmp_path)] == [0]
    assert checkpoint.latest(tmp_path / "checkpoints") == 0
    out = capsys.readouterr().out
    assert "0 of 4" in out and "the same command goes on from here" in out


def test_a_stopped_run_does_not_explore_again(whole, tmp_path, monkeypatch):
    """It misses the row of the preparation, too, when rows were lost."""
    config, workdir = whole
    short = pruned_config(rounds=1)
    assert train.run(short, tmp_path) == 0
    (tmp_path / "metrics.jsonl").unlink()
    monkeypatch.setattr(train, "prepare", None)
    with pytest.warns(UserWarning, match=r"no row of rounds 0 to 1\.$"):
        assert train.run(config, tmp_path) == 0
    jax.tree.map(
        np.testing.assert_array_equal,
        final_state(config, workdir),
        final_state(config, tmp_path),
    )


@jax.numpy_dtype_promotion("standard")  # Flax widens bfloat16 silently
def test_a_run_in_bfloat16_keeps_its_state_in_float32(tmp_path):
    config = pruned_config(rounds=2, precision="bfloat16", compact_training=True)
    assert make_learning(config).model.dtype == jnp.bfloat16
    assert train.run(config, tmp_path) == 0
    state, rows = final_state(config, tmp_path)
    dtypes = {np.dtype(x.dtype).name for x in jax.tree.leaves((state, rows))}
    assert dtypes == {"float32", "int32", "bool"}
    assert all(np.isfinite(row["train/loss"]) for row in read_metrics(tmp_path)[1:])
    assert read_metrics(tmp_path)[-1]["train/loss"] > 0


def test_compacted_rounds_end_as_whole_ones(whole, tmp_path):
    config, workdir = whole
    compact = pruned_config(compact_training=True)
    assert train.run(compact, tmp_path) == 0
    states = [final_state(config, folder) for folder in (workdir, tmp_path)]
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), *states
    )
    rows = [read_metrics(folder) for folder in (workdir, tmp_path)]
    for one, other in zip(*rows, strict=True):
        for name in ("bytes/down", "sparsity/all", "flops/realisable"):
            assert one[name] == other[name]


def test_compacted_rounds_leave_gates_as_whole_ones_do(tmp_path, monkeypatch):
    """Half of the channels are removed, and weights decay."""
    monkeypatch.setattr(compact_rounds, "MULTIPLE", 1)
    fields, states, rows = {"channel_share": 0.5}, [], []
    for compact in (False, True):
        config = pruned_config("eflprune", fields, compact_training=compact)
        config.update({"rounds": 2, "hash_every": 0})
        config.update_from_flattened_dict(
            {"model.gated": True, "client.weight_decay": 0.1, "report.every": 0}
        )
        assert train.run(config, tmp_path / str(compact)) == 0
        states.append(final_state(config, tmp_path / str(compact)))
        rows.append(read_metrics(tmp_path / str(compact)))
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), *states
    )
    for one, other in zip(*rows, strict=True):
        names = [name for name in one if name.startswith("gates/")]
        assert len(names) == 4
        for name in names:
            assert one[name] == pytest.approx(other[name], rel=1e-5)


def test_a_layer_without_weights_ends_the_run(tmp_path):
    fields = {"explore_epochs": 1, "threshold": 0.999, "min_keep": 0.0}
    with pytest.raises(
        TrainingError, match=r"leave nothing of .*: lower algorithm.threshold = 0.999"
    ):
        train.run(pruned_config(fields=fields), tmp_path)
    assert read_metrics(tmp_path) == []


def test_gates_count_by_all_channels_that_they_compute(monkeypatch):
    """Else the whole model would be near enough: its gates keep as many channels."""
    monkeypatch.setattr(compact_rounds, "MULTIPLE", 1)
    config = pruned_config("eflprune", {"channel_share": 0.5}, compact_training=True)
    config.update_from_flattened_dict({"model.gated": True, "model.keep_ratio": 0.25})
    learning = make_learning(config)
    rounds = compact_rounds.CompactRounds(
        learning, placement_of(config), lambda model: make_learning(config, model)
    )
    sizes = {"conv1": 4, "conv2": 8, "fc1": 16}
    needed = {name: np.ones(size, bool) for name, size in sizes.items()}
    rounds._rounds_of(rounds._widths(needed))
    needed["conv2"][3:] = False
    assert rounds._widths(needed) == sizes | {"conv2": 3}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model.name": "resnet9"}, "^model and data: ResNet9 needs images of 32x32"),
        ({"fields": PRUNED_FIELDS | {"exempt_layers": ("fc9/*",)}}, "algorithm: .*fc9"),
    ],
)
def test_what_does_not_fit_is_refused_before_data_are_loaded(
    changes, message, tmp_path, monkeypatch
):
    monkeypatch.setattr(experiment, "load", None)
    with pytest.raises(SettingsError, match=message):
        train.run(pruned_config(**changes), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_sparse_server_has_forgotten_before_the_round():
    """Compacted rounds put the old pruned entries back, so these must already be 0."""
    config = pruned_config(fields=PRUNED_FIELDS | {"server_store": "sparse"})
    config.algorithm.mask_schedule = "fixed"
    algorithm = make_learning(config).algorithm
    state = jax.tree.map(jnp.ones_like, algorithm.init(jax.random.key(0)))
    masks = jax.tree.map(
        lambda x: jnp.arange(x.size).reshape(x.shape) % 3 > 0, state.params
    )
    state = state._replace(server=state.server._replace(masks=masks))
    after = algorithm.masked.remask(state, None, None)
    momenta = [x for x in jax.tree.leaves(after.server.base) if x.ndim]
    assert len(momenta) == len(jax.tree.leaves(masks))
    for mask, param, momentum in zip(
        jax.tree.leaves(masks), jax.tree.leaves(after.params), momenta, strict=True
    ):
        np.testing.assert_array_equal(param, mask)
        np.testing.assert_array_equal(momentum, mask)


@pytest.mark.parametrize(
    ("name", "field"),
    [
        ("scaffold", {}),
        ("prunefl", {}),
        ("fedsnip", {}),
        ("eflprune", {"channel_share": 0.0}),
        ("autoflip", {"structured_rule": "off"}),
    ],
)
def test_compaction_needs_channels_that_are_removed(name, field):
    config = pruned_config(name, field, compact_training=True)
    words = [f"algorithm.{key} {value}" for key, value in field.items()]
    (what,) = words or [f"algorithm.name {name}"]
    assert problems(config) == [
        f"compact_training must be false with {what}, which removes no channels"
    ]


@pytest.mark.parametrize("size", autoflip.SIZES)
@pytest.mark.parametrize("work", autoflip.WORKS)
def test_every_setting_is_valid(work, size):
    for method in autoflip.METHODS:
        config = autoflip.get_config(f"{work},{method},{size}")
        config.data.dir = "somewhere"
        assert problems(config) == []


def test_settings_of_the_authors_commands():
    config = autoflip.get_config("cifar100")
    assert (config.rounds, config.cohort_size, config.data.num_clients) == (200, 1, 20)
    assert (config.client.lr, config.client.lr_decay) == (3e-4, 0.99)
    assert autoflip.get_config("shakespeare").algorithm.explorer_share == 0.03
    assert autoflip.get_config("mnist,ablation50").algorithm.threshold == 0.5
    with pytest.raises(
        ValueError, match=r"^METHOD must be one of autoflip, .* got 'x'$"
    ):
        autoflip.get_config("mnist,x")
    with pytest.raises(ValueError, match=r"must be WORK\[,METHOD\[,SIZE\]\], got 'a,b"):
        autoflip.get_config("a,b,c,d")
