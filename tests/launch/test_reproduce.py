"""Tables of results: their runs, what is printed, and the command line."""

import functools
import os
import subprocess
import sys
from pathlib import Path

import pytest

from fedjax_prune.runs.metrics import HEADLINE
from fedjax_prune.runs.settings import SettingsError, flatten
from launch.flags import load_config
from launch.reproduce import results
from launch.reproduce.beside_pfl import PFL_FIELDS
from launch.reproduce.clients import by_clients
from launch.reproduce.costs import multiplications
from launch.reproduce.others import W1
from launch.reproduce.personal import swapped_gates
from launch.reproduce.table import Block, Line, Table, by_seed, lines_of, of_runs
from launch.reproduce.tables import TABLES
from tests.made_up_runs import config_of, write_finished, write_run

ROOT = Path(__file__).parents[2]
EVERY = [(name, scale) for name, scales in TABLES.items() for scale in scales]


@functools.cache
def lines_of_a_seed(name, scale):
    return lines_of(TABLES[name][scale], [3], [])


@pytest.mark.parametrize(("name", "scale"), EVERY)
def test_runs_of_a_table_differ_from_each_other(name, scale):
    runs = [each.runs[0] for each in lines_of_a_seed(name, scale)]
    configs = {
        run.folder: f"{run.config.to_json_best_effort()} {run.launcher}" for run in runs
    }
    assert len(set(configs.values())) == len(configs)
    assert all(run.config.seed == 3 for run in runs)
    assert TABLES[name][scale].differs.endswith(".")
    for block in TABLES[name][scale].blocks:
        assert len({line.name for line in block.lines}) == len(block.lines)


@pytest.mark.parametrize(("name", "scale"), EVERY)
def test_lines_of_a_block_have_the_same_data_rounds_and_clients(name, scale):
    by_line = {each.line: each.runs[0].config for each in lines_of_a_seed(name, scale)}
    for block in TABLES[name][scale].blocks:
        configs = [by_line[line] for line in block.lines]
        numbers = {c.data.num_clients for c in configs}
        assert len(numbers) <= 1 or _by_clients(block), block.title
        alike = {
            (c.data.to_json(), c.rounds, c.cohort_size, c.eval.every) for c in configs
        }
        assert len(alike) == len(numbers), block.title


def _by_clients(block):
    return getattr(block.make, "func", None) is by_clients


def test_the_threshold_that_is_not_set_again_is_the_default():
    lines = {each.line.name: each for each in lines_of_a_seed("autoflip_mnist", "cpu")}
    for percent in (20, 30):
        run = lines[f"AutoFLIP (v3), threshold {percent}%"].runs[0]
        assert run.config.algorithm.threshold == percent / 100


def test_runs_come_by_seed_and_each_of_them_once():
    lines = (
        Line("digits", "quickstart"),
        Line("larger steps", "quickstart", ("client.lr=0.3",)),
        Line("the same by another name", "quickstart"),
    )
    table = Table("Why?", (Block("a", "A", lines), Block("b", "B", lines)), (0, 1))
    found = by_seed(lines_of(table, (0, 1), ["--config.rounds=7"]))
    assert [run.folder for run in found] == [
        f"quickstart/{change}seed={seed}"
        for seed in (0, 1)
        for change in ("", "client.lr=0.3/")
    ]
    assert {run.config.rounds for run in found} == {7}


def test_a_line_with_a_mistake_is_refused():
    block = Block("a", "A", (Line("x", "quickstart", ("client.lr=0",)),))
    with pytest.raises(SettingsError, match=r"client\.lr must be above 0"):
        lines_of(Table("?", (block,), (0,)), (0,), [])


def test_a_field_of_the_lines_is_not_set_for_all_of_them():
    block = Block("a", "A", (Line("x", "quickstart", ("client.lr=0.3",)),))
    given = ["--config.client.lr=0.1", "--config.seed=1"]
    with pytest.raises(SettingsError) as error:
        lines_of(Table("?", (block,), (0,)), (0,), given)
    assert error.value.problems == [
        f"--config.{field} must not be given: lines set it"
        for field in ("client.lr", "seed")
    ]


def test_a_field_in_which_lines_differ_is_not_set_for_all_of_them():
    lines = (
        Line("FedAvg", "feddp_cpu:mnist,fedavg,10"),
        Line("FedAvg, 30 clients", "feddp_cpu:mnist,fedavg,30"),
        Line("FedDP", "feddp_cpu:mnist,scaffold_dp,10"),
    )
    table = Table("?", (Block("a", "A", lines),), (0,))
    for field, value in (
        ("data.num_clients", 20),
        ("model.gated", "false"),
        ("algorithm.name", "fedavg"),
    ):
        with pytest.raises(SettingsError, match=f"{field} must not be given"):
            lines_of(table, (0,), [f"--config.{field}={value}"])
    # How long they are is theirs, too, but may be changed for a trial.
    found = lines_of(table, (0,), ["--config.rounds=2", "--config.client.lr=0.2"])
    assert {run.config.rounds for each in found for run in each.runs} == {2}
    with pytest.raises(SettingsError) as error:
        lines_of(table, (0,), ["--config.algorithm.control_weights=size"])
    assert error.value.problems == [
        "algorithm.control_weights is not a field of this algorithm, but of scaffold "
        "(with FedAvg)"
    ]


def test_blocks_that_train_nothing_get_no_overrides():
    table = Table("?", (Block("a", "A", ()),), (0,))
    given = ["--dry-run", "--config.client.lr=0.1"]
    with pytest.raises(SettingsError) as error:
        lines_of(table, (0,), given)
    assert error.value.problems == [
        "--dry-run is not an argument",
        "--config.client.lr=0.1 must not be given: nothing is trained for these blocks",
    ]


def test_a_field_that_the_other_library_would_not_get_is_refused():
    given = ["--config.model.width=2.0", "--config.client.lr=0.05"]
    with pytest.raises(SettingsError) as error:
        lines_of(W1, (0,), given)
    refused, known = error.value.problems
    assert refused.startswith("--config.model.width must not be given: the other")
    # A field that the line sets may not be given, although it changes no result.
    assert "server.lr" in known and "report.every" not in known
    assert flatten(load_config("bench:w1", [])).keys() >= PFL_FIELDS
    (line,) = lines_of(W1, (0,), given[1:])
    assert line.runs[0].config.client.lr == 0.05


def test_results_are_those_of_finished_runs_and_name_the_others(
    tmp_path, capsys, monkeypatch
):
    lines = (
        Line("SCAFFOLD", "quickstart", ("rounds=20",), published="84.2 %"),
        Line("FedDP", "quickstart", ("rounds=20", "client.lr=0.3")),
        Line("diverged", "quickstart", ("rounds=20", "client.lr=0.5")),
    )
    blocks = (
        Block("all", "Ten clients", lines),
        Block("gates", "Gates", lines[:1], of_runs(swapped_gates), of_checkpoints=True),
        Block("none", "Others", lines[2:]),
    )
    table = Table("What for?", blocks, (0, 1))
    found = lines_of(table, table.seeds, [])
    for run in (*found[0].runs, *found[1].runs[:1]):
        config = config_of(seed=run.config.seed, **{"eval.every": 1})
        write_finished(tmp_path / run.folder, config)
    log = tmp_path / f"{found[2].runs[1].folder}.log"
    log.parent.mkdir(parents=True, exist_ok=True)
    log.write_text("round 3\nerror: Round 4: the loss of client 5 is not finite\n")
    out = tmp_path / "out"
    written = results.write_tables(table, found, tmp_path, out, stopped=False)
    text = written.text
    assert written.code == 1
    assert "error: Gates: The checkpoint" in capsys.readouterr().err
    assert text == (tmp_path / "out/table.md").read_text()
    title, _, heading, _, header, _, first, second, *rest = text.splitlines()
    assert (title, heading) == ("# What for?", "## Ten clients")
    assert header.endswith("| published |") and first.endswith("| 84.2 % |")
    assert first.startswith("| SCAFFOLD | 20 | 2 |")
    assert second.startswith("| FedDP | 20 | 1 |")
    _, change, _, *missing = rest
    damaged = next(line for line in missing if line.startswith("failed: "))
    assert "manifest.json cannot be read" in damaged
    assert change.startswith("Change of the accuracy in the last fifth")
    diverged = [
        "Not finished: diverged (2 of 2 seeds). "
        "error: Round 4: the loss of client 5 is not finite",
        "",
    ]
    assert missing == [
        "Not finished: FedDP (1 of 2 seeds).",
        "",
        *diverged,
        "## Gates",
        "",
        damaged,
        "",
        "## Others",
        "",
        *diverged[:1],
    ]
    assert not (tmp_path / "out/all").exists()
    assert results.draw_pages(written) == 0
    assert (tmp_path / "out/all/index.html").exists()
    assert not (tmp_path / "out/none").exists()
    changed = ["--config.eval.every=1"]
    stopped = results.write_tables(
        table, found, tmp_path, out, overrides=changed, stopped=True
    )
    assert stopped.text.splitlines()[2] == "All runs with `--config.eval.every=1`."
    assert (stopped.code, capsys.readouterr().err) == (0, "")
    gates = stopped.text.split("## Gates\n\n")[1]
    assert gates.startswith("not measured: the command was stopped\n")
    monkeypatch.setattr(results, "is_installed", lambda: False)
    assert results.draw_pages(written) == 0
    assert "pages: not drawn; for pictures: pip" in capsys.readouterr().out


def test_a_call_with_other_seeds_keeps_the_tables_of_the_own_ones(tmp_path):
    lines = (Line("SCAFFOLD", "quickstart", ("rounds=20",)),)
    table = Table("What for?", (Block("all", "Ten clients", lines),), (0, 1))
    out = tmp_path / "out"
    for seeds, folder in (
        ((0, 1), out),
        ((1, 0), out),
        ((0,), out / "seeds=0"),
        ((2, 1, 0), out / "seeds=0,1,2"),
    ):
        found = lines_of(table, seeds, [])
        written = results.write_tables(table, found, tmp_path, out, stopped=False)
        assert written.file == folder / "table.md"
        assert f"SCAFFOLD ({len(seeds)} of" in (folder / "table.md").read_text()
    assert "SCAFFOLD (2 of 2 seeds)" in (out / "table.md").read_text()


def test_gates_keep_half_of_the_multiplications_as_in_the_paper():
    """VGG-11: convolutions of the specification's table, two dense layers."""
    _, _, vgg11, resnet32 = multiplications().splitlines()
    assert "| 153,293,824 |" in vgg11 and "| 49.9% |" in vgg11 and "| 50% |" in vgg11
    assert "| 68,862,592 |" in resnet32 and "| 50.1% |" in resnet32


def test_runs_that_share_their_time_are_compared_at_a_common_round(tmp_path):
    """Runs of 12 and 8 rounds, of which every fourth is evaluated."""
    lines = (Line("a", "quickstart"), Line("b", "quickstart", ("client.lr=0.3",)))
    table = Table("How far?", (Block("a", "A", lines),), (0,), share_time=True)
    found = lines_of(table, (0,), [])
    for each, rounds in zip(found, (12, 8), strict=True):
        config = config_of(rounds=rounds, **{"eval.every": 4})
        write_run(tmp_path / each.runs[0].folder, config, records=False)
    out = tmp_path / "out"
    text = results.write_tables(table, found, tmp_path, out, stopped=False).text
    assert "| a | 8 | 1 |" in text and "| b | 8 | 1 | " in text


def test_lines_that_still_change_are_named_also_if_they_fall(tmp_path):
    """Rounds 9 and 10 less 7 and 8: -2 and -4 points, and +0.5 in the third line."""
    changes = {"a": (0.0, 0.0), "b": (-0.02, -0.04), "c": (0.005, 0.005)}
    lines = [
        Line(name, "quickstart", (f"client.lr=0.{n}",))
        for n, name in enumerate(changes, 1)
    ]
    blocks = (Block("all", "All", tuple(lines)),)
    table = Table("How far?", blocks, (0, 1), share_time=True)
    found = lines_of(table, (0, 1), [])
    for each, wanted in zip(found, changes.values(), strict=True):
        for run, change in zip(each.runs, wanted, strict=True):
            config = config_of(rounds=10, seed=run.config.seed, **{"eval.every": 1})
            own = {HEADLINE: lambda n, c=change: 0.5 + c * (n > 8)}
            write_run(tmp_path / run.folder, config, records=False, **own)
    out = tmp_path / "out"
    text = results.write_tables(table, found, tmp_path, out, stopped=False).text
    assert "or more: a +0.0 (at most 0.0), b -3.0 (at most 4.0).\n" in text


def reproduce(*flags, **env):
    return subprocess.run(
        [sys.executable, "-m", "launch.reproduce", *flags],
        cwd=ROOT,
        env=os.environ | {"JAX_PLATFORMS": "cpu"} | env,
        capture_output=True,
        text=True,
        check=False,
    )


def test_the_command_names_every_mistake_and_says_what_is_left(tmp_path):
    wrong = reproduce("--table=gate", "--seeds=0,00", "--workdir=", "--minutes=nan")
    assert wrong.returncode == 1
    assert wrong.stderr.splitlines() == [
        f"error: --table must be one of {', '.join(TABLES)}, got 'gate'",
        "error: --minutes must be above 0, got nan",
        "error: --seeds must be different whole numbers, at least 0, got '0,00'",
        "error: --workdir must name a folder, got ''",
    ]
    near = reproduce("--table=gates", "--seed=7", "--dry_run")
    assert near.stderr == ("error: --seed is not an argument; did you mean --seeds?\n")
    unfit = reproduce("--table=w1", "--jobs=2", "--blocks=w1,w2")
    assert unfit.stderr.splitlines() == [
        "error: --blocks must be of w1 for w1, got 'w2'",
        "error: --jobs must be 1 for w1 with --scale=cpu, whose runs are timed, got 2",
    ]
    flags = (
        "--dry_run",
        f"--workdir={tmp_path}",
        "--seeds=4",
        "--blocks=step_size_0.3",
    )
    left = reproduce("--table=gates", *flags)
    assert (left.returncode, left.stderr) == (0, "")
    assert left.stdout.startswith("What do learned gates learn?")
    assert "| feddp_cpu/digits,scaffold_dp,10/client.lr=0.3 | 100 | " in left.stdout
    assert "client.lr=0.03" not in left.stdout
    accelerated = "--table=accelerator", "--scale=gpu", f"--workdir={tmp_path}"
    nowhere = reproduce(*accelerated)
    assert nowhere.returncode == 1
    assert nowhere.stderr.splitlines() == [
        "error: --scale=gpu needs an accelerator, and JAX finds none",
        "error: pip install -e '.[cuda]' or '.[tpu]' brings JAX for one",
    ]
    unknown = reproduce(*accelerated, JAX_PLATFORMS="abacus")
    assert any(
        line.startswith("error: JAX has said: ") and "abacus" in line
        for line in unknown.stderr.splitlines()
    )
    # A folder that cannot be made, so that nothing is downloaded.
    file = tmp_path / "file"
    file.touch()
    flags = (f"--config.data.dir={file / 'data'}", f"--workdir={tmp_path / 'runs'}")
    unread = reproduce("--table=scaffold", *flags)
    assert unread.returncode == 1
    assert unread.stderr.startswith(f"error: mnist is not prepared in {file / 'data'}")
    assert len(unread.stderr.splitlines()) == 1
    assert list(tmp_path.iterdir()) == [file]
