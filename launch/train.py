"""Trains from a config file, or goes on where the same command was stopped.

python -m fedjax_prune train --config=CONFIG --workdir=DIR [--config.FIELD=VALUE ...]

CONFIG is a Python file or the name of a bundled configuration; `CONFIG:STRING` gives it
a string. On a TPU pod, under Slurm and on Kubernetes the same command is started on
every host and JAX finds the others. Elsewhere each process is told its place, as in the
third example; all of them use one workdir on a disk that they share. If one process is
lost, the others say which within a minute and end with exit code 75; so does a process
that has not reached the others for five minutes. In a checkout `python -m launch.train`
is the same. For example:

    python -m fedjax_prune train --config=quickstart --workdir=runs/quickstart
    python -m fedjax_prune train --config=feddp_cpu:cifar10,feddp,10 \\
        --workdir=runs/feddp --config.rounds=30 --config.client.lr=0.05
    python -m fedjax_prune train --config=quickstart --workdir=runs/quickstart \\
        --coordinator_address=localhost:1234 --num_processes=2 --process_id=0
"""

from absl import app, flags

from fedjax_prune.runs import machine, train
from fedjax_prune.runs.workdir import local_folder

from . import cluster, guard, runtime
from .errors import exit_code
from .flags import load_config, parse

_CONFIG = flags.DEFINE_string("config", None, "file or bundled name, :STRING after it")
_WORKDIR = flags.DEFINE_string("workdir", None, "folder of the run, made if missing")
_COORDINATOR = flags.DEFINE_string(
    "coordinator_address", None, "HOST:PORT of the first of several processes"
)
_NUM_PROCESSES = flags.DEFINE_integer(
    "num_processes", None, "how many processes train together"
)
_PROCESS_ID = flags.DEFINE_integer(
    "process_id", None, "number of this one of them, from 0"
)


def main(argv: list[str]) -> int:
    """Returns the exit code.

    It is 0, 1 after a mistake or failure, 130 after a signal, and 75 if another of
    several processes was lost or not reached.
    """

    def run() -> int:
        workdir = _WORKDIR.value or ""
        missing = [] if workdir else ["--workdir must name a folder, got ''"]
        config = load_config(_CONFIG.value, argv[1:], missing)
        folder = local_folder(workdir)
        seat = cluster.find_seat(
            _COORDINATOR.value, _NUM_PROCESSES.value, _PROCESS_ID.value
        )
        if seat is not None:
            # Told before it waits for the others.
            machine.require_shared_out(config, seat.num_processes)
        runtime.configure()
        if seat is None:
            return train.run(config, folder)

        def together() -> int:
            with cluster.joined(seat):
                return train.run(config, folder)

        return guard.guarded(lambda: exit_code(together), seat)

    return exit_code(run)


if __name__ == "__main__":
    app.run(main, flags_parser=parse)
