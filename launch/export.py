"""Writes the trained shared model of a run, without the channels that were pruned.

python -m fedjax_prune export --workdir=DIR --output=FOLDER [--nocompact]

`fedjax_prune.runs.export.load_model(FOLDER)` reads it. In a checkout
`python -m launch.export` is the same. For example:

    python -m fedjax_prune export --workdir=runs/quickstart --output=model
    python -m fedjax_prune export --workdir=runs/autoflip --output=same --nocompact
    python -m fedjax_prune export --workdir=runs/sweep/seed=0 --output=~/models/seed0
"""

from absl import app, flags

from fedjax_prune.models import costs
from fedjax_prune.runs import console
from fedjax_prune.runs.export import export_model
from fedjax_prune.runs.settings import SettingsError
from fedjax_prune.runs.workdir import local_folder

from . import runtime
from .errors import exit_code
from .flags import parse

_WORKDIR = flags.DEFINE_string("workdir", None, "folder of a run")
_OUTPUT = flags.DEFINE_string("output", None, "new folder for the model")
_COMPACT = flags.DEFINE_bool("compact", True, "slice removed channels out")


def main(argv: list[str]) -> int:
    """Returns the exit code: 0, or 1 if there is nothing to export."""

    def run() -> int:
        found = [f"{argument} is not an argument" for argument in argv[1:]]
        workdir, output = _WORKDIR.value or "", _OUTPUT.value or ""
        if not workdir:
            found.append("--workdir must name the folder of a run, got ''")
        if not output:
            found.append("--output must name a new folder, got ''")
        if found:
            raise SettingsError(found)
        folder, target = local_folder(workdir), local_folder(output)
        runtime.configure()
        exported = export_model(folder, target, compact=_COMPACT.value)
        num_params = costs.num_entries(exported.variables.params)
        left = getattr(exported.model, "left", {}).items()
        console.print_table(
            "Result",
            {"model": type(exported.model).__name__, "parameters": f"{num_params:,}"}
            | {f"{name} left": f"{count:,}" for name, count in left}
            | {"files": output},
        )
        return 0

    return exit_code(run)


if __name__ == "__main__":
    app.run(main, flags_parser=parse)
