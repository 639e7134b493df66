"""Compiles the programs of a run for a TPU slice that need not be there.

python -m fedjax_prune compile --config=CONFIG --topology=KIND:SHAPE \\
    [--config.FIELD=VALUE ...]

KIND is v4, v5e, v5p or v6e, SHAPE its chips, such as 4x4 or 2x2x2. It needs the extra
`tpu` and no TPU. Round, preparation and evaluation are compiled, and printed are their
bytes on each chip, the collectives and where they are, FLOPs, and the seconds that the
chips need at least. The data are loaded to deal them to clients. The exit code is 0 if
all programs fit and no collective is in local training, and 1 if not. In a checkout
`python -m launch.compile` is the same. For example:

    python -m fedjax_prune compile --config=feddp:feddp,vgg11,100 --topology=v5e:4x4 \\
        --config.precision=bfloat16 --config.lanes=4
    python -m fedjax_prune compile --config=quickstart --topology=v6e:2x2
    python -m fedjax_prune compile --config=synthetic --topology=v4:2x2x2 \\
        --config.data.num_clients=100000 --config.client_rows=host
"""

from absl import app, flags

from fedjax_prune.runs import aot, topology

from . import runtime
from .errors import exit_code
from .flags import load_config, parse

_CONFIG = flags.DEFINE_string("config", None, "file or bundled name, :STRING after it")
_TOPOLOGY = flags.DEFINE_string("topology", None, "TPU slice, such as v5e:4x4")


def main(argv: list[str]) -> int:
    """Returns the exit code: 0 if the run fits, 1 if not, 130 after a signal."""

    def compile_for_slice() -> int:
        config = load_config(_CONFIG.value, argv[1:])
        runtime.configure_compiler()
        target = topology.find_slice(_TOPOLOGY.value or "")
        return 0 if aot.compile_run(config, target) else 1

    return exit_code(compile_for_slice)


if __name__ == "__main__":
    app.run(main, flags_parser=parse)
