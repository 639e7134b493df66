"""AutoFLIP against numpy on quadratic clients, and its invariants."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fedjax_prune.algorithms import ALGORITHMS, autoflip
from fedjax_prune.engine.server import make_server_tx
from fedjax_prune.engine.solver import make_solver
from fedjax_prune.models import CNN
from fedjax_prune.models.channels import alive_channels
from fedjax_prune.models.gates import GateSettings
from fedjax_prune.models.task import make_task
from fedjax_prune.types import LocalResult, Probe
from tests import toys
from tests.layered import (
    BETA,
    FIELDS,
    KEY,
    NUM_DIMS,
    SIZES,
    build,
    kernel,
    prepare,
    problem,
    rounds,
    walk,
)


def expected_mask(w0, bowls, epochs=3):
    deviation = np.mean([(walk(w0, b, epochs) - w0) ** 2 for b in bowls], axis=0)
    return deviation > np.quantile(deviation, 0.4)


def test_exploration_masks_and_rounds_equal_numpy():
    """Damped momentum: v = beta v + (1 - beta) Delta, only where the mask keeps."""
    _, bowls = problem()
    algorithm = build(**FIELDS, mask_schedule="fixed")
    state, rows, _ = prepare(algorithm)
    w = kernel(algorithm.init(KEY).params).astype(np.float64)
    np.testing.assert_array_equal(kernel(state.params), w)  # w^0 is untouched
    mask = expected_mask(w, bowls)
    np.testing.assert_array_equal(kernel(state.server.masks), mask)
    assert 0 < mask.sum() < NUM_DIMS
    cohorts = [[0, 2], [1, 3], [0, 1, 2, 3]]
    state, _, _ = rounds(algorithm, state, rows, cohorts)
    v, start = np.zeros(NUM_DIMS), w.copy()
    for ids in cohorts:
        sizes = np.array(SIZES)[ids]
        delta = sum(
            n / sizes.sum() * (w * mask - walk(w * mask, bowls[i], 2, mask))
            for n, i in zip(sizes, ids, strict=True)
        )
        v = BETA * v + (1 - BETA) * delta
        w = np.where(mask, w - v, w)
    np.testing.assert_allclose(kernel(state.params), w, rtol=2e-5, atol=1e-6)
    np.testing.assert_array_equal(kernel(state.params)[~mask], np.float32(start[~mask]))
    sent = algorithm.deliver(state).params
    np.testing.assert_array_equal(kernel(sent)[~mask], 0)


@pytest.mark.parametrize("schedule", ["fixed", "participants", "agreement"])
def test_pruning_nothing_is_fedavg_bit_for_bit(schedule):
    fields = {"threshold": 0.0, "structured_density": -1.0, "explore_epochs": 1}
    algorithm = build(**fields, mask_schedule=schedule, mask_every=1)
    plain = build("fedavg")
    cohorts = [[0, 2], [1, 3]]
    state, rows, _ = prepare(algorithm)
    assert int(state.server.version) == 0
    found, found_rows, _ = rounds(algorithm, state, rows, cohorts)
    state, rows = toys.first(plain, len(SIZES), KEY)
    expected, expected_rows, _ = rounds(plain, state, rows, cohorts)
    for a, b in (
        (found.params, expected.params),
        (found.server.base, expected.server),
        (found_rows.personal, expected_rows.personal),
    ):
        jax.tree.map(np.testing.assert_array_equal, a, b)


def test_all_participants_have_the_mask_of_all_explorers():
    _, bowls = problem()
    algorithm = build(**FIELDS, mask_schedule="participants")
    state, rows, _ = prepare(algorithm)
    explored = kernel(state.server.masks)
    everyone, _, _ = rounds(algorithm, state, rows, [[0, 1, 2, 3]])
    np.testing.assert_array_equal(kernel(everyone.server.masks), explored)
    assert int(everyone.server.version) == 1
    few, few_rows, sums = rounds(algorithm, state, rows, [[1, 2]])
    w = kernel(state.params)
    expected = expected_mask(w, [bowls[1], bowls[2]])
    np.testing.assert_array_equal(kernel(few.server.masks), expected)
    assert (expected != explored).any() and int(few.server.version) == 2
    assert int(sums["mask/sent"]) == 2
    np.testing.assert_array_equal(few_rows.client.version, [0, 2, 2, 0])


def test_a_round_without_messages_changes_only_the_masks():
    dataset, _ = problem()
    algorithm = build(**FIELDS, mask_schedule="participants")
    state, rows, _ = prepare(algorithm)
    expected, _, _ = rounds(algorithm, state, rows, [[1, 2]])
    broken = dataset._replace(images=jnp.full_like(dataset.images, jnp.nan))
    after, after_rows, sums = rounds(algorithm, state, rows, [[1, 2]], broken)
    assert sums["arrived"].sum() == 0 and sums["mask/sent"] == 2
    masks = kernel(after.server.masks)
    np.testing.assert_array_equal(masks, kernel(expected.server.masks))
    assert (masks != kernel(state.server.masks)).any()
    made = after.server._replace(base=state.server.base)
    kept = state._replace(round=state.round + 1, server=made)
    jax.tree.map(np.testing.assert_array_equal, (after, after_rows), (kept, rows))


@pytest.mark.parametrize("weighting", ["uniform", "samples"])
def test_with_everybody_participants_is_fixed(weighting):
    states = []
    for schedule in ("fixed", "participants"):
        fields = FIELDS | {"explorer_weighting": weighting}
        algorithm = build(**fields, mask_schedule=schedule)
        state, rows, _ = prepare(algorithm)
        everybody = [[0, 1, 2, 3]] * 3
        states.append(rounds(algorithm, state, rows, everybody)[0])
    fixed, participants = states
    jax.tree.map(
        np.testing.assert_array_equal, fixed.server.masks, participants.server.masks
    )
    jax.tree.map(np.testing.assert_array_equal, fixed.params, participants.params)


def test_what_is_pruned_is_zero_on_the_clients():
    """After local steps of Adam with weight decay, before anything is sent."""
    with jax.numpy_dtype_promotion("standard"):
        algorithm = build(**FIELDS, optimizer="adam", decay=0.1, mask_schedule="fixed")
        state, rows, _ = prepare(algorithm)

        def measure(variables, masks):
            left = jax.tree.map(lambda m, p: (~m & (p != 0)).sum(), masks, variables)
            return {"left": sum(jax.tree.leaves(left)).astype(jnp.float32)}

        probe = Probe(
            measure=lambda variables, masks: measure(variables.params, masks),
            examples=state.server.masks,
            wanted=jnp.ones(4, bool),
        )
        cohort = toys.contiguous_cohort(SIZES)
        run = toys.compiled_round(algorithm)
        _, _, sums = run(state, rows, problem()[0], cohort, KEY, probe=probe)
    assert (~kernel(state.server.masks)).any()
    np.testing.assert_array_equal(sums["left"], 0)


def test_silent_channels_keep_their_statistics():
    task = make_task(CNN(4, width=0.5, norm="bn"), (8, 8, 1))
    solver = make_solver(epochs=1, batch_size=6, lr=0.1)
    algorithm = ALGORITHMS["eflprune"](
        task, solver, make_server_tx(), channel_share=0.5
    )
    dataset = jax.device_put(toys.image_dataset(12, (8, 8, 1), 4))
    state, rows = toys.first(algorithm, 2, KEY)
    cohort = toys.contiguous_cohort((6, 6))
    run = toys.compiled_round(algorithm)
    after, _, _ = run(state, rows, dataset, cohort, KEY)
    (group,) = (group for group in task.groups if group.name == "conv1")
    alive = np.asarray(alive_channels(after.server.masks, group))
    assert 0 < alive.sum() < alive.size
    statistics = [jax.tree.leaves(s.model_state["conv1"]) for s in (state, after)]
    for old, new in zip(*statistics, strict=True):
        np.testing.assert_array_equal(old[~alive], new[~alive])
        assert (old[alive] != new[alive]).all()


def test_without_explorers_among_the_clients_the_masks_stay():
    algorithm = build(**FIELDS, mask_schedule="participants")
    state, rows, _ = prepare(algorithm, ids=[0, 1])
    np.testing.assert_array_equal(rows.client.own.explored, [1, 1, 0, 0])
    after, _, _ = rounds(algorithm, state, rows, [[2, 3]])
    np.testing.assert_array_equal(
        kernel(after.server.masks), kernel(state.server.masks)
    )


@pytest.mark.parametrize(
    ("base", "optimizer", "schedule"),
    [
        ("scaffold", "sgd", "fixed"),
        ("scaffold", "sgd", "participants"),
        ("fedprox", "adam", "agreement"),
        ("fedavg", "adam", "participants"),
    ],
)
def test_nothing_changes_where_the_mask_prunes(base, optimizer, schedule):
    # Optax's Adam raises a float to a whole number.
    with jax.numpy_dtype_promotion("standard"):
        check_nothing_changes(base, optimizer, schedule)


def check_nothing_changes(base, optimizer, schedule):
    algorithm = build(
        **FIELDS, base=base, optimizer=optimizer, mask_schedule=schedule, decay=0.1
    )
    state, rows, _ = prepare(algorithm)
    for ids in ([0, 2], [1, 3], [0, 1]):
        before, before_rows = state, rows
        state, rows, _ = rounds(algorithm, state, rows, [ids])
        pruned = ~kernel(state.server.masks)
        assert 0 < pruned.sum() < NUM_DIMS

        def same(new, old, pruned=pruned):
            if np.shape(new)[-1:] == (NUM_DIMS,):
                new, old = np.asarray(new), np.asarray(old)
                np.testing.assert_array_equal(new[..., pruned], old[..., pruned])
                assert (new[..., ~pruned] != old[..., ~pruned]).any()

        jax.tree.map(
            same,
            (state.params, state.server.base, rows.client.base),
            (before.params, before.server.base, before_rows.client.base),
        )
        if base == "scaffold":  # c is the mean of all c_k
            control = kernel(state.server.base.control)
            mean = kernel(rows.client.base).mean(0)
            np.testing.assert_allclose(control, mean, atol=1e-6)


def test_a_client_sends_no_control_that_the_mask_prunes():
    algorithm = build(**FIELDS, base="scaffold", mask_schedule="fixed")
    state, rows, _ = prepare(algorithm)
    ones = jax.tree.map(jnp.ones_like, state.params)
    # As a control that was learnt under another mask.
    before = state.server.base._replace(control=ones)
    state = state._replace(server=state.server._replace(base=before))
    program = algorithm.rules.program(state, toys.contiguous_cohort(SIZES, [0]))
    row = jax.tree.map(lambda x: x[0], rows)
    row = row._replace(client=row.client.base)
    zeros = jax.tree.map(jnp.zeros_like, ones)
    result = LocalResult(
        delta=zeros,
        personal=row.personal,
        model_state={},
        num_examples=jnp.int32(4),
        step_mass=jnp.float32(1),
        solver_state=(),
        sums={},
    )
    message, _ = program.upload(result, row)
    sent, mask = kernel(message["control_change"].values), kernel(state.server.masks)
    np.testing.assert_array_equal(sent, np.where(mask, np.float32(-1 / 4), 0))


def test_a_sparse_server_forgets_what_is_pruned():
    algorithm = build(**FIELDS, mask_schedule="fixed", server_store="sparse")
    state, rows, _ = prepare(algorithm)
    state, _, _ = rounds(algorithm, state, rows, [[0, 1]])
    pruned = ~kernel(state.server.masks)
    np.testing.assert_array_equal(kernel(state.params)[pruned], 0)


def test_update_signs_by_hand():
    """A = 0.9 + 0.1 |sum p_k sign(Delta)| where the mask keeps, else 1."""
    _, bowls = problem()
    algorithm = build(
        **FIELDS, mask_schedule="agreement", agreement_source="update_sign"
    )
    state, rows, _ = prepare(algorithm)
    after, _, _ = rounds(algorithm, state, rows, [[0, 1]])
    mask, w = kernel(state.server.masks), kernel(state.params)
    signs = [np.sign(w * mask - walk(w * mask, bowls[i], 2, mask)) for i in (0, 1)]
    agreed = abs(4 / 11 * signs[0] + 7 / 11 * signs[1])
    expected = np.where(mask, 0.9 + 0.1 * agreed, 1)
    found = kernel(after.server.guide.agreement)
    np.testing.assert_allclose(found, expected, rtol=1e-5)


def test_gates_count_only_what_is_alive():
    shape = (8, 8, 1)
    model = CNN(3, gates=GateSettings(0.5))
    task = make_task(model, shape)
    solver = make_solver(epochs=1, batch_size=8, lr=0.1)
    algorithm = autoflip(
        task,
        solver,
        make_server_tx(),
        explore_epochs=1,
        structured_rule="guidance_l1",
        structured_share=0.75,
        threshold=0.0,
        mask_schedule="fixed",
    )
    dataset = jax.device_put(toys.image_dataset(16, shape, 3))
    cohort = toys.contiguous_cohort((8, 8))
    state, rows, sums = toys.prepare(algorithm, dataset, cohort, KEY)
    assert int(sums["mask/channels/conv1"]) == 4
    run = toys.compiled_round(algorithm)
    state, rows, sums = run(state, rows, dataset, cohort, KEY)
    # Of 16 channels 8 are wanted and 4 alive; 8 images on each client.
    selected = np.asarray(sums["selected/conv1"])
    np.testing.assert_array_equal(selected.sum(1), [32, 32])
    assert ((selected > 0).sum(1) == 4).all()
