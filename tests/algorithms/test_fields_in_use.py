"""Fields of masks change the masks of every algorithm that has them."""

import jax
import numpy as np
import pytest

from fedjax_prune.models import CNN
from fedjax_prune.models.resnet import ResNet32
from fedjax_prune.models.task import make_task
from tests import problems, toys

KEY = jax.random.key(0)
SHAPE = (8, 8, 1)
MASKED = {
    "autoflip": {
        "structured_rule": "off",
        "explore_epochs": 1,
        "mask_schedule": "fixed",
    },
    "fedsnip": {},
    "magnitude": {"structured_rule": "off"},
}


def begin(name, task, **fields):
    """The state with its first masks."""
    algorithm = problems.build(name, model_task=task, **fields)
    if algorithm.prepare is None:
        remask = jax.jit(lambda state: algorithm.masked.remask(state, (), ()))
        return remask(algorithm.init(KEY))
    dataset = jax.device_put(toys.image_dataset(sum(problems.SIZES), SHAPE, 3))
    cohort = toys.contiguous_cohort(problems.SIZES)
    return toys.prepare(algorithm, dataset, cohort, KEY)[0]


@pytest.mark.parametrize("name", MASKED)
def test_thresholds_of_each_array_and_what_each_keeps(name):
    """Of the kernels half is pruned, or a tenth at most."""
    task = make_task(CNN(3, width=0.2), SHAPE)

    def kept(**fields):
        state = begin(name, task, threshold=0.5, **MASKED[name], **fields)
        return [
            float(np.mean(layer["kernel"])) for layer in state.server.masks.values()
        ]

    each = kept(threshold_scope="per_tensor")
    assert max(each) <= 0.52 < max(kept())
    assert min(kept(min_keep=0.9)) >= 0.9


@pytest.mark.parametrize(("biases", "entries"), [(False, 27), (True, 30)])
def test_biases_are_pruned_where_they_are_asked_for(biases, entries):
    algorithm = problems.build("autoflip", prune_biases=biases)
    state, _ = problems.begin(algorithm)
    assert int(algorithm.masked.facts(state)["mask/prunable"]) == entries


@pytest.mark.parametrize(
    ("name", "fields"),
    [
        ("eflprune", {"channel_share": 0.9}),
        (
            "autoflip",
            {
                "explore_epochs": 1,
                "mask_schedule": "fixed",
                "structured_rule": "guidance_l1",
                "structured_share": 0.9,
            },
        ),
    ],
)
def test_channels_of_sums_go_where_they_are_asked_for(name, fields):
    task = make_task(ResNet32(3, width=0.375, blocks_per_stage=1), SHAPE)
    gone = [
        sum(
            int((~mask).sum())
            for mask in jax.tree.leaves(
                begin(name, task, structured_residual=residual, **fields).server.masks
            )
        )
        for residual in (False, True)
    ]
    assert gone[0] < gone[1]
