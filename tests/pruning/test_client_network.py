"""The compacted sub-network of one client."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fedjax_prune.models import CNN
from fedjax_prune.models.costs import macs
from fedjax_prune.models.gates import GateSettings
from fedjax_prune.models.task import make_task
from fedjax_prune.pruning.client_network import (
    Selection,
    client_network,
    make_client_selection,
)
from fedjax_prune.types import Variables
from tests.small_models import SMALL, draw, draw_variables


def gated(name, settings, **changes):
    """A small gated model, the shape of its images, and drawn Variables."""
    model, shape = SMALL[name]
    model = model.clone(gates=settings, **changes)
    drawn = draw_variables(model, shape)
    return (
        model,
        shape,
        Variables(drawn["params"], drawn["gates"], drawn.get("batch_stats", {})),
    )


def same_images(shape, count):
    """Images that select alike: the same one, `count` times."""
    return np.repeat(np.asarray(draw((1, *shape))), count, 0)


def as_read(images):
    return jnp.asarray(images, jnp.float32)


CASES = [
    ("cnn", "none", {"rescale": "inverse"}),
    ("cnn", "bn", {"mode": "scale", "rescale": "sqrt"}),
    ("cnn", "gn", {"mode": "scale"}),
    ("dropout_cnn", "bn", {"first": False}),
    ("resnet32", "bn", {"resnet": "branch", "rescale": "sqrt"}),
    ("resnet32", "none", {"resnet": "inner", "mode": "scale"}),
    ("resnet9", "bn", {"rescale": "inverse"}),
    ("two_cnn", "none", {"mode": "hard_dense_ste"}),
]


@pytest.mark.parametrize(("name", "norm", "settings"), CASES)
def test_equals_the_gated_model_if_all_images_select_alike(name, norm, settings):
    model, shape, variables = gated(name, GateSettings(0.5, **settings), norm=norm)
    images = same_images(shape, 3)
    select = make_client_selection(model, batch_size=2, to_input=as_read)
    found = client_network(model, variables, select(variables, images), shape)
    assert found.model.gates is None and found.variables.personal == {}
    smaller, whole = (
        jax.jit(make_task(m, shape, to_input=as_read).predict)
        for m in (found.model, model)
    )
    expected = whole(variables, images)
    logits = smaller(found.variables, images)
    np.testing.assert_allclose(
        logits, expected, atol=2e-5 * float(jnp.abs(expected).max())
    )
    # Where several convolutions write a channel, one of them may keep it alone.
    if "resnet" not in name:
        assert macs(found.model, shape).dense == macs(model, shape).kept


def test_counts_what_each_image_selects():
    model, shape, variables = gated("cnn", GateSettings(0.5, mode="scale"))
    images = np.asarray(draw((5, *shape)))
    _, state = model.apply(
        {"params": variables.params, "gates": variables.personal},
        images,
        train=False,
        example_mask=jnp.ones(5, bool),
        mutable=["gate_sums"],
    )
    select = make_client_selection(model, batch_size=2, to_input=as_read)
    selection = select(variables, images)
    assert selection.count == 5
    assert set(selection.selected) == {"conv1", "conv2"}
    for name, sums in state["gate_sums"].items():
        expected = sums["gate"]
        np.testing.assert_array_equal(selection.selected[name], expected["selected"])
        np.testing.assert_allclose(
            selection.multiplier[name], expected["multiplier"], rtol=1e-5
        )
        channels = selection.selected[name].size
        assert selection.selected[name].sum() == 5 * channels // 2


def test_a_client_that_selects_all_has_the_whole_network():
    model, shape, variables = gated("cnn", GateSettings(0.5))
    counts = {"conv1": np.full(8, 2.0), "conv2": np.full(16, 2.0)}
    found = client_network(model, variables, Selection(counts, counts, 4), shape)
    plain = model.clone(gates=None)
    assert macs(found.model, shape).dense == macs(plain, shape).dense
    jax.tree.map(
        np.testing.assert_array_equal, found.variables.params, variables.params
    )


def reference(model, shape, shares, budget):
    """Adds channels one by one as the docstring ranks them, until none fits."""
    plain = model.clone(gates=None)
    whole = macs(plain, shape).dense
    fixed = {g.name: g.size for g in plain.channel_groups(shape)}
    kept = {name: [int(np.argmax(share))] for name, share in shares.items()}
    rest = []
    for number, (name, share) in enumerate(shares.items()):
        ranked = sorted(range(len(share)), key=lambda i: (-share[i], i))
        rest += [
            (-share[i], place / len(share), number, name, i)
            for place, i in enumerate(ranked)
            if place > 0 and share[i] > 0
        ]
    for _, _, _, name, i in sorted(rest):
        trial = {n: [*k, i] if n == name else k for n, k in kept.items()}
        left = fixed | {n: len(k) for n, k in trial.items()}
        if macs(plain.clone(left=left), shape).dense > budget * whole:
            break
        kept = trial
    return {name: np.sort(k) for name, k in kept.items()}


@pytest.mark.parametrize(
    ("seed", "budget"), list(itertools.product((0, 1), (0.2, 0.5, 0.9)))
)
def test_the_most_selected_channels_stay_within_a_budget(seed, budget):
    model, shape, variables = gated("cnn", GateSettings(0.5))
    rng = np.random.default_rng(seed)
    # Few values, so that many channels are equal.
    counts = {"conv1": rng.integers(0, 4, 8), "conv2": rng.integers(0, 4, 16)}
    found = client_network(
        model, variables, Selection(counts, counts, 4), shape, macs=budget
    )
    shares = {name: c / 4 for name, c in counts.items()}
    expected = reference(model, shape, shares, budget)
    assert found.kept["fc1"].tolist() == list(range(32))
    for name, indices in expected.items():
        np.testing.assert_array_equal(found.kept[name], indices)
    whole = macs(model.clone(gates=None), shape).dense
    assert macs(found.model, shape).dense <= budget * whole
    kernel = variables.params["conv2"]["kernel"]
    np.testing.assert_array_equal(
        found.variables.params["conv2"]["kernel"],
        kernel[:, :, expected["conv1"]][..., expected["conv2"]],
    )


def test_a_sum_is_ranked_by_all_that_is_added():
    model, shape, variables = gated("resnet32", GateSettings(0.5, resnet="branch"))
    groups = {g.name: g for g in model.channel_groups(shape)}
    rng = np.random.default_rng(0)
    counts = {
        layer.name: rng.integers(0, 3, layer.out_channels)
        for layer in model.layers(shape)
        if layer.gated
    }
    found = client_network(
        model, variables, Selection(counts, counts, 2), shape, macs=0.25
    )
    one, two, three = (counts[f"stage{n}_block1/conv_b"] / 2 for n in (1, 2, 3))
    size = groups["stage1"].size
    # The stem has no gate, so it keeps a channel for every image.
    share = (1 + one + two[:size] + three[:size]) / 4
    kept = found.kept["stage1"]
    assert 0 < len(kept) < size
    assert share[kept].min() >= np.delete(share, kept).max()
    whole = macs(model.clone(gates=None), shape).dense
    assert 0.2 * whole < macs(found.model, shape).dense <= 0.25 * whole
    task = make_task(found.model, shape)
    logits = task.predict(found.variables, jnp.zeros((1, *shape), jnp.uint8))
    assert logits.shape == (1, 4) and np.isfinite(logits).all()


def test_channels_stay_in_blocks_by_their_mean():
    model, shape, variables = gated("cnn", GateSettings(0.5))
    # Blocks of four have 3 + 3 + 3 + 0 and 0; 4, 2.5, 1 and 0 of four images.
    one = np.array([0, 3, 0, 3, 0, 3, 0, 0])
    two = np.array([4, 4, 4, 4, 3, 3, 2, 2, 1, 1, 1, 1, 0, 0, 0, 0])[::-1]
    counts = {"conv1": one, "conv2": two}
    selection = Selection(counts, counts, 4)
    found = client_network(model, variables, selection, shape, multiple=4)
    assert found.kept["conv1"].tolist() == [0, 1, 3, 5]
    assert found.kept["conv2"].tolist() == list(range(4, 16))
    tight = client_network(model, variables, selection, shape, multiple=4, macs=0.4)
    assert tight.kept["conv1"].tolist() == [0, 1, 3, 5]
    assert tight.kept["conv2"].tolist() == list(range(8, 16))
    with pytest.raises(ValueError, match="multiple must be at least 1, got 0"):
        client_network(model, variables, selection, shape, multiple=0)


def test_refuses_what_no_network_can_be_made_of():
    model, shape, variables = gated("cnn", GateSettings(0.5))
    counts = {"conv1": np.ones(8), "conv2": np.ones(16)}
    selection = Selection(counts, counts, 1)
    with pytest.raises(ValueError, match=r"macs must be in \(0, 1\] or None, got 1.5"):
        client_network(model, variables, selection, shape, macs=1.5)
    with pytest.raises(ValueError, match=r"macs must be at least 0\.\d+ for this"):
        client_network(model, variables, selection, shape, macs=0.001)
    with pytest.raises(ValueError, match="model must have gates"):
        client_network(model.clone(gates=None), variables, selection, shape)
    other = Selection({"nothing": np.ones(16)}, {"nothing": np.ones(16)}, 1)
    message = "selection.selected must be of the layers conv1, conv2, got nothing"
    with pytest.raises(ValueError, match=message):
        client_network(model, variables, other, shape)
    message = "selection.multiplier must be of the layers conv1, conv2, got none"
    with pytest.raises(ValueError, match=message):
        client_network(model, variables, selection._replace(multiplier={}), shape)
    wrong = selection._replace(selected=counts | {"conv2": np.ones(4)})
    with pytest.raises(ValueError, match="must have 16 channels of conv2, got 4"):
        client_network(model, variables, wrong, shape)
    with pytest.raises(ValueError, match="images must be at least one, got 0"):
        make_client_selection(model)(variables, np.zeros((0, *shape), np.uint8))
    with pytest.raises(ValueError, match="batch_size must be at least 1, got 0"):
        make_client_selection(model, batch_size=0)


class Tempered(CNN):
    """Its logits are multiplied by a parameter that is in no module."""

    def setup(self):
        super().setup()
        self.temperature = self.param("temperature", jax.nn.initializers.ones, (1,))

    def __call__(self, images, *, train, example_mask):
        logits = super().__call__(images, train=train, example_mask=example_mask)
        return logits * self.temperature[None]


def test_parameters_of_no_module_stay_as_they_are():
    model, shape = Tempered(3, width=0.25, gates=GateSettings(0.5)), (8, 8, 1)
    task = make_task(model, shape)
    variables = task.init(jax.random.key(0))
    variables.params["temperature"] = jnp.full(1, 0.25)
    images = same_images(shape, 2)
    selection = make_client_selection(model, to_input=as_read)(variables, images)
    found = client_network(model, variables, selection, shape)
    assert found.variables.params["temperature"] == 0.25
    np.testing.assert_allclose(
        make_task(found.model, shape, to_input=as_read).predict(
            found.variables, images
        ),
        make_task(model, shape, to_input=as_read).predict(variables, images),
        rtol=1e-5,
        atol=1e-6,
    )
