"""Trains a run once more in a temporary folder and says what differs.

python -m fedjax_prune verify --workdir=DIR [--rounds=N] [--against=DIR2]

It compares the rows of metrics.jsonl exactly, except for times, and the newest
checkpoint, if the replay comes to its round. A run with `hash_every=1` also has a hash
of the server's state in each row. The exit code is 0 if all is equal and 1 if not. Then
the first difference is printed, and what differs in versions, processes, devices and
flags. On GPUs XLA adds in an order that changes, unless both runs have
XLA_FLAGS=--xla_gpu_deterministic_ops=true. The workdir is not written to; TMPDIR names
the place of the temporary folder. With --against two workdirs are compared, and nothing
is trained. In a checkout `python -m launch.verify` is the same. For example:

    python -m fedjax_prune verify --workdir=runs/quickstart
    python -m fedjax_prune verify --workdir=runs/quickstart --rounds=2
    python -m fedjax_prune verify --workdir=runs/quickstart --against=runs/again
"""

from absl import app, flags

from fedjax_prune.runs import console, replay
from fedjax_prune.runs.settings import SettingsError
from fedjax_prune.runs.verify import report
from fedjax_prune.runs.workdir import local_folder

from . import runtime
from .errors import exit_code
from .flags import not_arguments, parse

_WORKDIR = flags.DEFINE_string("workdir", None, "folder of a run")
_ROUNDS = flags.DEFINE_integer("rounds", 0, "the first rounds alone; 0 is all", 0)
_AGAINST = flags.DEFINE_string("against", None, "folder of another run")


def main(argv: list[str]) -> int:
    """Returns the exit code: 0 if all is equal, 1 if not, 130 after a signal."""

    def verify() -> int:
        found = not_arguments(argv[1:])
        workdir, against = _WORKDIR.value or "", _AGAINST.value
        if not workdir:
            found.append("--workdir must name the folder of a run, got ''")
        if against == "":
            found.append("--against must name the folder of a run, got ''")
        if found:
            raise SettingsError(found)
        folder = local_folder(workdir)
        other = None if against is None else local_folder(against)
        runtime.configure()
        if other is None:
            findings = replay.verify_workdir(folder, _ROUNDS.value)
        else:
            findings = replay.compare_workdirs(folder, other, _ROUNDS.value)
        console.print_table("Comparison", report(findings))
        return 0 if findings.equal else 1

    return exit_code(verify)


if __name__ == "__main__":
    app.run(main, flags_parser=parse)
