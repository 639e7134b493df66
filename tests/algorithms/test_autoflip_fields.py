"""Fields that AutoFLIP refuses, with name, value and range."""

import pytest

from fedjax_prune.algorithms import autoflip, fedavg
from fedjax_prune.engine.server import make_server_tx
from fedjax_prune.engine.solver import make_solver
from fedjax_prune.models import CNN
from fedjax_prune.models.task import make_task
from tests.layered import LR, build, layered_task


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"explorer_share": 0.0}, r"explorer_share must be in \(0, 1\], got 0.0"),
        ({"explore_epochs": 0}, "explore_epochs must be at least 1, got 0"),
        ({"explore_patience": 0}, "patience must be at least 1, got 0"),
        ({"explore_monitor": "x"}, "monitor must be one of epoch, last_batch, got 'x'"),
        ({"explore_base": "x"}, "explore_base must be one of init, warm"),
        ({"explorer_weighting": "x"}, "explorer_weighting must be one of"),
        ({"start_from": "x"}, "start_from must be one of init, explored_mean"),
        ({"base": "fednova"}, "base must be one of fedavg, fedprox, scaffold"),
        ({"mask_schedule": "x"}, "mask_schedule must be one of fixed, participants"),
        ({"agreement_source": "x"}, "agreement_source must be one of votes"),
        ({"server_store": "x"}, "server_store must be one of dense, sparse"),
        ({"threshold": 1.0}, r"threshold must be in \[0, 1\), got 1.0"),
        ({"threshold": -0.1}, r"threshold must be in \[0, 1\), got -0.1"),
        ({"min_keep": 2}, r"min_keep must be in \[0, 1\], got 2"),
        (
            {"threshold_scope": "layer"},
            "threshold_scope must be .* per_tensor, got 'layer'",
        ),
        ({"guidance_norm": "max"}, "guidance_norm must be one of minmax, robust"),
        ({"structured_rule": "all"}, "structured_rule must be one of keep_ratio"),
        ({"structured_density": 2}, "structured_density must be at most 1, got 2"),
        ({"structured_share": 1}, r"structured_share must be in \[0, 1\), got 1"),
        ({"exempt_layers": "fc/*"}, r"must be a list of strings, got 'fc/\*'"),
        ({"mask_every": -1}, "mask_every must be at least 0, got -1"),
        ({"base": "scaffold", "server_store": "sparse"}, "server_store must be dense"),
        ({"exempt_layers": ("fc2",)}, "exempt_layers must fit one of fc/kernel, got"),
        (
            {"mask_schedule": "agreement", "agreement_rate": 0.0},
            r"agreement_rate must be in \(0, 1\], got 0.0",
        ),
        (
            {"mask_schedule": "agreement", "threshold_scope": "per_tensor"},
            "threshold_scope must be global with mask_schedule agreement, got 'per_t",
        ),
        (
            {"structured_rule": "guidance_l1"},
            "structured_share must be above 0 with structured_rule guidance_l1, got 0",
        ),
        (
            {"threshold_ramp": 5},
            "threshold_ramp must be 0 with mask_schedule participants, got 5",
        ),
        ({"exempt_layers": ("*",)}, r"exempt_layers must leave an array .* got \* of "),
        (
            {"mask_schedule": "agreement", "threshold_start": 0.1},
            r"threshold_start must be 0 with threshold_ramp 0, got 0\.1",
        ),
    ],
)
def test_bad_fields(fields, words):
    with pytest.raises(ValueError, match=words):
        build(**fields)


def test_channels_of_an_unknown_model_cannot_be_removed():
    task = layered_task()._replace(groups=None)
    solver = make_solver(epochs=1, batch_size=8, lr=LR)
    with pytest.raises(ValueError, match="structured_rule must be off for a model"):
        autoflip(task, solver, make_server_tx())
    assert fedavg(task, solver, make_server_tx()).prepare is None
    fields = {"structured_rule": "guidance_l1", "structured_share": 0.5}
    with pytest.raises(ValueError, match="structured_rule must be keep_ratio or off"):
        autoflip(task._replace(groups=()), solver, make_server_tx(), **fields)
    task = make_task(CNN(3, width=0.1), (8, 8, 1))
    fields |= {"exempt_layers": ("conv*", "fc1/*")}
    with pytest.raises(ValueError, match="or whose kernels exempt_layers keeps"):
        autoflip(task, solver, make_server_tx(), **fields)
