"""Which network of a run is exported, and its logits where this library is not."""

import importlib.util
import json
import math
import re
import shutil
from typing import Any

import jax
import numpy as np
import pytest

from configs import base
from fedjax_prune import sample_cohort, to_population
from fedjax_prune.models.costs import tree_bytes
from fedjax_prune.pruning.client_network import client_network, make_client_selection
from fedjax_prune.pruning.enforce import apply_masks, gate_flags
from fedjax_prune.pruning.smaller import round_up
from fedjax_prune.runs.experiment import load_data
from fedjax_prune.runs.export import export_model, load_model
from fedjax_prune.runs.files import WorkdirError
from fedjax_prune.runs.settings import SettingsError
from fedjax_prune.types import Variables
from tests.exported import CLIENT, load_elsewhere, write_run
from tests.own_files import write_nets
from tests.small_runs import plain_config, tiny_config

IMAGES = np.random.default_rng(1).integers(0, 256, (5, 8, 8, 1), np.uint8)


def write(folder, algorithm, **changes):
    fields = {"rounds": 1, "model.width": 0.5, "model.keep_ratio": 0.3}
    config = tiny_config(**fields | changes)
    config.algorithm = base.algorithm(algorithm)
    return folder, *write_run(folder, config)


@pytest.fixture(scope="module")
def gated(tmp_path_factory):
    return write(tmp_path_factory.mktemp("gated") / "run", "fedavg")


@pytest.fixture(scope="module")
def both(tmp_path_factory):
    """Gates and masks."""
    return write(tmp_path_factory.mktemp("both") / "run", "magnitude")


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("plain") / "run"
    return workdir, *write_run(workdir, plain_config(rounds=1))


def close(found, wanted):
    assert np.abs(wanted).max() > 0.01
    np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-5)


def test_each_network_gives_its_logits_in_a_process_without_the_library(both, tmp_path):
    workdir, learning, state, personal = both
    params = apply_masks(state.server.masks, state.params)
    shared = Variables(params, {}, state.model_state)
    alive = gate_flags(learning.task, state.server.masks)
    own = shared._replace(personal=personal, alive=alive)
    dense = np.asarray(jax.jit(learning.dense_task.predict)(shared, IMAGES))
    wanted = {
        ("masked", None): dense,
        ("compact", None): dense,
        ("gated", CLIENT): np.asarray(jax.jit(learning.task.predict)(own, IMAGES)),
    }
    assert np.abs(wanted["gated", CLIENT] - dense).max() > 0.01
    examples, expected = {}, {}
    for kind, client, format in (
        ("masked", None, "stablehlo"),
        ("compact", None, "safetensors"),
        ("gated", CLIENT, "stablehlo"),
        ("gated", CLIENT, "safetensors"),
    ):
        folder = tmp_path / f"{kind}_{format}"
        chosen = export_model(workdir, folder, format=format, kind=kind, client=client)
        assert chosen.words.startswith(kind)
        examples[folder], expected[folder] = IMAGES, wanted[kind, client]
    fixed = tmp_path / "fixed"
    export_model(
        workdir, fixed, format="stablehlo", batch_size=2, input_dtype="float32"
    )
    examples[fixed] = IMAGES[:2].astype(np.float32) / 255
    expected[fixed] = dense[:2]
    for folder, found in load_elsewhere(examples).items():
        close(found, expected[folder])
    again = load_model(tmp_path / "gated_safetensors")
    close(again.predict(IMAGES), wanted["gated", CLIENT])
    assert again.model == learning.model


def test_what_is_written_if_no_kind_is_named(gated, both, plain, tmp_path):
    for run, client, kind, words in (
        (gated, None, "dense", "without gates; --client=ID exports a client's gates"),
        (gated, CLIENT, "gated", f"the gates of client {CLIENT}"),
        (both, None, "compact", "without gates; --client=ID exports a client's gates"),
        (both, CLIENT, "gated", f"the gates of client {CLIENT}"),
        (plain, None, "dense", "the shared parameters at full size"),
    ):
        folder = tmp_path / f"{run[0].parent.name}_{kind}"
        chosen = export_model(run[0], folder, client=client)
        assert (chosen.kind, chosen.client) == (kind, client)
        size = json.loads((folder / "model.json").read_text())["size"]
        gates = chosen.variables[1], chosen.variables.alive
        assert (
            size["bytes_of_gates"]
            == tree_bytes(gates)
            == (kind == "gated") * (tree_bytes((run[3], gates[1])))
        )
        # Both count the batch statistics.
        whole = size["bytes"] == size["bytes_of_full_network"]
        assert whole == (kind != "compact")
        assert (
            words in chosen.words and chosen.words in (folder / "README.md").read_text()
        )


@pytest.mark.parametrize("budget", [{}, {"macs": 0.5}, {"macs": 0.7, "multiple": 8}])
def test_the_compact_network_of_a_client_is_of_its_data(gated, budget, tmp_path):
    workdir, learning, state, personal = gated
    chosen = export_model(workdir, tmp_path, kind="compact", client=CLIENT, **budget)
    data = load_data(learning.config)
    images = data.train.images[data.population.of(CLIENT)]
    variables = Variables(state.params, personal, state.model_state)
    wanted = client_network(
        learning.model,
        variables,
        make_client_selection(learning.model)(variables, images),
        learning.image_shape,
        **budget,
    )
    exported = load_model(tmp_path)
    assert exported.model == wanted.model
    jax.tree.map(np.testing.assert_array_equal, exported.variables, wanted.variables)
    assert all(n % budget.get("multiple", 1) == 0 for n in chosen.left.values())
    assert f"{len(images)} training examples of client {CLIENT}" in chosen.words


def test_the_shared_compact_network_in_blocks_has_the_same_logits(both, tmp_path):
    workdir, learning, *_ = both
    found = {n: export_model(workdir, tmp_path / str(n), multiple=n) for n in (1, 4)}
    groups = learning.model.channel_groups(learning.image_shape)
    sizes = {group.name: group.size for group in groups}
    blocks = {k: round_up(n, sizes[k], 4) for k, n in found[1].left.items()}
    assert found[4].left == blocks != found[1].left
    narrow, wide = (
        jax.jit(each.task.predict)(each.variables, IMAGES) for each in found.values()
    )
    close(np.asarray(wide), np.asarray(narrow))


def test_blocks_of_a_client_are_whole_also_under_masks(both, tmp_path):
    asked = {"kind": "compact", "client": CLIENT, "multiple": 4}
    chosen = export_model(both[0], tmp_path, **asked)
    assert all(n % 4 == 0 for n in chosen.left.values())
    assert "in blocks of 4 channels" in chosen.words


@pytest.mark.parametrize(
    ("run", "arguments", "words"),
    [
        ("plain", {"kind": "x"}, "kind must be one of dense, masked, compact, gated"),
        ("plain", {"kind": "masked"}, "kind must not be masked for a run of fedavg"),
        ("plain", {"kind": "compact"}, "kind compact needs the masks of a run that"),
        ("plain", {"kind": "gated"}, "kind must not be gated for a run without gates"),
        ("plain", {"client": 1}, "client must be left out for a run without gates"),
        ("gated", {"kind": "gated"}, "kind gated needs a client"),
        ("gated", {"kind": "compact"}, "or a client of a run with gates"),
        ("gated", {"kind": "dense", "client": 1}, "client must be left out for kind d"),
        ("gated", {"client": -1}, r"client must be in \[0, 4\], got -1"),
        ("gated", {"client": 5}, r"client must be in \[0, 4\], got 5"),
        ("gated", {"client": 0}, "no cohort of the 1 rounds had client 0"),
        ("gated", {"client": 1, "macs": 0.5}, "macs must be left out except for kind"),
        ("gated", {"kind": "compact", "client": 1, "macs": 2.0}, r"\(0, 1\], got 2.0"),
        ("both", {"kind": "compact", "client": 1, "macs": 2.0}, r"\(0, 1\], got 2.0"),
        ("both", {"kind": "compact", "client": 1, "macs": math.nan}, r"\], got nan"),
        ("both", {"kind": "compact", "client": 2, "macs": 1e-9}, r"got 1e-09"),
        ("gated", {"client": 1, "multiple": 8}, "multiple must be left out except for"),
        ("both", {"multiple": 0}, "multiple must be at least 1, got 0"),
        ("both", {"kind": "dense"}, "kind must be masked or compact for a run of magn"),
    ],
)
def test_a_kind_that_a_run_cannot_give_is_one_line(
    run, arguments, words, request, tmp_path
):
    workdir, *_ = request.getfixturevalue(run)
    with pytest.raises(SettingsError, match=words) as error:
        export_model(workdir, tmp_path / "model", **arguments)
    assert len(error.value.problems) == 1
    assert not list(tmp_path.iterdir())


def test_the_least_budget_that_is_told_is_enough(both, tmp_path):
    """It is a share of the whole network, also if masks have removed channels."""
    fields: dict[str, Any] = {"kind": "compact", "client": CLIENT}
    with pytest.raises(SettingsError, match=r"macs must be at least") as error:
        export_model(both[0], tmp_path, macs=1e-6, **fields)
    told = float(re.search(r"at least (0\.\d{4}) for", str(error.value))[1])
    chosen = export_model(both[0], tmp_path, macs=told, **fields)
    own = chosen.own_validation
    assert told - 2e-4 < own.macs <= told


def test_lost_rows_are_not_said_to_be_on_nodes(gated, tmp_path):
    shutil.copytree(gated[0], tmp_path / "run")
    shutil.rmtree(tmp_path / "run" / "checkpoints" / "1" / "rows")
    words = export_model(tmp_path / "run", tmp_path / "model").words
    assert words.endswith("without gates; --client=ID exports a client's gates")


def test_all_that_is_wrong_is_told_at_once(gated, tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(SettingsError) as error:
        export_model(
            gated[0],
            tmp_path,
            format="tflite",
            kind="x",
            client=7,
            macs=3.0,
            multiple=0,
            batch_size=-1,
            input_dtype="int8",
        )
    words = [problem.partition(" ")[0] for problem in error.value.problems]
    of_network = ["client", "kind", "macs", "multiple"]
    of_program = ["format", "input_dtype", "batch_size"]
    assert words == [*of_network, *of_program, str(tmp_path)]


@pytest.mark.long
def test_a_client_of_a_cohort_may_have_its_first_gates(gated, tmp_path):
    """A client may have been dropped, and its gates may have moved by little."""
    ids = draw_cohort(gated[1].config)
    assert ids == [2, 3, 4]
    words = "these gates are still those from before the first round"
    for client, kind in ((2, "gated"), (3, "gated"), (3, "compact")):
        folder = tmp_path / f"{client}_{kind}"
        export_model(gated[0], folder, kind=kind, client=client)
        assert (words in (folder / "README.md").read_text()) == (client == 3)


def draw_cohort(config):
    """The clients of the first round, as a run draws them."""
    population = to_population([[n] for n in range(5)], num_examples=5)
    cohort = sample_cohort(
        population, 3, 1, seed=config.seed, round=0, epochs=1, batch_size=1
    )
    return cohort.client_ids.tolist()


@pytest.mark.parametrize(
    ("found", "words"),
    [
        (None, r"format onnx needs jax2onnx and onnxruntime: pip install 'fedjax_pr"),
        ("installed", "format onnx needs a run with precision float32 or tf32"),
    ],
)
def test_what_onnx_needs_is_told_before_anything_else(
    found, words, tmp_path, monkeypatch
):
    config = plain_config(rounds=1, precision="bfloat16")
    write_run(tmp_path / "run", config)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: found)
    with pytest.raises(SettingsError, match=words):
        export_model(tmp_path / "run", tmp_path / "model", format="onnx")
    assert [f.name for f in tmp_path.iterdir()] == ["run"]


ASKS = """
import flax.linen as nn


class Asks(nn.Module):
    num_classes: int

    @nn.compact
    def __call__(self, x):
        x = x.reshape(len(x), -1) if x.shape[0] > 3 else x.reshape(x.shape[0], -1)
        return nn.Dense(self.num_classes, name="fc")(x)
"""


def test_a_network_that_asks_for_the_batch_size_needs_one(tmp_path):
    config = plain_config(rounds=1)
    config.model = base.model(f"{write_nets(tmp_path, ASKS)}:Asks")
    write_run(tmp_path / "run", config)
    with pytest.raises(
        WorkdirError, match=r"size that is left open: .* --batch_size=1"
    ):
        export_model(tmp_path / "run", tmp_path / "model")
    left = {f.name for f in tmp_path.iterdir()} - {"__pycache__"}
    assert left == {"nets.py", "run"}
    export_model(tmp_path / "run", tmp_path / "model", batch_size=2)
    exported = load_model(tmp_path / "model", own=config.model.name)
    assert exported.facts["input"]["shape"] == [2, 8, 8, 1]
    assert exported.facts["architecture"]["class"] == "Asks"
