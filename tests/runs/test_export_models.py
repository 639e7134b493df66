"""Every network in every format, read where this library is not.

ONNX files are written by the environment `onnx` in that of the tests, which
`launch/test.sh --long` makes, because jax2onnx needs an older Orbax.
"""

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

from configs import base
from fedjax_prune.models import MODELS
from fedjax_prune.pruning.client_network import client_network, make_client_selection
from fedjax_prune.pruning.enforce import apply_masks, gate_flags
from fedjax_prune.pruning.smaller import compact
from fedjax_prune.runs.experiment import load_data
from fedjax_prune.runs.export import export_model
from fedjax_prune.runs.learning import task_of
from fedjax_prune.types import Variables
from tests.exported import CLIENT, load_elsewhere, write_run
from tests.own_files import write_nets
from tests.small_runs import tiny_config

pytestmark = pytest.mark.long

BY_CLIENT = {"data.partitioner": "by_client", "data.local_val": "holdout"}
OWN = {
    "data.name": "arrays",
    "data.classes": ("0", "1", "2"),
    "data.partitioner": "iid",
}
COLOUR = OWN | {"data.image_shape": "32x32x3", "data.normalize": "cifar10"}
SMALL = OWN | {"data.image_shape": "24x24x3", "model.norm": "none"}
NO_DATA = OWN | {"data.image_shape": "24x24x3", "data.dir": "not-there"}
DATA = {
    "vgg11": COLOUR | {"model.norm": "gn"},
    "resnet32": COLOUR | {"model.norm": "bn"},
    "resnet9": COLOUR | {"model.norm": "bn"},
    "cnn": {"data.name": "digits", "model.norm": "bn"},
    "dropout_cnn": COLOUR | {"model.norm": "none"},
    "two_cnn": SMALL,
    "femnist_cnn": OWN | {"data.image_shape": "28x28x1", "model.norm": "bn"},
    "next_char_lstm": BY_CLIENT | {"data.name": "shakespeare", "model.norm": "none"},
    "logistic_regression": BY_CLIENT | {"data.name": "synthetic", "model.norm": "none"},
    "nets.py:Small": NO_DATA,
    "nets.py:Same": NO_DATA,
}
"""Name of a network -> fields of its run.

The data of runs with gates are read, for the compact network of a client.
"""
PLAIN = ("next_char_lstm", "logistic_regression", "nets.py:Small", "nets.py:Same")
"""Networks without gates and channels that can be removed."""


def test_every_network_is_exported():
    assert set(MODELS) < set(DATA)


def write(folder, name, algorithm):
    """Writes a run; returns its workdir, what it learns with, state and gates."""
    gated = name not in PLAIN
    config = tiny_config(**{"rounds": 1, "data.num_train": 0})
    config.data.local_val = "holdout"
    own = f"{write_nets(folder)}:{name.partition(':')[2]}"
    config.model = base.model(own if ":" in name else name)
    changes = {"model.gated": gated} | DATA[name]
    if ":" not in name:
        changes |= {"model.width": 0.25, "model.dropout": 0.0}
    if gated:
        changes |= {"model.keep_ratio": 0.4}
    config.update_from_flattened_dict(changes)
    if gated and config.data.name == "arrays":
        config.data.dir = write_images(folder / "data", config.data.image_shape)
    config.algorithm = base.algorithm(algorithm)
    if not gated and algorithm != "fedavg":
        config.algorithm.structured_rule = "off"
    return folder / "run", *write_run(folder / "run", config)


def write_images(folder, shape):
    """Writes random images of three classes; returns their folder."""
    rng, sides = np.random.default_rng(3), tuple(map(int, shape.split("x")))
    folder.mkdir()
    for part in ("train", "test"):
        images = rng.integers(0, 256, (60, *sides), np.uint8)
        np.savez(folder / f"{part}.npz", images=images, labels=np.arange(60) % 3)
    return str(folder)


def expected(run, examples):
    """Kind and client of each network of a run -> its logits."""
    _, learning, state, personal = run
    shared, alive = Variables(state.params, {}, state.model_state), {}
    if learning.algorithm.masked is not None:
        masks = state.server.masks
        shared = shared._replace(params=apply_masks(masks, state.params))
        alive = gate_flags(learning.task, masks)
    dense = np.asarray(jax.jit(learning.dense_task.predict)(shared, examples))
    found: dict[tuple[str, int | None], np.ndarray] = {("dense", None): dense}
    if learning.algorithm.masked is not None:
        found = {("masked", None): dense}
        if learning.task.groups:
            found["compact", None] = dense
    if personal:
        own = shared._replace(personal=personal, alive=alive)
        logits = np.asarray(jax.jit(learning.task.predict)(own, examples))
        assert np.abs(logits - dense).max() > 1e-3 * np.abs(dense).max()
        found["gated", CLIENT] = logits
        found["compact", CLIENT] = of_client(learning, state, own, examples)
    return found


def of_client(learning, state, own, examples):
    """Logits of the plain network of the channels that the client's data select."""
    config, model, shape = learning.config, learning.model, learning.image_shape
    data = load_data(config)
    images = data.train.images[data.population.of(CLIENT)]
    if learning.algorithm.masked is not None:
        model, own, _ = compact(model, own, state.server.masks, shape)
    select = make_client_selection(model, normalize=config.data.normalize)
    wanted = client_network(model, own, select(own, images), shape)
    task = task_of(config, wanted.model)
    return np.asarray(jax.jit(task.predict)(wanted.variables, examples))


def draw_examples(run):
    rng, shape = np.random.default_rng(2), run[1].image_shape
    if run[1].config.data.name == "synthetic":
        return rng.normal(size=(5, *shape)).astype(np.float32)
    high = 80 if run[1].config.data.name == "shakespeare" else 256
    return rng.integers(0, high, (5, *shape), np.uint8)


def jobs_of(run, folder, formats):
    """Arguments of each export -> its examples and the logits that it must give.

    The batch size is free. For one network of each run, and for all of the model cnn,
    it is also fixed.
    """
    examples, jobs = draw_examples(run), []
    networks = expected(run, examples)
    fixed = networks if run[1].config.model.name == "cnn" else [*networks][-1:]
    for format in formats:
        for (kind, client), logits in networks.items():
            for size in (0, 2) if (kind, client) in fixed else (0,):
                place = folder / f"{format}_{kind}_{client}_{size}"
                fields = {"format": format, "kind": kind, "client": client}
                fields |= {"batch_size": size}
                count = size or len(examples)
                jobs.append((place, fields, examples[:count], logits[:count]))
    return jobs


def compare(jobs, python=sys.executable):
    """Loads what was exported, and compares the logits with the expected ones."""
    examples = {place: given for place, _, given, _ in jobs}
    found = load_elsewhere(examples, python)
    for place, _, _, logits in jobs:
        difference = np.abs(found[place] - logits).max()
        scale = float(np.abs(logits).max())
        print(f"{place.name}: {difference / scale:.1e}, largest {scale:.3g}")
        assert difference <= 1e-4 * scale, place.name


@pytest.mark.parametrize("algorithm", ["fedavg", "magnitude"])
@pytest.mark.parametrize("name", DATA)
def test_programs_of_stablehlo(name, algorithm, tmp_path):
    run = write(tmp_path, name, algorithm)
    jobs = jobs_of(run, tmp_path, ("safetensors", "stablehlo"))
    for place, fields, _, _ in jobs:
        export_model(run[0], place, **fields)
    compare(jobs)


@pytest.fixture(scope="module")
def onnx_python():
    """The interpreter of the environment with jax2onnx."""
    if importlib.util.find_spec("jax2onnx"):
        return sys.executable
    python = Path(sys.prefix) / "onnx" / "bin" / "python"
    if not python.exists():
        pytest.skip("there is no jax2onnx: bash launch/test.sh --long brings it")
    return str(python)


@pytest.mark.parametrize("algorithm", ["fedavg", "magnitude"])
@pytest.mark.parametrize("name", DATA)
def test_files_of_onnx(name, algorithm, tmp_path, onnx_python):
    run = write(tmp_path, name, algorithm)
    jobs = jobs_of(run, tmp_path, ("onnx",))
    code = """
import json, sys
from fedjax_prune.pruning.smaller import compact
from fedjax_prune.runs.experiment import load_data
from fedjax_prune.runs.export import export_model
from fedjax_prune.runs.learning import task_of
for folder, fields in json.loads(sys.argv[2]):
    export_model(sys.argv[1], folder, **fields)
"""
    wanted = json.dumps([(str(place), fields) for place, fields, _, _ in jobs])
    done = subprocess.run(
        [onnx_python, "-W", "ignore", "-c", code, str(run[0]), wanted],
        capture_output=True,
        text=True,
        cwd=Path(__file__).parents[2],
    )
    assert done.returncode == 0, done.stderr
    compare(jobs, onnx_python)
