"""Evaluates the newest checkpoint of a workdir.

python -m launch.evaluate --workdir=DIR
"""

from absl import app, flags

from fedjax_prune import console, train
from fedjax_prune.settings import SettingsError
from launch import runtime
from launch.errors import exit_code
from launch.flags import parse

_WORKDIR = flags.DEFINE_string("workdir", None, "folder of a run")


def main(argv: list[str]) -> int:
    """Returns the exit code: 0, or 1 if there is nothing to evaluate."""

    def evaluate() -> int:
        found = [f"{argument} is not an argument" for argument in argv[1:]]
        workdir = _WORKDIR.value or ""
        if not workdir:
            found.append("--workdir must name the folder of a run, got ''")
        if found:
            raise SettingsError(found)
        runtime.prepare()
        results = train.evaluate_workdir(workdir)
        console.print_summary({k: _shown(v) for k, v in results.items()})
        return 0

    return exit_code(evaluate)


def _shown(value: object) -> str:
    return f"{value:.4f}" if isinstance(value, float) else str(value)


if __name__ == "__main__":
    app.run(main, flags_parser=parse)
