"""A network as an ONNX file; it runs in a process of its own.

python -m fedjax_prune.runs.export.to_onnx FOLDER [FILE.py:CLASS] reads what was
exported as safetensors and writes `model.onnx` beside it. jax2onnx replaces functions
of JAX and Flax in the process that it is called in, such as `jnp.cumsum` and `nn.Conv`.
"""

import importlib.util
import logging
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np

from fedjax_prune.runs.export.arrays import by_name, load_model
from fedjax_prune.runs.export.facts import INPUT, OUTPUT
from fedjax_prune.runs.export.program import input_spec, make_serve
from fedjax_prune.runs.files import WorkdirError
from fedjax_prune.types import Config

ONNX = "model.onnx"
PIP = "pip install 'fedjax_prune[onnx]'"
TOLERANCE = 1e-4
"""By how much the file's logits may differ, relative to the largest one or to 1."""
_EXAMPLES = 16
"""How many examples are compared at least."""
_ERROR = "error: "


def onnx_problems(config: Config) -> list[str]:
    """Says why a run cannot become an ONNX file on this machine.

    Packages may be missing, and a run may be in bfloat16.
    """
    found = []
    missing = [
        n for n in ("jax2onnx", "onnxruntime") if not importlib.util.find_spec(n)
    ]
    if missing:
        found.append(f"format onnx needs {' and '.join(missing)}: {PIP} brings it")
    if config.precision == "bfloat16":
        found.append(
            "format onnx needs a run with precision float32 or tf32, because "
            "onnxruntime has no convolutions in bfloat16, got 'bfloat16'"
        )
    return found


def convert(folder: Path, own: str | None) -> None:
    """Writes `model.onnx` beside the arrays of a network, in another process.

    Args:
      folder: with what was exported as safetensors.
      own: as in `load_model`.

    Raises:
      WorkdirError: if jax2onnx cannot convert the network, or the file gives other
        logits in onnxruntime.
    """
    package = Path(sys.modules["fedjax_prune"].__file__ or "").parents[1]
    paths = [str(package), os.environ.get("PYTHONPATH", "")]
    # Nothing is computed that needs an accelerator.
    environment = {"PYTHONPATH": os.pathsep.join(filter(None, paths))}
    environment["JAX_PLATFORMS"] = "cpu"
    arguments = [str(folder)] if own is None else [str(folder), own]
    done = subprocess.run(
        [sys.executable, "-m", __name__, *arguments],
        env=os.environ | environment,
        capture_output=True,
        text=True,
    )
    if done.returncode:
        lines = done.stderr.strip().splitlines()
        reason = next((x for x in reversed(lines) if x.startswith(_ERROR)), _ERROR)
        raise WorkdirError(
            "The network cannot be written as ONNX: "
            f"{reason.removeprefix(_ERROR) or 'its process has ended'}."
        )


def main(folder: Path, own: str | None = None) -> None:
    """Converts, and compares the file with the network.

    Raises:
      ValueError: if the file gives other logits.
    """
    exported = load_model(folder, own=own)
    read = exported.facts["input"]
    precision = exported.facts["config"]["precision"]
    spec = input_spec(tuple(read["shape"]), read["dtype"])
    serve = make_serve(exported.task, exported.variables, precision)
    arrays = by_name(exported.variables)
    batches = _batches(exported.facts)
    # It is computed before jax2onnx has replaced anything.
    wanted = np.concatenate([exported.predict(batch) for batch in batches])
    (folder / ONNX).write_bytes(converted(lambda x: serve(arrays, x), spec))
    found = _run(folder / ONNX, batches)
    require_equal(found, wanted, gated=exported.facts["kind"] == "gated")


def require_equal(found: np.ndarray, wanted: np.ndarray, *, gated: bool) -> None:
    """Refuses a file that gives other logits than the network.

    Without gates no example may differ by more than TOLERANCE. With gates one may: a
    gate for which two channels are nearly equal may choose another one when the order
    of a sum changes. This happens for few examples, and a wrong file differs for most.

    Args:
      found: [num_examples, num_classes] float32, of the file.
      wanted: of the network, as `found`.
      gated: whether the network has gates.

    Raises:
      ValueError: if the logits differ.
    """
    differences = np.abs(found - wanted).max(1) / max(1.0, float(np.abs(wanted).max()))
    # A comparison with a logit that is not a number is false.
    wrong = int((~(differences <= TOLERANCE)).sum())
    if wrong > gated or not np.isfinite(differences).all():
        raise ValueError(
            f"onnxruntime gives logits that differ by {differences.max():.3g} of the "
            f"largest one, for {wrong} of {len(wanted)} examples by more than "
            f"{TOLERANCE}"
        )


def converted(
    function: Callable[[jax.Array], jax.Array], spec: jax.ShapeDtypeStruct
) -> bytes:
    """Gives the bytes of the ONNX file of a function.

    Args:
      function: examples -> logits.
      spec: shape and dtype of the examples.
    """
    import jax2onnx  # pyright: ignore[reportMissingImports]

    # It warns of values whose types it leaves to be inferred.
    logging.getLogger("onnx_ir").setLevel(logging.ERROR)
    model = jax2onnx.to_onnx(
        function,
        [spec],
        input_names=[INPUT],
        output_names=[OUTPUT],
    )
    assert not isinstance(model, str)
    return model.SerializeToString()


def _batches(facts: Any) -> np.ndarray:
    """Draws batches of examples that fit a network's input."""
    size, *shape = facts["input"]["shape"]
    size = size or _EXAMPLES
    rng, shape = np.random.default_rng(0), (-(-_EXAMPLES // size), size, *shape)
    if facts["input"]["dtype"] == "float32":
        return rng.random(shape, np.float32)
    high = 256 if facts["input"]["divided_by"] > 1 else len(facts["output"]["labels"])
    return rng.integers(0, high, shape, np.uint8)


def _run(file: Path, batches: np.ndarray) -> np.ndarray:
    """Gives the file's logits of all examples, [num_examples, num_classes]."""
    import onnxruntime  # pyright: ignore[reportMissingImports]

    onnxruntime.set_default_logger_severity(3)
    session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
    return np.concatenate([session.run(None, {INPUT: batch})[0] for batch in batches])


if __name__ == "__main__":
    try:
        main(Path(sys.argv[1]), *sys.argv[2:])
    # Whatever jax2onnx raises is told in one line.
    except Exception as error:
        reason = str(error).strip().partition("\n")[0].rstrip(".")
        print(f"{_ERROR}{type(error).__name__}: {reason}", file=sys.stderr)
        sys.exit(1)
