"""Programs compiled ahead of time; two devices of the CPU stand for a slice's chips."""

import jax
import pytest

from fedjax_prune.engine.devices import make_placement
from fedjax_prune.models import costs
from fedjax_prune.models.costs import tree_bytes
from fedjax_prune.runs import aot
from fedjax_prune.runs.aot_report import Finding, Program, compile_program, problems
from fedjax_prune.runs.compiled_text import Operation, collectives
from fedjax_prune.runs.dispatch import draw_cohort
from fedjax_prune.runs.learning import start
from fedjax_prune.runs.settings import SettingsError
from fedjax_prune.runs.topology import CHIPS, Chip, Slice, find_slice
from tests.small_runs import build, pruned_config, tiny_config


def slice_of(memory=10**12, num_chips=2):
    return Slice("cpu:2", Chip(memory, 1e9, {}), jax.devices()[:num_chips])


def test_all_programs_of_a_run_fit_and_are_described(capsys):
    config = pruned_config(lanes=2, devices=0)
    assert aot.compile_run(config, slice_of())
    out, err = capsys.readouterr()
    out = " ".join(out.split())
    for name in (
        "preparation of a group",
        "round",
        "evaluation of the model without gates",
        "evaluation of 2 clients",
    ):
        assert f"The {name} on 2 chips of cpu:2" in out
    assert out.count("none in loops") == 4 and "error" not in err
    # It changes nothing of the configuration that it is given.
    assert (config.devices, config.lanes) == (0, 2)


def test_a_round_takes_what_it_is_given_and_computes_what_is_defined():
    config = tiny_config(devices=2, lanes=2, **{"client.epochs": 2})
    experiment = build(config)
    placement = make_placement(2, devices=jax.devices()[:2])
    program = {p.name: p for p in aot.programs(experiment, placement)}["round"]
    finding = compile_program(program)
    cohort = draw_cohort(experiment, placement, 0)
    state, row = jax.eval_shape(lambda: start(experiment.learning))
    data = experiment.data
    # Each device has a half of what is split over them.
    places = len(cohort.sizes) // 2
    split = cohort.client_ids, cohort.sizes, cohort.indices, cohort.queues
    expected = (
        tree_bytes(state)
        + places * tree_bytes(row)
        + tree_bytes(data.train)
        + tree_bytes(data.test)
        + sum(x.nbytes for x in split) // 2
        + places  # which clients are measured
        + 8  # the key
    )
    # XLA leaves out what a program does not read.
    assert 0.99 * expected - 64 < finding.num_bytes["arguments"] <= expected + 64
    macs = costs.macs(experiment.learning.model, experiment.learning.image_shape)
    images = 2 * int(cohort.sizes.sum())
    assert program.flops == 2 * 3 * macs.dense * images
    found = collectives(finding.operations)
    assert {op.name for op in found} == {"all-reduce"}
    assert not any(op.in_loop for op in found)


def test_evaluation_counts_every_model_on_every_example():
    experiment = build(tiny_config(devices=2, lanes=1))
    placement = make_placement(2, devices=jax.devices()[:2])
    *_, shared, own = aot.programs(experiment, placement)
    macs = costs.macs(experiment.learning.model, experiment.learning.image_shape)
    # The model without gates, and two clients with their gates, on 60 examples.
    assert shared.name == "evaluation of the model without gates"
    assert own.name == "evaluation of 2 clients"
    assert not (shared.trains or own.trains)
    assert shared.flops == 2 * macs.dense * 60
    assert own.flops == 2 * macs.dense * 2 * 60


def test_rows_of_all_clients_count_where_they_are(capsys):
    for client_rows, words in (("device", True), ("host", False)):
        config = tiny_config(devices=2, client_rows=client_rows)
        aot.compile_run(config, slice_of())
        assert ("rows of all clients" in capsys.readouterr().out) == words


def test_a_run_that_does_not_fit_is_told(capsys):
    assert not aot.compile_run(tiny_config(devices=2), slice_of(memory=10**5))
    err = capsys.readouterr().err
    assert "the round needs " in err and " on each chip, which has 0.1 MB" in err


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"lanes": "auto"}, "lanes must be a number, .* got 'auto'"),
        ({"devices": 3}, r"devices must be in \[0, 2\] on this slice, got 3"),
    ],
)
def test_what_a_slice_cannot_have_is_refused_before_data_are_read(changes, message):
    config = tiny_config(**{"data.dir": "nowhere", "data.name": "mnist"} | changes)
    with pytest.raises(SettingsError, match=message):
        aot.compile_run(config, slice_of())


FITS = dict.fromkeys(("arguments", "temporaries", "results", "program"), 10)


def finding(trains, found, refusal=""):
    program = Program("round", trains, 1.0, compile=lambda: None)
    return Finding(
        program, 1.0, num_bytes=FITS, flops=1.0, operations=found, refusal=refusal
    )


def test_a_collective_in_local_training_is_a_problem():
    inside = Operation("all-gather", 4_000_000, in_loop=True)
    outside, other = inside._replace(in_loop=False), inside._replace(name="fusion")
    assert problems(finding(True, [inside, outside]), slice_of(), 0) == [
        "the round exchanges data in local training: 1 all-gather (4 MB)"
    ]
    assert problems(finding(True, [outside, other]), slice_of(), 0) == []
    assert problems(finding(False, [inside]), slice_of(), 0) == []


def test_memory_counts_all_parts_once():
    fits = finding(True, [])
    assert problems(fits, slice_of(memory=45), 5) == []
    assert len(problems(fits, slice_of(memory=44), 5)) == 1
    refused = finding(True, [], "Used 20G of 16G hbm")
    assert problems(refused, slice_of(), 0) == [
        "the round does not fit the memory of a chip: Used 20G of 16G hbm"
    ]


@pytest.mark.parametrize(
    "name", ["", "v5e", "v5e:", "v5e:4", "v5e:4x4x", "v5litepod:4x4", "h100:8x1"]
)
def test_an_unknown_topology_is_refused(name):
    known = ", ".join(CHIPS)
    with pytest.raises(
        SettingsError, match=rf"KIND one of {known}, .* a GPU .*, got '{name}'"
    ):
        find_slice(name)
