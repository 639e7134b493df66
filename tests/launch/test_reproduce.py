"""Tables of results: their runs, what is printed, and the command line."""

import functools
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from fedjax_prune.runs import estimates, train
from fedjax_prune.runs.metrics_log import read_metrics
from fedjax_prune.runs.settings import SettingsError
from launch.reproduce import results
from launch.reproduce.personal import measure, swapped_gates
from launch.reproduce.table import Block, Line, Table, by_seed, runs_of
from launch.reproduce.tables import TABLES
from tests.made_up_runs import config_of, write_run
from tests.small_runs import tiny_config

ROOT = Path(__file__).parents[2]
EVERY = [(name, scale) for name, scales in TABLES.items() for scale in scales]


@functools.cache
def runs_of_one_seed(name, scale):
    return runs_of(TABLES[name][scale], [3], [])


@pytest.mark.parametrize(("name", "scale"), EVERY)
def test_lines_of_a_table_can_be_run_and_differ_from_each_other(name, scale):
    lines = runs_of_one_seed(name, scale)
    configs = [each.runs[0].config.to_json_best_effort() for each in lines]
    assert len(set(configs)) == len(configs)
    assert all(each.runs[0].config.seed == 3 for each in lines)
    for block in TABLES[name][scale].blocks:
        assert len({line.name for line in block.lines}) == len(block.lines)


@pytest.mark.parametrize(("name", "scale"), EVERY)
def test_lines_of_a_block_have_the_same_data_rounds_and_clients(name, scale):
    by_line = {each.line: each.runs[0].config for each in runs_of_one_seed(name, scale)}
    for block in TABLES[name][scale].blocks:
        alike = {
            (c.data.to_json(), c.rounds, c.cohort_size, c.eval.every)
            for c in (by_line[line] for line in block.lines)
        }
        assert len(alike) <= 1, block.title


def test_runs_come_by_seed_and_each_of_them_once():
    lines = (
        Line("digits", "quickstart"),
        Line("larger steps", "quickstart", ("client.lr=0.3",)),
        Line("the same by another name", "quickstart"),
    )
    table = Table("Why?", (Block("a", "A", lines), Block("b", "B", lines)), (0, 1))
    found = by_seed(runs_of(table, (0, 1), ["--config.rounds=7"]))
    assert [run.folder for run in found] == [
        f"quickstart/{change}seed={seed}"
        for seed in (0, 1)
        for change in ("", "client.lr=0.3/")
    ]
    assert {run.config.rounds for run in found} == {7}


def test_a_line_with_a_mistake_is_refused():
    block = Block("a", "A", (Line("x", "quickstart", ("client.lr=0",)),))
    with pytest.raises(SettingsError, match=r"client\.lr must be above 0"):
        runs_of(Table("?", (block,), (0,)), (0,), [])


def test_results_are_those_of_finished_runs(tmp_path, monkeypatch):
    """Made-up rows: 20 rounds, all evaluated; the accuracy is about 0.9 at the end."""
    lines = (
        Line("SCAFFOLD", "quickstart", published="84.2 %"),
        Line("FedDP", "quickstart", ("client.lr=0.3",)),
        Line("later", "quickstart", ("client.lr=0.5",)),
    )
    block = Block("both", "Ten clients", lines)
    table = Table(
        "What for?", (block, Block("none", "Counts", (), lambda *_: "| 1 |\n")), (0, 1)
    )
    found = runs_of(table, table.seeds, [])
    for each in found[:2]:
        for seed, run in enumerate(each.runs):
            config = config_of(seed=seed, **{"eval.every": 1})
            write_run(tmp_path / run.folder, config, records=False)
    done = {tmp_path / run.folder for each in found[:2] for run in each.runs}
    monkeypatch.setattr(estimates, "is_finished", lambda config, path: path in done)
    text = results.write_results(table, found, tmp_path, tmp_path / "out", pages=True)
    assert text == (tmp_path / "out/table.md").read_text()
    title, _, heading, _, header, _, first, second, _, change, *rest = text.splitlines()
    assert (title, heading) == ("# What for?", "## Ten clients")
    assert header.endswith("| published |") and first.endswith("| 84.2 % |")
    assert first.startswith("| SCAFFOLD | 20 | 2 |")
    assert second.startswith("| FedDP | 20 | 2 |")
    assert change.startswith("In the last fifth of the rounds the accuracy of SCAFFOLD")
    assert rest == ["", "## Counts", "", "| 1 |"] and "later" not in text
    assert (tmp_path / "out/both/index.html").exists()
    assert not (tmp_path / "out/none").exists()


@pytest.fixture(scope="module")
def gated(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("gated") / "seed=0"
    config = tiny_config(rounds=2, cohort_size=5)
    config.eval.num_clients = 0
    assert train.run(config, workdir) == 0
    return workdir


def test_own_gates_give_what_the_run_has_measured(gated):
    last, found = read_metrics(gated)[-1], measure(gated)
    np.testing.assert_allclose(
        [found["own validation, own gates"], found["test, own gates"]],
        [last["eval/client_local/mean"], last["eval/client_gated/mean"]],
        rtol=1e-6,
    )
    assert len(found) == 7 and all(0 <= value <= 1 for value in found.values())
    header, _, line = swapped_gates({"FedDP": [gated]}, {}).splitlines()
    assert header.count("|") == line.count("|") == 10
    assert f"| {found['test, mean gates']:.1%} |" in line


def reproduce(*flags):
    return subprocess.run(
        [sys.executable, "-m", "launch.reproduce", *flags],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )


def test_the_command_names_every_mistake_and_says_what_is_left(tmp_path):
    wrong = reproduce("--table=gate", "--seeds=0,0", "--workdir=")
    assert wrong.returncode == 1
    assert wrong.stderr.splitlines() == [
        f"error: --table must be one of {', '.join(TABLES)}, got 'gate'",
        "error: --seeds must be different whole numbers, at least 0, got '0,0'",
        "error: --workdir must name a folder, got ''",
    ]
    left = reproduce("--table=gates", "--seeds=4", "--dry_run", f"--workdir={tmp_path}")
    assert (left.returncode, left.stderr) == (0, "")
    assert left.stdout.startswith("What do learned gates learn?")
    assert "| digits,scaffold_dp,10/client.lr=0.03 | 100 | " in left.stdout
    assert not list(tmp_path.iterdir())
