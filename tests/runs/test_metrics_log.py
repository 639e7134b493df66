"""The log of metrics: what is written comes back, and nothing is lost silently."""

import json
import math
import os
import warnings
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest

from configs import base
from fedjax_prune.runs import checkpoint, train
from fedjax_prune.runs.metrics_log import (
    open_metrics,
    read_metrics,
    restore_metrics,
)
from fedjax_prune.runs.workdir import open_workdir
from tests.small_runs import plain_config


@pytest.fixture
def workdir(tmp_path):
    with open_workdir(tmp_path) as folder:
        yield folder


def line(round, value=None):
    return f'{{"round": {round}, "x": {round / 2 if value is None else value}}}\n'


def written(workdir, *lines):
    file = workdir / "metrics.jsonl"
    file.write_text("".join(lines))
    return file


def restored(workdir, finished, first=1, save_every=2):
    """The rounds of the rows that stay, and the warning, if there is one."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        restore_metrics(workdir, finished, first=first, save_every=save_every)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        rows = read_metrics(workdir)
    assert len(caught) <= 1
    return [row["round"] for row in rows], [str(x.message) for x in caught]


def test_rows_are_flat_json_and_come_back(workdir):
    row = {"round": 1, "train/loss": np.float32(0.5), "clients": "1 2", "bytes": 2**40}
    with open_metrics(workdir, 0) as log:
        log.write(row)
        assert len(read_metrics(workdir)) == 1  # readable while the run goes on
        log.write({"round": np.int64(2), "train/loss": jnp.float32(jnp.nan)})
    lines = (workdir / "metrics.jsonl").read_text().splitlines()
    assert json.loads(lines[0]) == row
    assert lines[1] == '{"round": 2, "train/loss": null}'
    rows = read_metrics(workdir)
    assert rows[0] == row and math.isnan(rows[1]["train/loss"])


@pytest.mark.parametrize("algorithm", ["fedavg", "fedsnip"])
def test_rows_are_on_the_disk_before_a_checkpoint_counts_them(
    tmp_path, monkeypatch, algorithm
):
    """Also the row of a preparation."""
    events, fsync, begin = [], os.fsync, checkpoint.begin_save

    def record(descriptor):
        fsync(descriptor)
        if Path(f"/proc/self/fd/{descriptor}").resolve().name == "metrics.jsonl":
            events.append(("rows", len(read_metrics(tmp_path))))

    def begin_save(*args, **kwargs):
        events.append(("checkpoint", args[1]))
        return begin(*args, **kwargs)

    monkeypatch.setattr(os, "fsync", record)
    monkeypatch.setattr(checkpoint, "begin_save", begin_save)
    config = plain_config(rounds=3)
    config.algorithm = base.algorithm(algorithm)
    assert train.run(config, tmp_path) == 0
    extra = int(algorithm == "fedsnip")
    prepared = [("rows", 1), ("checkpoint", 0)] * extra
    assert events == [
        *prepared,
        ("rows", 2 + extra),
        ("checkpoint", 2),
        ("rows", 3 + extra),
        ("checkpoint", 3),
    ]


def test_what_a_killed_run_leaves_is_cut_in_silence(workdir):
    torn = '{"round": 5, "x"'
    file = written(workdir, *map(line, (1, 2, 3, 4)), torn)
    assert restored(workdir, 2) == ([1, 2], [])
    assert file.read_text() == line(1) + line(2)
    with open_metrics(workdir, 2) as log:
        log.write({"round": 3, "x": 9.0})
    assert file.read_text() == line(1) + line(2) + line(3, 9.0)
    assert not (workdir / "metrics.jsonl.damaged").exists()


def test_before_the_first_checkpoint_all_rows_are_cut_in_silence(workdir):
    written(workdir, line(0), line(1), '{"round"')
    assert restored(workdir, None, first=0) == ([], [])


def test_a_new_run_has_no_rows_to_miss(workdir):
    assert restored(workdir, None) == ([], [])
    assert not (workdir / "metrics.jsonl").exists()


FOREIGN = [
    b"3",
    b"[]",
    b'{"a": 1}',
    b"\xff",
    b"null",
    b'{"round": true}',
    b'{"round": -1}',
    b'{"round": 1.0}',
    b"\0" * 9,
    b"[" * 99999,
    b'{"round": 2, "x": 1.0{"round": 2, "x": 1.0}',
]


@pytest.mark.parametrize("foreign", FOREIGN)
def test_rows_behind_a_damaged_line_stay_and_the_line_is_kept_aside(foreign, workdir):
    before = b"\n".join([line(1)[:-1].encode(), foreign, line(2).encode()])
    file = workdir / "metrics.jsonl"
    file.write_bytes(before)
    with pytest.warns(UserWarning, match=r"jsonl: cannot read line 2\.$"):
        assert [row["round"] for row in read_metrics(workdir)] == [1, 2]
    rounds, (said,) = restored(workdir, 2)
    assert rounds == [1, 2]
    assert said == (
        f"{file}: cannot read line 2. The file is kept as metrics.jsonl.damaged."
    )
    assert (workdir / "metrics.jsonl.damaged").read_bytes() == before
    assert file.read_text() == line(1) + line(2)


def test_a_damaged_file_is_never_overwritten(workdir):
    for number in ("", "2", "3"):
        file = written(workdir, line(1), f"x{number}\n")
        content = file.read_bytes()
        restored(workdir, 1)
        aside = workdir / f"metrics.jsonl.damaged{number}"
        assert aside.read_bytes() == content


def test_missing_and_repeated_rounds_are_named_in_one_warning(workdir):
    rows = [line(1), "x\n", line(6), line(5), line(6, 9.0), line(10)]
    file = written(workdir, *rows)
    with pytest.warns(UserWarning, match="cannot read line 2"):
        rows = read_metrics(workdir)
    assert [(row["round"], row["x"]) for row in rows] == [
        (1, 0.5),
        (5, 2.5),
        (6, 9.0),
        (10, 5.0),
    ]
    rounds, (said,) = restored(workdir, 10, first=0)
    assert rounds == [1, 5, 6, 10]
    assert said == (
        f"{file}: cannot read line 2; no row of rounds 0, 2 to 4, 7 to 9; several rows "
        "of round 6; the last counts. The file is kept as metrics.jsonl.damaged."
    )
    assert file.read_text() == line(1) + line(5) + line(6, 9.0) + line(10)


def test_a_removed_file_is_named(workdir):
    file = workdir / "metrics.jsonl"
    assert restored(workdir, 10) == ([], [f"{file}: no row of rounds 1 to 10."])
    assert list(workdir.glob("metrics*")) == []


def test_a_cut_row_that_a_checkpoint_covers_is_named(workdir):
    file = written(workdir, line(1), line(2)[:-4])
    rounds, (said,) = restored(workdir, 2)
    assert rounds == [1]
    assert said == (
        f"{file}: cannot read line 2; no row of round 2. "
        "The file is kept as metrics.jsonl.damaged."
    )


def test_a_last_row_that_lacks_only_its_end_counts(workdir):
    written(workdir, line(1), line(2)[:-1])
    assert restored(workdir, 2) == ([1, 2], [])
    with open_metrics(workdir, 2) as log:
        log.write({"round": 3, "x": 1.5})
    assert [row["round"] for row in read_metrics(workdir)] == [1, 2, 3]


@pytest.mark.parametrize("finished", [None, 2])
def test_rows_whose_checkpoints_are_gone_are_kept_aside(finished, workdir):
    """A killed run has at most 2 * `save_every` rows more than its checkpoint."""
    file = written(workdir, *map(line, range(1, 10)))
    before = file.read_bytes()
    rounds, (said,) = restored(workdir, finished)
    assert rounds == list(range(1, (finished or 0) + 1))
    first = (finished or 0) + 5
    assert f"{file}: rows of rounds {first} to 9, but no checkpoint. The" in said
    assert (workdir / "metrics.jsonl.damaged").read_bytes() == before


@pytest.mark.parametrize("link", ["symlink_to", "hardlink_to"])
@pytest.mark.parametrize("name", ["metrics.jsonl", ".metrics.jsonl.new"])
def test_the_file_that_a_link_names_stays_as_it_is(name, link, workdir):
    outside = workdir / "outside"
    outside.write_text(line(1) + line(2))
    getattr(workdir / name, link)(outside)
    if name.startswith("."):
        written(workdir, line(1))
    assert restored(workdir, 1) == ([1], [])
    with open_metrics(workdir, 1) as log:
        log.write({"round": 2, "x": 3.0})
    assert outside.read_text() == line(1) + line(2)
    file = workdir / "metrics.jsonl"
    assert not file.is_symlink() and file.read_text() == line(1) + line(2, 3.0)


def test_a_dangling_link_makes_no_file(workdir):
    (workdir / "metrics.jsonl").symlink_to(workdir / "outside")
    assert restored(workdir, None) == ([], [])
    with open_metrics(workdir, 0) as log:
        log.write({"round": 1, "x": 0.5})
    assert not (workdir / "outside").exists()


def test_scalars_go_to_tensorboard(workdir):
    with open_metrics(workdir, 0) as log:
        log.write({"round": 1, "train/loss": 0.5, "names": "x", "bad": np.nan})
    (file,) = (workdir / "tensorboard").iterdir()
    content = file.read_bytes()
    assert b"train/loss" in content
    assert b"names" not in content and b"bad" not in content


def test_two_logs_of_one_second_do_not_overwrite_each_other(workdir):
    for finished in (-1, 0):
        with open_metrics(workdir, finished) as log:
            log.write({"round": finished + 1, f"of/{finished}": 0.5})
    contents = [f.read_bytes() for f in (workdir / "tensorboard").iterdir()]
    assert sorted(c.count(b"of/") for c in contents) == [1, 1]
