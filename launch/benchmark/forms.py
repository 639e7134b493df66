"""The forms of a network that the suite `inference` times.

python -m launch.benchmark.forms --write=vgg11,dense --output=FILE.onnx

writes a network as an ONNX file. jax2onnx needs a process of its own for this.
"""

import argparse
import importlib.util
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from fedjax_prune.data.augment import to_float
from fedjax_prune.models import VGG11, ResNet32, costs
from fedjax_prune.models.gates import GateSettings
from fedjax_prune.models.platforms import ANY, tracing_for
from fedjax_prune.models.task import make_task
from fedjax_prune.pruning.client_network import client_network, make_client_selection
from fedjax_prune.pruning.smaller import gathered_predict
from fedjax_prune.types import Task, Variables

from .. import runtime

MODELS = {"vgg11": VGG11, "resnet32": ResNet32}
IMAGE_SHAPE = (32, 32, 3)
FLOPS_TARGET = 0.5
"""Share of the multiplications that gates and the compacted network keep."""
MULTIPLE = 8
"""Channels of the compacted network stay in blocks of so many."""
CLIENT_IMAGES = 64
"""Images by which the compacted network is chosen."""

Call = Callable[[np.ndarray], np.ndarray]
"""Images [batch_size, height, width, channels] uint8 -> logits, both on the host."""


class Setup(NamedTuple):
    """One network with random parameters.

    Attributes:
      name: one of MODELS.
      dense: its Task without gates.
      gated: its Task with gates.
      model: the gated network.
      variables: of the gated network.
      folder: for files.
    """

    name: str
    dense: Task
    gated: Task
    model: Any
    variables: Variables
    folder: Path

    @property
    def plain(self) -> Variables:
        """The variables without gates."""
        return self.variables._replace(personal={})


class Form(NamedTuple):
    """A way to compute logits.

    Attributes:
      call: computes them.
      macs: multiply-accumulates for one image, gates included. Of `gathered` they are
        those of the kept channels, though large kernels are computed whole.
    """

    call: Call
    macs: int


def set_up(name: str, folder: Path) -> Setup:
    """Draws a network whose gates keep half of the multiplications."""
    plain = MODELS[name](10)
    keep_ratio = costs.keep_ratio_for(plain, IMAGE_SHAPE, FLOPS_TARGET)
    model = plain.clone(gates=GateSettings(keep_ratio))
    gated = make_task(model, IMAGE_SHAPE)
    variables = gated.init(jax.random.key(0))
    return Setup(
        name=name,
        dense=make_task(plain, IMAGE_SHAPE),
        gated=gated,
        model=model,
        variables=variables,
        folder=folder,
    )


def _jitted(
    predict: Callable[[Variables, jax.Array], jax.Array], variables: Variables
) -> Call:
    compiled = jax.jit(predict)
    return lambda images: np.asarray(compiled(variables, images))


def _dense(setup: Setup) -> Form:
    macs = costs.macs(setup.model, IMAGE_SHAPE)
    return Form(_jitted(setup.dense.predict, setup.plain), macs.dense)


def _masked(setup: Setup) -> Form:
    macs = costs.macs(setup.model, IMAGE_SHAPE)
    call = _jitted(setup.gated.predict, setup.variables)
    return Form(call, macs.dense + macs.gates)


def _gathered(setup: Setup) -> Form:
    macs = costs.macs(setup.model, IMAGE_SHAPE)

    def predict(variables: Variables, images: jax.Array) -> jax.Array:
        collections = {
            "params": variables.params,
            "gates": variables.personal,
            "batch_stats": variables.model_state,
        }
        return jax.lax.map(
            lambda image: gathered_predict(setup.model, collections, image),
            to_float(images),
        )

    return Form(_jitted(predict, setup.variables), macs.kept + macs.gates)


def _network(setup: Setup) -> tuple[Any, Variables]:
    """The compacted network of a client with random images."""
    rng = np.random.default_rng(1)
    images = rng.integers(0, 256, (CLIENT_IMAGES, *IMAGE_SHAPE), np.uint8)
    selection = make_client_selection(setup.model)(setup.variables, images)
    found = client_network(
        setup.model,
        setup.variables,
        selection,
        IMAGE_SHAPE,
        macs=FLOPS_TARGET,
        multiple=MULTIPLE,
    )
    return found.model, found.variables


def _compacted(setup: Setup) -> Form:
    model, variables = _network(setup)
    predict = make_task(model, IMAGE_SHAPE).predict
    return Form(_jitted(predict, variables), costs.macs(model, IMAGE_SHAPE).dense)


def _in_onnxruntime(setup: Setup, kind: str) -> Form:
    """A network as an ONNX file, which is written by another process."""
    import onnxruntime  # pyright: ignore[reportMissingImports]

    file = setup.folder / f"{setup.name}-{kind}.onnx"
    write = f"--write={setup.name},{kind}"
    command = [sys.executable, "-m", __name__, write, f"--output={file}"]
    subprocess.run(command, check=True)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = len(runtime.cores())
    options.log_severity_level = 3
    # Its threads would else wait busily while other forms are timed.
    options.add_session_config_entry("session.force_spinning_stop", "1")
    session = onnxruntime.InferenceSession(
        file, options, providers=["CPUExecutionProvider"]
    )

    def call(images: np.ndarray) -> np.ndarray:
        (logits,) = session.run(None, {"input": images})
        return np.asarray(logits)

    model = _network(setup)[0] if kind == "compacted" else setup.model
    return Form(call, costs.macs(model, IMAGE_SHAPE).dense)


def write_onnx(setup: Setup, kind: str, file: Path) -> None:
    """Writes the dense or the compacted network as an ONNX file for any batch size.

    Args:
      setup: the network.
      kind: `dense` or `compacted`.
      file: the file.
    """
    from fedjax_prune.runs.export.program import input_spec
    from fedjax_prune.runs.export.to_onnx import converted

    predict, variables = setup.dense.predict, setup.plain
    if kind == "compacted":
        model, variables = _network(setup)
        predict = make_task(model, IMAGE_SHAPE).predict

    def serve(images: jax.Array) -> jax.Array:
        with tracing_for(ANY):
            return predict(variables, images)

    file.write_bytes(converted(serve, input_spec((0, *IMAGE_SHAPE), "uint8")))


FORMS: dict[str, Callable[[Setup], Form]] = {
    "dense": _dense,
    "masked": _masked,
    "gathered": _gathered,
    "compacted": _compacted,
}
"""What is timed; all rows are compared with the first one."""
ONNX_FORMS: dict[str, Callable[[Setup], Form]] = {
    "dense, onnxruntime": lambda setup: _in_onnxruntime(setup, "dense"),
    "compacted, onnxruntime": lambda setup: _in_onnxruntime(setup, "compacted"),
}
"""What is timed, too, where jax2onnx and onnxruntime are installed."""


def makers() -> dict[str, Callable[[Setup], Form]]:
    """Name of each form that can be timed here -> the function that makes it."""
    if all(importlib.util.find_spec(name) for name in ("jax2onnx", "onnxruntime")):
        return FORMS | ONNX_FORMS
    print("Left out, not installed: jax2onnx and onnxruntime.", flush=True)
    return FORMS


def main() -> None:
    """Writes an ONNX file."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--write", required=True, help="MODEL,KIND")
    parser.add_argument("--output", type=Path, required=True)
    options = parser.parse_args()
    name, kind = options.write.split(",")
    runtime.hold_no_device()
    setup = set_up(name, options.output.parent)
    write_onnx(setup, kind, options.output)


if __name__ == "__main__":
    main()
