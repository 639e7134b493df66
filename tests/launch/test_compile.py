"""Compiling for a TPU slice from the command line."""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest

from fedjax_prune.data.datasets import DATASETS

ROOT = Path(__file__).parents[2]

NEEDS_LIBTPU = pytest.mark.skipif(
    importlib.util.find_spec("libtpu") is None,
    reason="libtpu is not installed: pip install 'fedjax_prune[tpu]'",
)


def compile_for(topology, *flags, code, before=""):
    """Returns what `compile` prints; its words in a row, as tables break lines."""
    path = os.pathsep.join(filter(None, [before, str(ROOT), os.getenv("PYTHONPATH")]))
    # JAX itself sets some variables of TPUs; the flags of the tests are for CPUs.
    known = {k: v for k, v in os.environ.items() if not k.startswith("TPU_")}
    changes = {"PYTHONPATH": path, "XLA_FLAGS": ""}
    done = subprocess.run(
        [
            *(sys.executable, "-m", "fedjax_prune", "compile"),
            *(f"--topology={topology}", "--config.lanes=2", *flags),
        ],
        cwd=ROOT,
        env=known | changes,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == code, done.stderr
    return " ".join(done.stdout.split()), done.stderr


# Its data set is in no folder, and is asked for last.
WITHOUT_DATA = ("--config=feddp_cpu:cifar10,feddp,10", "--config.data.dir=nowhere")


def test_mistakes_are_told_in_one_line_before_data_are_read(tmp_path):
    assert DATASETS["cifar10"].tfds_name
    out, err = compile_for("v5e", *WITHOUT_DATA, code=1)
    assert (out, err) == (
        "",
        "error: --topology must be KIND:SHAPE of a TPU slice, such as v5e:4x4, KIND "
        "one of v4, v5e, v5p, v6e, as JAX cannot compile for a GPU that is not there, "
        "got 'v5e'\n",
    )
    # As if libtpu were not installed.
    (tmp_path / "libtpu.py").write_text("raise ImportError")
    out, err = compile_for("v5e:2x2", *WITHOUT_DATA, code=1, before=str(tmp_path))
    assert (out, err) == (
        "",
        "error: compiling for a TPU needs libtpu, which is not installed: pip install "
        "'fedjax_prune[tpu]'\n",
    )


@NEEDS_LIBTPU
def test_a_slice_that_cannot_be_is_told_in_one_line():
    out, err = compile_for("v5e:3x7", *WITHOUT_DATA, code=1)
    assert out == "" and err.count("\n") == 1
    assert "error: --topology=v5e:3x7 is not a slice that libtpu knows: " in err


@pytest.mark.long
@NEEDS_LIBTPU
def test_a_gated_round_of_scaffold_is_compiled_for_four_chips():
    """The quick start is FedDP: SCAFFOLD on a gated network."""
    small = {"model.width": 0.5, "data.num_train": 300, "eval.num_examples": 100}
    changes = [f"--config.{name}={value}" for name, value in small.items()]
    out, err = compile_for("v5e:2x2", "--config=quickstart", *changes, code=0)
    assert "error" not in err
    assert "The round on 4 chips of v5e:2x2" in out
    assert "The evaluation of the model without gates on 4 chips of v5e:2x2" in out
    assert "The evaluation of 10 clients on 4 chips of v5e:2x2" in out
    # Messages cross the chips once, at the end of the round.
    round_, _, _ = out.partition("The evaluation of")
    assert "all-reduce" in round_ and "outside of loops, none in loops" in round_
    assert out.count("of 17.2 GB a chip") == 3
