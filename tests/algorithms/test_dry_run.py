"""Which layers AutoFLIP's normalisations prune: the spec's dry run, on MNIST."""

import os
from pathlib import Path

import jax
import numpy as np
import pytest

from fedjax_prune.algorithms.autoflip.exploration import (
    Exploration,
    make_exploration,
)
from fedjax_prune.data.load import load, resize
from fedjax_prune.data.partition import partition
from fedjax_prune.engine import store
from fedjax_prune.engine.aggregate import receive
from fedjax_prune.engine.dealing import make_cohort
from fedjax_prune.engine.devices import ONE_DEVICE
from fedjax_prune.engine.solver import make_solver
from fedjax_prune.models import TwoCNN
from fedjax_prune.models.costs import macs
from fedjax_prune.models.task import make_task
from fedjax_prune.pruning.guidance import guidance_matrix
from fedjax_prune.pruning.masks import prunable, unstructured_masks
from fedjax_prune.types import ClientState, RoundInputs, ServerState

SHARED = Path(__file__).parents[3] / "shared/data/tensorflow_datasets"
DATA = Path(os.environ.get("TFDS_DATA_DIR", SHARED))
SHAPE = (24, 24, 1)
LAYERS = ("conv1", "conv2", "fc1", "fc2")
# Pruned shares in percent of each layer, of everything, and of the MACs.
SPEC = {
    "minmax": (0.7, 3.6, 30.9, 14.4, 30.0, 9.6),
    "none": (0.0, 2.0, 30.9, 25.2, 30.0, 8.5),
    "robust": (24.3, 27.7, 30.1, 35.2, 30.0, 28.0),
    "rank": (30.0, 30.0, 30.0, 30.0, 30.0, 30.0),
}


@pytest.fixture(scope="module")
def deviation():
    """Of six explorers with two classes each, after a hundred steps of Adam."""
    if not (DATA / "mnist").is_dir():
        pytest.skip(f"needs TFDS's mnist in {DATA}")
    train, _ = load("mnist", str(DATA), num_train=10_000, num_test=1)
    train = resize(train, 24)
    population = partition("pathological", train.labels, 20, seed=0)
    task = make_task(TwoCNN(10), SHAPE)
    solver = make_solver(
        epochs=1,
        batch_size=10,
        lr=3e-4,
        optimizer="adam",
        lr_schedule="constant",
        weight_decay=0.0,
    )
    settings = Exploration(epochs=2, patience=2)
    _, start, explore = make_exploration(
        task,
        solver,
        settings,
        lambda deviation: {},
        lambda kept, deviation: {},
        sends_model=False,
    )
    variables = task.init(jax.random.key(0))
    state = ServerState(jax.numpy.int32(0), variables.params, {}, {})
    rows = store.create(ClientState({}, {}), 6)
    cohort = make_cohort(population, np.arange(6), num_lanes=1, epochs=2, batch_size=10)
    inputs = RoundInputs(state, rows, jax.device_put(train), cohort, jax.random.key(0))
    run = jax.jit(
        lambda inputs: explore(start(inputs.state), inputs, ONE_DEVICE),
        # Six hundred steps of a large network take longer than optimising it.
        compiler_options={"xla_backend_optimization_level": 3},
    )
    with jax.numpy_dtype_promotion("standard"):
        gathered, _, sums = run(inputs)
    assert 90 * 6 <= sums["steps"].sum() <= 110 * 6
    return receive(gathered)["deviation"]


def table_row(deviation, normalization):
    """Pruned percentages in the order of SPEC."""
    guidance = guidance_matrix(deviation, normalization=normalization)
    masks = unstructured_masks(guidance, prunable(deviation, biases=True), 0.3)
    pruned = jax.tree.map(lambda mask: np.asarray(~mask), masks)
    layers = [np.concatenate([x.ravel() for x in pruned[n].values()]) for n in LAYERS]
    dense = np.array([macs(TwoCNN(10), SHAPE).layers[name].dense for name in LAYERS])
    saved = sum(
        dense[i] * pruned[name]["kernel"].mean() for i, name in enumerate(LAYERS)
    )
    shares = [layer.mean() for layer in layers]
    return 100 * np.array([*shares, np.concatenate(layers).mean(), saved / dense.sum()])


@pytest.mark.parametrize("normalization", SPEC)
def test_normalisations_prune_as_in_the_dry_run(deviation, normalization):
    found, wanted = table_row(deviation, normalization), np.array(SPEC[normalization])
    print(normalization, np.round(found, 1))
    # Other images, other draws: within a few points, and nearest to its own line.
    np.testing.assert_allclose(found, wanted, atol=8)
    np.testing.assert_allclose(found[4], 30, atol=0.1)
    if normalization == "rank":
        np.testing.assert_allclose(found, wanted, atol=1)
        return
    others = {name: row for name, row in SPEC.items() if name != "rank"}
    apart = {name: np.abs(found - np.array(row)).sum() for name, row in others.items()}
    assert min(apart, key=apart.__getitem__) == normalization


def test_the_share_of_all_parameters(deviation):
    """Biases stay, so 0.3 of the kernels are a little less of everything."""
    guidance = guidance_matrix(deviation, normalization="none")
    masks = unstructured_masks(guidance, prunable(deviation), 0.3)
    pruned = sum(int((~mask).sum()) for mask in jax.tree.leaves(masks))
    np.testing.assert_allclose(pruned / 1_663_370, 0.29989, atol=2e-5)


def test_few_moves_are_large(deviation):
    """As an absolute cut, the threshold would be unusable."""
    guidance = guidance_matrix(deviation, normalization="minmax")
    values = np.concatenate([np.ravel(x) for x in jax.tree.leaves(guidance)])
    assert (values < 0.1).mean() > 0.75 and (values < 0.3).mean() > 0.95
