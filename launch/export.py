"""Writes a trained network of a run for other programs, with its model card.

python -m fedjax_prune export --workdir=DIR --output=FOLDER [--format=stablehlo]
    [--kind=dense|masked|compact|gated] [--client=ID] [--macs=0.5] [--multiple=8]

Formats: safetensors has arrays, and a program of StableHLO that takes them; stablehlo
is one program, which JAX runs on CPUs, GPUs and TPUs; onnx is one file for onnxruntime
(`pip install 'fedjax_prune[onnx]'`). No format needs this library when it is loaded:
README.md in FOLDER has the lines. Programs take examples as they are stored.

Kinds: dense is the shared network at full size; masked is that under the final masks;
compact has removed channels sliced out; gated is a client's, with its own gates. With
--client, compact is a plain network of the channels that the client's data select, for
which the data of the run are read; --macs=0.5 lets it have at most half of the
multiplications. --multiple=8 keeps channels of a compact network in blocks of eight,
which CPUs compute faster. Without --kind the network is compact for a run that prunes,
dense for another one, and gated with --client. In a checkout `python -m launch.export`
is the same. For example:

    python -m fedjax_prune export --workdir=runs/quickstart --output=model
    python -m fedjax_prune export --workdir=runs/quickstart --output=m --format=onnx
    python -m fedjax_prune export --workdir=runs/quickstart --output=m --client=3
"""

from absl import app, flags

from fedjax_prune.models.checks import name_of
from fedjax_prune.models.costs import num_entries
from fedjax_prune.runs import console
from fedjax_prune.runs.export.ask import KINDS
from fedjax_prune.runs.export.facts import DTYPES, FORMATS
from fedjax_prune.runs.export.write import plan_export, write_export
from fedjax_prune.runs.settings import SettingsError
from fedjax_prune.runs.workdir import local_folder

from . import runtime
from .errors import exit_code
from .flags import not_arguments, parse

_WORKDIR = flags.DEFINE_string("workdir", None, "folder of a run")
_OUTPUT = flags.DEFINE_string("output", None, "new or empty folder for the network")
_FORMAT = flags.DEFINE_string("format", "safetensors", ", ".join(FORMATS))
_KIND = flags.DEFINE_string("kind", None, ", ".join(KINDS))
_CLIENT = flags.DEFINE_integer("client", None, "id of a client of a run with gates")
_MACS = flags.DEFINE_float(
    "macs", None, "most MACs of a client's compact network, as a share of the dense"
)
_MULTIPLE = flags.DEFINE_integer(
    "multiple", 1, "channels of a compact network stay in blocks of so many"
)
_BATCH_SIZE = flags.DEFINE_integer("batch_size", 0, "of the program; 0 is any")
_INPUT_DTYPE = flags.DEFINE_string(
    "input_dtype", None, f"{' or '.join(DTYPES)}; by default uint8, of vectors float32"
)


def main(argv: list[str]) -> int:
    """Returns the exit code: 0, or 1 if there is nothing to export."""

    def run() -> int:
        found = not_arguments(argv[1:])
        workdir, output = _WORKDIR.value or "", _OUTPUT.value or ""
        if not workdir:
            found.append("--workdir must name the folder of a run, got ''")
        if not output:
            found.append("--output must name a new or an empty folder, got ''")
        if found:
            raise SettingsError(found)
        folder, target = local_folder(workdir), local_folder(output)
        runtime.configure()
        plan = plan_export(
            folder,
            target,
            format=_FORMAT.value,
            kind=_KIND.value,
            client=_CLIENT.value,
            macs=_MACS.value,
            multiple=_MULTIPLE.value,
            batch_size=_BATCH_SIZE.value,
            input_dtype=_INPUT_DTYPE.value,
        )
        with console.working(f"writing {_FORMAT.value}"):
            chosen = write_export(plan)
        facts = {
            "model": name_of(chosen.model),
            "what": chosen.words,
            "parameters": f"{num_entries(chosen.variables.params):,}",
        }
        if left := chosen.left:
            learning = chosen.learning
            groups = learning.model.channel_groups(learning.image_shape)
            facts |= {
                f"{g.name} left": f"{left[g.name]:,} of {g.size:,} channels"
                for g in groups
                if g.name in left
            }
        if own := chosen.own_validation:
            facts["MACs"] = f"{own.macs:.1%} of the dense network"
            facts["own validation"] = (
                f"{own.compact:.1%} of {own.examples} examples; dense {own.dense:.1%}, "
                f"with the client's gates {own.gated:.1%}"
            )
            if own.compact < own.dense and (_MACS.value or 1) < 1:
                smaller = " or a smaller --multiple" if _MULTIPLE.value > 1 else ""
                facts["advice"] = f"a larger --macs{smaller} may lose less"
        console.print_table("Result", facts | {"files": output})
        return 0

    return exit_code(run)


if __name__ == "__main__":
    app.run(main, flags_parser=parse)
