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

from fedjax_prune.runs import console, train
from fedjax_prune.runs.settings import SettingsError
from fedjax_prune.runs.workdir import local_folder

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
        results = train.evaluate_workdir(folder)
        console.print_table("Result", {k: _shown(v) for k, v in results.items()})
        return 0

    return exit_code(evaluate)


def _shown(value: object) -> str:
    return f"{value:.4f}" if isinstance(value, float) else str(value)


if __name__ == "__main__":
    app.run(main, flags_parser=parse)
