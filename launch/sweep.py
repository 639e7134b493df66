"""Trains a grid of configurations, some side by side, and writes one table.

python -m fedjax_prune sweep --config=CONFIG --workdir=DIR [--FLAG=VALUE ...]

There is one run for each combination of a string of --settings, which CONFIG takes, and
a value of each axis. Its folder in the workdir is made of them, such as
`feddp,10/client.lr=0.1/seed=0`, and its output goes to the file of that name with
`.log`. Semicolons separate values that have commas: `--axis="FIELD=a,b;c"`. Mistakes in
any run are found before the first one starts. If a run fails, the others go on. After
Ctrl-C and SIGTERM, on which all runs save, the same command goes on from there.

Shards are parts for machines, for accelerators (CUDA_VISIBLE_DEVICES=0) or for tasks of
a Slurm array. They may share a workdir: the same command without --shard then prints
the whole table and writes it into DIR/table.md. Its accuracies are means over the axis
`seed` with 95 % intervals. The exit code is 0 if all runs are finished, 1 if one failed
and 130 after a signal. `python -m launch.sweep` is the same in a checkout. For example:

    python -m fedjax_prune sweep --config=quickstart --workdir=runs/sweep --jobs=2 \\
        --axis=cohort_size=5,10 --axis=seed=0,1,2
    python -m fedjax_prune sweep --config=feddp_cpu --workdir=runs/table --dry_run \\
        --settings="mnist,fedavg,10 mnist,feddp,10" --axis=seed=0,1,2
    python -m fedjax_prune sweep --config=quickstart --workdir=runs/sweep --shard=2/8 \\
        --axis=data.alpha=0.1,1 --axis=algorithm.name=fedavg,scaffold
"""

from collections.abc import Sequence
from pathlib import Path

from absl import app, flags

from fedjax_prune.runs import savings, tables
from fedjax_prune.runs.files import replace
from fedjax_prune.runs.workdir import local_folder

from . import grid, runtime, train_grid
from .errors import exit_code
from .flags import parse
from .grid import Run

_CONFIG = flags.DEFINE_string("config", None, "file or bundled name, :STRING after it")
_SETTINGS = flags.DEFINE_string("settings", "", "config strings, separated by spaces")
_AXES = flags.DEFINE_multi_string("axis", [], "FIELD=VALUE,VALUE,...; once per field")
_WORKDIR = flags.DEFINE_string("workdir", None, "folder of all runs")
_JOBS = flags.DEFINE_integer(
    "jobs", 1, "runs at a time, each on its share of the cores; 1 on a TPU", 1, 1000
)
_SHARD = flags.DEFINE_string("shard", "", "i/n: the i-th of n parts, from 1")
_DRY_RUN = flags.DEFINE_bool("dry_run", False, "print the runs and what they cost")


def main(argv: list[str]) -> int:
    """Returns the exit code: 0 if every run is finished."""

    def sweep() -> int:
        runtime.hold_no_device()
        settings = _SETTINGS.value.split()
        found = [] if _WORKDIR.value else ["--workdir must name a folder, got ''"]
        if not settings and not _AXES.value:
            found.append("--settings or --axis must be given")
        shard = grid.read_shard(_SHARD.value, found)
        runs = grid.make_grid(
            _CONFIG.value, settings, _AXES.value, argv[1:], found=found
        )
        workdir = local_folder(_WORKDIR.value or "")
        own = grid.of_shard(runs, shard)
        train_grid.check_begun(runs, workdir)
        named = [(run.folder, run) for run in own]
        if _DRY_RUN.value:
            print(train_grid.cost_table(named, workdir), end="")
            return 0
        train_grid.check_data(own, workdir)
        train_grid.check_networks(named, workdir)
        code = train_grid.train_all(own, workdir, jobs=_JOBS.value, overrides=argv[1:])
        table = _table(runs, workdir)
        print(table, end="")
        # Shards that share the workdir would replace each other's.
        if table and len(own) == len(runs):
            replace(workdir / "table.md", table.encode())
        return code

    return exit_code(sweep)


def _table(runs: Sequence[Run], workdir: Path) -> str:
    """The table of finished runs, also of those of other shards, and what it lacks."""
    settings: dict[str, list[Run]] = {}
    for run in runs:
        settings.setdefault(run.group or str(_CONFIG.value), []).append(run)
    ended = {run.folder for run in runs if train_grid.is_finished(run, workdir)}
    folders, left = {}, {}
    for name, each in settings.items():
        left[name] = [run for run in each if run.folder not in ended]
        if done := [workdir / run.folder for run in each if run.folder in ended]:
            folders[name] = done
    if not folders:
        return ""
    has_masks = any(savings.has_masks(f) for each in folders.values() for f in each)
    table = (tables.pruning_table if has_masks else tables.comparison)(folders)
    which = "the evaluations in the last fifth of the rounds"
    if has_masks:
        which = f"the last {tables.LAST} evaluations"
    seeds = {name: len(each) for name, each in settings.items()}
    words = [f"Accuracies are means of {which}; ± is a 95% interval.\n"]
    words += train_grid.unfinished(left, seeds, workdir)
    compared, *others = folders
    if others and compared != next(iter(settings)):
        words.append(f"Differences are those to {compared}.\n")
    return "\n".join([table, *words])


if __name__ == "__main__":
    app.run(main, flags_parser=parse)
