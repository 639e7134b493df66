"""Accuracies against counting by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fedjax_prune.data.padded import Padded
from fedjax_prune.engine import evaluate
from fedjax_prune.types import Dataset, Task, Variables


def threshold_task() -> Task:
    """Predicts class 1 where the pixel exceeds `cut`, shared plus personal."""

    def predict(variables, images):
        cut = variables.params["cut"] + variables.personal.get("shift", 0.0)
        pixel = images[:, 0, 0, 0].astype(jnp.float32)
        return jnp.stack([cut - pixel, pixel - cut], axis=1)

    return Task(lambda key: None, lambda *a: None, predict)


TEST = Dataset(
    jnp.arange(7, dtype=jnp.uint8)[:, None, None, None],
    jnp.array([0, 0, 0, 1, 1, 1, 0], jnp.int32),
)
SHARED = Variables({"cut": jnp.float32(2.5)}, {}, {})


def test_correct_examples_counts_each_once_whatever_the_batch(monkeypatch):
    expected = [True] * 6 + [False]
    for batch_size in (1, 2, 3, 7, 100):
        monkeypatch.setattr(evaluate, "BATCH_SIZE", batch_size)
        correct = evaluate.correct_examples(threshold_task(), SHARED, TEST)
        np.testing.assert_array_equal(correct, expected)


def test_images_and_labels_are_as_many():
    more = TEST._replace(images=TEST.images[:-1])
    with pytest.raises(ValueError, match=r"shape \(6,\), one for each .* got \(7,\)"):
        evaluate.correct_examples(threshold_task(), SHARED, more)


def test_each_client_is_measured_with_its_own_gates():
    own = SHARED._replace(personal={"shift": jnp.array([0.0, 2.0])})
    correct = evaluate.correct_by_client(threshold_task(), own, TEST)
    # Cut at 2.5: pixels 3-6 say 1. Cut at 4.5: pixels 5, 6 say 1.
    np.testing.assert_array_equal(correct.sum(axis=1), [6, 4])
    without = evaluate.correct_by_client(threshold_task(), SHARED, TEST)
    assert without.shape == (1, 7)


VALIDATION = Padded(
    np.array([[0, 6, 5], [4, 0, 0]], np.int32), np.array([3, 1], np.int32)
)


def test_local_accuracy_reads_the_same_results():
    own = SHARED._replace(personal={"shift": jnp.array([0.0, 2.0])})
    correct = evaluate.correct_by_client(threshold_task(), own, TEST)
    local = evaluate.local_accuracy(correct, VALIDATION)
    # Client 0: 0 and 5 right, 6 wrong. Client 1: 4 lies below 4.5, wrong.
    np.testing.assert_allclose(local, [2 / 3, 0.0])


def test_holdout_accuracy_runs_on_the_held_out_examples():
    own = SHARED._replace(personal={"shift": jnp.array([0.0, 2.0])})
    local = evaluate.holdout_accuracy(
        threshold_task(), own, TEST, jax.tree.map(jnp.asarray, VALIDATION)
    )
    np.testing.assert_allclose(local, [2 / 3, 0.0])


def test_probe_counts_correct_examples():
    wanted = np.array([True, False])
    probe = evaluate.after_local_probe(threshold_task(), TEST, wanted)
    assert probe.wanted is wanted
    assert float(probe.measure(SHARED, probe.examples)["after_local"]) == 6


def test_summary_of_eleven_clients():
    accuracies = np.arange(11) / 10
    assert evaluate.summarise(accuracies) == {
        "mean": 0.5,
        "std": np.std(accuracies),
        "p10": 0.1,
        "min": 0.0,
    }
