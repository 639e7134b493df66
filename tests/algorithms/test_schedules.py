"""Schedules of AutoFLIP: when masks are made, and what agreement makes them of."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fedjax_prune.algorithms.autoflip import schedules
from fedjax_prune.pruning.mask_rule import MaskRule
from tests.layered import (
    FIELDS,
    SIZES,
    build,
    kernel,
    prepare,
    problem,
    rounds,
    walk,
)


@pytest.mark.parametrize("every", [1, 2])
def test_participants_make_masks_every_so_many_rounds(every):
    """Of rounds 0, 1 and 2, whose clients differ, in those that `every` divides."""
    algorithm = build(**FIELDS, mask_schedule="participants", mask_every=every)
    state, rows, _ = prepare(algorithm)
    masks = []
    for ids in ([1, 2], [0, 3], [0, 3]):
        state, rows, _ = rounds(algorithm, state, rows, [ids])
        masks.append(kernel(state.server.masks))
    assert (masks[0] != masks[2]).any()
    np.testing.assert_array_equal(masks[1], masks[0] if every == 2 else masks[2])


def agreed(**fields):
    """The state before and after a round of clients 1 and 2, and rows before it."""
    algorithm = build(**FIELDS, mask_schedule="agreement", mask_every=1, **fields)
    state, rows, _ = prepare(algorithm)
    after, _, _ = rounds(algorithm, state, rows, [[1, 2]])
    return state, rows, after


def test_votes_count_by_the_examples_of_their_clients():
    """A = 0.9 A + 0.1 (7 b_1 + 2 b_2) / 9."""
    state, rows, after = agreed()
    votes = kernel(rows.client.own.tree)[[1, 2]].astype(np.float64)
    now = np.average(votes, axis=0, weights=[SIZES[1], SIZES[2]])
    expected = 0.9 * kernel(state.server.guide.agreement) + 0.1 * now
    found = kernel(after.server.guide.agreement)
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-7)


def test_a_score_is_a_rank_times_a_power_of_the_agreement():
    """All changes allowed: of 10 entries the 6 with the largest q A^8 are kept."""
    fields = {"agreement_rate": 0.5, "agreement_change": 1.0}
    guide = agreed(**fields, agreement_power=8.0)[2].server.guide

    def best(power):
        score = kernel(guide.rank) * kernel(guide.agreement).astype(np.float64) ** power
        return np.sort(np.argsort(-score, kind="stable")[:6]).tolist()

    assert np.flatnonzero(kernel(guide.kept)).tolist() == best(8) != best(1)


def test_a_ramp_starts_at_its_first_threshold():
    """T_0 = 0.1 and T_1 = 0.4 - 0.3 * 0.8^3 = 0.25 of 10 entries, rounded up."""
    fields = {"threshold_start": 0.1, "threshold_ramp": 5, "agreement_change": 1.0}
    state, _, after = agreed(**fields)
    kept = [int(kernel(each.server.masks).sum()) for each in (state, after)]
    assert kept == [10 - 1, 10 - 3]


def test_agreement_changes_few_entries_every_tenth_round():
    """One client alone, whose votes soon outweigh what all agreed on before."""
    algorithm = build(
        **FIELDS | {"mask_schedule": "agreement", "agreement_change": 0.2},
        agreement_rate=0.5,
    )
    state, rows, _ = prepare(algorithm)
    masks = [kernel(state.server.masks)]
    for _ in range(20):
        state, rows, _ = rounds(algorithm, state, rows, [[2]])
        masks.append(kernel(state.server.masks))
    changed = [(a != b).sum() for a, b in itertools.pairwise(masks)]
    assert [n for i, n in enumerate(changed, 1) if i % 10] == [0] * 18
    assert 0 < max(changed) <= 2


@pytest.mark.parametrize("ids", [[1, 2], [0, 2], [2, 3]])
def test_participants_make_masks_by_their_examples_if_these_count(ids):
    algorithm = build(
        **FIELDS, mask_schedule="participants", explorer_weighting="samples"
    )
    state, rows, _ = prepare(algorithm)
    bowls, w = problem()[1], kernel(state.params)
    deviations = [(walk(w, bowls[i], 3) - w) ** 2 for i in ids]
    guidance = np.average(deviations, axis=0, weights=[SIZES[i] for i in ids])
    after, _, _ = rounds(algorithm, state, rows, [ids])
    expected = guidance > np.quantile(guidance, FIELDS["threshold"])
    np.testing.assert_array_equal(kernel(after.server.masks), expected)


def test_what_participants_train_is_delivered_under_the_mask_of_all_explorers():
    algorithm = build(**FIELDS, mask_schedule="participants")
    state, rows, _ = prepare(algorithm)
    of_all = kernel(state.server.masks)
    state, _, _ = rounds(algorithm, state, rows, [[1, 2]])
    assert (kernel(state.server.masks) != of_all).any()
    delivered = kernel(jax.jit(algorithm.deliver)(state).params)
    np.testing.assert_array_equal(delivered, np.where(of_all, kernel(state.params), 0))


def test_agreement_begins_with_the_votes_of_all_explorers_by_their_examples():
    algorithm = build(**FIELDS, mask_schedule="agreement")
    state, rows, _ = prepare(algorithm)
    votes = kernel(rows.client.own.tree).astype(np.float64)
    expected = np.average(votes, axis=0, weights=SIZES)
    assert (expected != votes.mean(axis=0)).any()
    np.testing.assert_allclose(
        kernel(state.server.guide.agreement), expected, rtol=1e-6, atol=1e-7
    )


def test_agreement_stays_in_a_round_without_explorers():
    algorithm = build(**FIELDS, mask_schedule="agreement", mask_every=1)
    state, rows, _ = prepare(algorithm, ids=[0, 1])
    after, _, _ = rounds(algorithm, state, rows, [[2, 3]])
    np.testing.assert_array_equal(
        *(kernel(each.server.guide.agreement) for each in (state, after))
    )


def test_what_every_array_keeps_is_of_the_highest_score():
    """The second entry has the second rank, but nobody agrees on it."""
    rule = MaskRule(
        {"kernel": True}, (), threshold=0.5, min_keep=0.75, structured="off"
    )
    guide = schedules._Guide(
        rank={"kernel": jnp.array([1.0, 0.75, 0.5, 0.25])},
        agreement={"kernel": jnp.array([1.0, 0.0, 1.0, 1.0])},
        kept={"kernel": jnp.array([True, False, True, False])},
    )
    made, _ = schedules._renewed(rule, schedules.Agreement(), guide, jnp.int32(1))
    np.testing.assert_array_equal(made.masks["kernel"], [1, 0, 1, 1])
