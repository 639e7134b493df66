"""Draws finished or running runs: pictures, and one page that needs no network.

python -m fedjax_prune report --workdirs=DIR,DIR,... [--out=report] [--target=0.8]
python -m fedjax_prune report --workdirs=DIR --live

It writes index.html, which any browser opens, and each picture as PNG and as SVG. A DIR
without a run stands for all runs below it that have finished a round, such as those of
a sweep. Runs that differ in nothing but their seed become one line with a band; other
runs become lines that are named by the fields in which they differ. What a run has
recorded every `report.every` rounds is drawn, too: channels that clients and classes
select, each client's accuracy, who holds which classes, mask churn. Pictures need
`pip install 'fedjax_prune[report]'`.

--live follows one run in the terminal until its last round or Ctrl-C and draws nothing.
In a checkout `python -m launch.report` is the same. For example:

    python -m fedjax_prune report --workdirs=runs/quickstart
    python -m fedjax_prune report --workdirs=runs/sweep --out=sweep --target=0.85
    python -m fedjax_prune report --workdirs=runs/quickstart --live
"""

import warnings
from pathlib import Path

from absl import app, flags

from fedjax_prune.runs import live
from fedjax_prune.runs.metrics_log import read_metrics
from fedjax_prune.runs.page.write import write_report
from fedjax_prune.runs.settings import SettingsError
from fedjax_prune.runs.workdir import folders_named, local_folder, runs_below

from .errors import exit_code
from .flags import not_arguments, parse

_WORKDIRS = flags.DEFINE_list("workdirs", [], "folders of runs, separated by commas")
_OUT = flags.DEFINE_string("out", "report", "folder of page and pictures")
_TARGET = flags.DEFINE_float(
    "target", 0.0, "accuracy whose costs are drawn; 0 is eval.target_accuracy", 0.0, 1.0
)
_LIVE = flags.DEFINE_bool("live", False, "follow one running workdir in the terminal")


def main(argv: list[str]) -> int:
    """Returns the exit code: 0, or 1 if there is nothing to draw."""

    def report() -> int:
        found = not_arguments(argv[1:])
        given = [part for part in _WORKDIRS.value if part]
        if not given:
            found.append("--workdirs must name the folders of runs, got ''")
        if not _OUT.value:
            found.append("--out must name a folder, got ''")
        folders = folders_named(given)
        if _LIVE.value and len(folders) > 1:
            found.append(f"--live follows one run, got {len(folders)} workdirs")
        if found:
            raise SettingsError(found)
        if _LIVE.value:
            live.follow(folders[0])
            return 0
        runs = [run for folder in folders for run in _drawn(folder)]
        print(write_report(runs, local_folder(_OUT.value), wanted=_TARGET.value))
        return 0

    return exit_code(report)


def _drawn(folder: Path) -> list[Path]:
    """The runs that a folder stands for; those in their first round are left out."""
    below = runs_below(folder)
    begun = [run for run in below if any(r["round"] > 0 for r in read_metrics(run))]
    if not begun or below == [folder]:
        return below or [folder]
    for run in below:
        if run not in begun:
            warnings.warn(f"{run} is left out: it has no finished round", stacklevel=2)
    return begun


if __name__ == "__main__":
    app.run(main, flags_parser=parse)
