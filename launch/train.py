"""Trains from a config file, or goes on where the same command was stopped.

python -m fedjax_prune train --config=CONFIG --workdir=DIR [--config.FIELD=VALUE ...]

CONFIG is a Python file or the name of a bundled configuration; `CONFIG:STRING` gives it
a string. In a checkout `python -m launch.train` is the same. For example:

    python -m fedjax_prune train --config=quickstart --workdir=runs/quickstart
    python -m fedjax_prune train --config=cifar10_cpu:feddp,10 --workdir=runs/feddp \\
        --config.rounds=30
"""

from absl import app, flags

from fedjax_prune.runs import train
from fedjax_prune.runs.workdir import local_folder

from . import runtime
from .errors import exit_code
from .flags import load_config, parse

_CONFIG = flags.DEFINE_string("config", None, "file or bundled name, :STRING after it")
_WORKDIR = flags.DEFINE_string("workdir", None, "folder of the run, made if missing")


def main(argv: list[str]) -> int:
    """Returns the exit code: 0, 1 after a mistake or failure, 130 after a signal."""

    def run() -> int:
        workdir = _WORKDIR.value or ""
        missing = [] if workdir else ["--workdir must name a folder, got ''"]
        config = load_config(_CONFIG.value, argv[1:], missing)
        folder = local_folder(workdir)
        runtime.configure()
        return train.run(config, folder)

    return exit_code(run)


if __name__ == "__main__":
    app.run(main, flags_parser=parse)
