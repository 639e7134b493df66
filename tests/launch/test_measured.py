"""What is measured before runs, each once; lanes one number after another."""

import json

import numpy as np

from fedjax_prune.runs.interrupt import INTERRUPTED
from launch.benchmark.process import WorkerError
from launch.benchmark.suites import SUITES, Worker
from launch.reproduce import results
from launch.reproduce.lanes import lanes
from launch.reproduce.table import Block, Measured, Table


def four_clients(rng, rounds):
    return {
        "num_images": 40,
        "indices": np.arange(40),
        "offsets": np.arange(0, 41, 10),
        "cohorts": np.tile(np.arange(4), (rounds, 1)),
        "batch_size": 5,
    }


def few_lanes(threads, platform):
    options = ("--devices=1", "--precision=float32")
    return [
        [
            Worker(
                f"{number}, float32",
                options=(*options, f"--lanes={number}"),
                reference="1, float32",
            )
        ]
        for number in (1, 2, "none")
    ]


SMALL = SUITES["lanes"]._replace(
    image_shape=(12, 12, 3), make_data=four_clients, groups=few_lanes
)
ONE = {"name": "1, float32", "median": 10.0, "reference": "1, float32"}
KEPT = {"rows": [ONE | {"share": 0.5, "num_bytes": 5e6}], "device": "cpu"}


def test_what_was_measured_before_is_kept_and_the_rest_is_measured(tmp_path):
    """One lane was; with two the benchmark runs, on four small clients."""
    folder = tmp_path / "lanes"
    folder.mkdir()
    (folder / "1, float32.json").write_text(json.dumps(KEPT))
    assert lanes(folder, 0, SMALL) is None
    assert len(list(folder.iterdir())) == 1
    text, failed = lanes(folder, 600, SMALL)
    assert failed == ("none, float32",)
    (measured,) = json.loads((folder / "2, float32.json").read_text())["rows"]
    assert measured["median"] > 0 and measured["num_bytes"] > 0
    times, megabytes = measured["median"] / 10, measured["num_bytes"] / 1e6
    _, _, *rows = text.splitlines()
    assert rows == [
        "| 1, float32 | 10 | 1.00 | 50.0% | 5 | cpu |",
        f"| 2, float32 | {measured['median']:,.0f} | {times:.2f} | "
        f"{measured['share']:.1%} | {megabytes:,.0f} | cpu |",
        "| none, float32 | failed |  |  |  |  |",
    ]
    assert (folder / "lanes.png").read_bytes().startswith(b"\x89PNG")
    # What has failed is tried again, which takes time.
    assert lanes(folder, 0, SMALL) is None
    sooner = SMALL._replace(groups=lambda *_: few_lanes(*_)[:2])
    whole = Measured("\n".join(text.splitlines()[:-1]) + "\n")
    assert lanes(folder, 0, sooner) == whole


def test_what_is_timed_is_measured_once_and_a_failure_leaves_the_other_tables(
    tmp_path, capsys
):
    part, whole = Measured("| part |\n", ("64", "32")), Measured("| whole |\n")
    made = iter([WorkerError("no memory"), None, part, None, whole])

    def measured(folder, seconds):
        assert folder == out / "a" and 0 < seconds <= 60
        found = next(made)
        if isinstance(found, Exception):
            raise found
        return found

    blocks = (
        Block("a", "A", (), measure=measured),
        Block("b", "B", (), lambda *_: "| counted |\n"),
    )
    table = Table("What?", blocks, (0,), differs="Nothing differs.")
    out = tmp_path / "out"
    for code, shown in (
        (1, "not measured"),
        (INTERRUPTED, "not measured"),
        (1, "| part |"),
        (INTERRUPTED, "| part |"),
        (0, "| whole |"),
        (0, "| whole |"),
    ):
        assert results.measure_blocks(table, out, 60) == code
        assert results.left_to_measure(table, out) == ([*blocks[:1]] if code else [])
        text = results.write_tables(table, [], tmp_path, out, stopped=False).text
        assert text.startswith("# What?\n\nNothing differs.\n\n## A\n\n" + shown)
        assert text.endswith("## B\n\n| counted |\n")
    told = capsys.readouterr()
    assert "error: A: no memory" in told.err
    assert "error: A: 64, 32 failed; the same command tries again" in told.err
    assert {path.name for path in out.iterdir()} == {"a.md", "table.md"}
    assert "A: not ended; the same command goes on" in told.out
