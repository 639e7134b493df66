"""Trains the runs of a table of results, or goes on with them, and prints it.

python -m launch.reproduce --table=NAME [--scale=cpu|gpu] [--blocks=NAME,...]
    [--seeds=0,1,2] [--jobs=2] [--minutes=25] [--dry_run]
    [--workdir=runs/reproduce] [--config.FIELD=VALUE ...]

A table is a question and the runs that answer it, such as whether gates that learn are
better than gates that do not. All lines of a seed have the same splits and cohorts and,
where their networks agree, the same first weights. Before it starts, the command says
which blocks the table has and what is left to run and to measure; --blocks chooses some
of them. What it has measured is kept beside the table, and measured anew if its file is
deleted; what has failed is tried again by the next call. Runs that tables share are
trained once. After Ctrl-C, SIGTERM or --minutes, on which all runs save (pfl-research
does so every 50 rounds), the same command goes on. Of what is measured first, lanes are
kept one by one, and the times of a few images are measured in one go, also if --minutes
end. At its end it prints the blocks that were asked for, of all finished runs, ours
beside the published numbers, and writes them into WORKDIR/NAME_SCALE/table.md in place
of those of the last call. Those of other seeds than the table's own go to a folder
below it, such as `seeds=0,2,4`. Then it draws a page with pictures for each block.
After a stop it draws none, except for `accelerator`, whose runs share the time. Nor
does it measure checkpoints then, as fine-tuning does for minutes.

configs/README.md explains what is printed, and configs/results has what came out. Data
are read from --config.data.dir or TFDS_DATA_DIR. For example:

    python -m launch.reproduce --table=gates
    python -m launch.reproduce --table=feddp_mnist --jobs=2 --config.data.dir=DIR
    python -m launch.reproduce --table=feddp_mnist --blocks=10_fedavg --dry_run
"""

import math
import signal
import time

from absl import app, flags

from fedjax_prune.runs.interrupt import INTERRUPTED
from fedjax_prune.runs.settings import SettingsError
from fedjax_prune.runs.workdir import local_folder

from .. import runtime, train_grid
from ..errors import exit_code
from ..flags import parse
from . import results
from .table import Table, by_seed, lines_of, only
from .tables import TABLES

_TABLE = flags.DEFINE_string("table", None, f"what is run: {', '.join(TABLES)}")
_SCALE = flags.DEFINE_enum("scale", "cpu", ("cpu", "gpu"), "size of its runs")
_BLOCKS = flags.DEFINE_list("blocks", [], "of the table; all unless given")
_SEEDS = flags.DEFINE_list(
    "seeds",
    [],
    "of every line; tables of others than its own seeds are in a folder `seeds=...`",
)
_JOBS = flags.DEFINE_integer(
    "jobs",
    1,
    "runs at a time, each on its share of the cores; 1 if timed or on a TPU",
    1,
    1000,
)
_MINUTES = flags.DEFINE_float("minutes", math.inf, "after which runs save and stop")
_WORKDIR = flags.DEFINE_string("workdir", "runs/reproduce", "folder of all tables")
_DRY_RUN = flags.DEFINE_bool("dry_run", False, "say what is left to run, and end")


def main(argv: list[str]) -> int:
    """Returns the exit code: 0 if every run is finished."""

    def reproduce() -> int:
        runtime.hold_no_device()
        found = _mistakes()
        seeds = _read_seeds(_SEEDS.value, found)
        if not _WORKDIR.value:
            found.append("--workdir must name a folder, got ''")
        if found:
            raise SettingsError(found)
        table = only(TABLES[_TABLE.value or ""][_SCALE.value], _BLOCKS.value)
        workdir = local_folder(_WORKDIR.value)
        lines = lines_of(table, seeds or table.seeds, argv[1:])
        runs = by_seed(lines)
        train_grid.check_begun(runs, workdir)
        folder = workdir / f"{_TABLE.value}_{_SCALE.value}"
        print(f"{table.question}\n{table.differs}")
        print(f"blocks: {', '.join(block.name for block in table.blocks)}\n")
        print(
            train_grid.cost_table([(run.group, run) for run in runs], workdir),
            flush=True,
        )
        unmeasured = results.left_to_measure(table, folder)
        for block in unmeasured:
            print(f"to be measured first: {block.title}")
        if table.beside:
            print("to be trained after them: the other library, unless it is finished")
        if math.isfinite(_MINUTES.value):
            print(f"after {_MINUTES.value:g} minutes runs stop, and can go on")
        if _DRY_RUN.value:
            return 0
        if unmeasured or not all(train_grid.is_finished(r, workdir) for r in runs):
            _require_accelerator()
        end = time.monotonic() + 60 * _MINUTES.value
        train_grid.check_data(runs, workdir)
        # Ends the workers of a measurement on the way out, as Ctrl-C does.
        signal.signal(signal.SIGTERM, signal.default_int_handler)
        failed = results.measure_blocks(table, folder, end - time.monotonic())
        code = train_grid.train_all(
            runs,
            workdir,
            jobs=_JOBS.value,
            overrides=argv[1:],
            seconds=end - time.monotonic(),
            share_time=table.share_time,
        )
        if table.beside and code != INTERRUPTED:
            code = table.beside.train(lines, workdir, end - time.monotonic()) or code
        stopped = code == INTERRUPTED
        written = results.write_tables(
            table, lines, workdir, folder, overrides=argv[1:], stopped=stopped
        )
        print(f"{written.text}\ntable: {written.file}", flush=True)
        undrawn = 0
        # After the tables, because drawing takes longer and may be stopped. Where runs
        # share the time, most of them are stopped.
        if not stopped or table.share_time:
            undrawn = results.draw_pages(written)
        return code or failed or written.code or undrawn

    return exit_code(reproduce)


def _require_accelerator() -> None:
    """Refuses the size of an accelerator where JAX has none."""
    if _SCALE.value != "gpu":
        return
    platform, said = runtime.platform_of_children()
    if platform in ("cpu", ""):
        raise SettingsError(
            [
                "--scale=gpu needs an accelerator, and JAX finds none",
                *([f"JAX has said: {said}"] if said else []),
                "pip install -e '.[cuda]' or '.[tpu]' brings JAX for one",
            ]
        )


def _mistakes() -> list[str]:
    """One line for each mistake in the flags, except --seeds and --workdir."""
    found = []
    scales = TABLES.get(_TABLE.value or "", {})
    if not scales:
        known = ", ".join(TABLES)
        found.append(f"--table must be one of {known}, got {_TABLE.value!r}")
    elif _SCALE.value not in scales:
        known = ", ".join(scales)
        found.append(
            f"--scale must be {known} for {_TABLE.value}, got {_SCALE.value!r}"
        )
    else:
        found += _mistakes_for(scales[_SCALE.value])
    if not _MINUTES.value > 0:
        found.append(f"--minutes must be above 0, got {_MINUTES.value}")
    return found


def _mistakes_for(table: Table) -> list[str]:
    """One line for each flag that does not fit the table."""
    known = [block.name for block in table.blocks]
    found = [
        f"--blocks must be of {', '.join(known)} for {_TABLE.value}, got {name!r}"
        for name in _BLOCKS.value
        if name not in known
    ]
    if _JOBS.value > 1 and (table.share_time or table.beside):
        found.append(
            f"--jobs must be 1 for {_TABLE.value} with --scale={_SCALE.value}, "
            f"whose runs are timed, got {_JOBS.value}"
        )
    return found


def _read_seeds(texts: list[str], found: list[str]) -> list[int]:
    if all(text.isascii() and text.isdigit() for text in texts) and (
        len(set(map(int, texts))) == len(texts)
    ):
        return [int(text) for text in texts]
    found.append(
        f"--seeds must be different whole numbers, at least 0, got {','.join(texts)!r}"
    )
    return []


if __name__ == "__main__":
    app.run(main, flags_parser=parse)
