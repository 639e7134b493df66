"""Evaluates the newest checkpoint of a workdir.

python -m fedjax_prune evaluate --workdir=DIR

It prints the accuracies of the shared model on the test set and on the data of the
clients: all of them, or the first `eval.num_clients` if the run's configuration limits
them. In a checkout `python -m launch.evaluate` is the same. For example:

    python -m fedjax_prune evaluate --workdir=runs/quickstart
    python -m fedjax_prune evaluate --workdir=runs/table/feddp,10/client.lr=0.1/seed=0
    JAX_PLATFORMS=cpu python -m fedjax_prune evaluate --workdir=~/runs/feddp
"""

from absl import app, flags

from fedjax_prune.runs import console, report, train
from fedjax_prune.runs.settings import SettingsError
from fedjax_prune.runs.workdir import local_folder, read_usable_config

from . import runtime
from .errors import exit_code
from .flags import not_arguments, parse

_WORKDIR = flags.DEFINE_string("workdir", None, "folder of a run")


def main(argv: list[str]) -> int:
    """Returns the exit code: 0, or 1 if there is nothing to evaluate."""

    def evaluate() -> int:
        found = not_arguments(argv[1:])
        workdir = _WORKDIR.value or ""
        if not workdir:
            found.append("--workdir must name the folder of a run, got ''")
        if found:
            raise SettingsError(found)
        folder = local_folder(workdir)
        runtime.configure()
        row = train.evaluate_workdir(folder)
        facts = report.accuracies(read_usable_config(folder), row)
        number = row["eval/clients"]
        if number == 1:
            own = f"{row['eval/client_local/mean']:.1%}"
            facts["own validation"] = f"{own} of the one client that is evaluated"
        facts["evaluated"] = (
            f"{number} client{'s' * (number > 1)}, {row['eval/examples']} test examples"
        )
        console.print_table("Result", facts)
        return 0

    return exit_code(evaluate)


if __name__ == "__main__":
    app.run(main, flags_parser=parse)
