"""Trains from a config file, or goes on where the same command was stopped.

python -m launch.train --config=configs/NAME.py --workdir=DIR [--config.field=value]
"""

from absl import app, flags

from fedjax_prune import train
from launch import runtime
from launch.errors import exit_code
from launch.flags import load_config, parse

_CONFIG = flags.DEFINE_string("config", None, "config file, or FILE:STRING")
_WORKDIR = flags.DEFINE_string("workdir", None, "folder of the run, made if missing")


def main(argv: list[str]) -> int:
    """Returns the exit code: 0, or 1 after a mistake or a failed run."""

    def run() -> int:
        workdir = _WORKDIR.value or ""
        missing = [] if workdir else ["--workdir must name a folder, got ''"]
        config = load_config(_CONFIG.value, argv[1:], missing)
        runtime.prepare()
        return train.run(config, workdir)

    return exit_code(run)


if __name__ == "__main__":
    app.run(main, flags_parser=parse)
