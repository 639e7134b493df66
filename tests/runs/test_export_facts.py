"""What is compared before a file of ONNX is kept, versions, and words of the card."""

import importlib.metadata
import json

import jax
import numpy as np
import pytest

from fedjax_prune.runs.export import export_model
from fedjax_prune.runs.export.card import card
from fedjax_prune.runs.export.facts import version_of
from fedjax_prune.runs.export.to_onnx import TOLERANCE, require_equal
from tests.exported import write_run
from tests.small_runs import plain_config

LOGITS = np.random.default_rng(0).normal(size=(16, 10)).astype(np.float32) * 3


def moved(examples, by):
    """Logits, of which one of some examples differs by a share of the largest."""
    found = LOGITS.copy()
    found[:examples, 3] += by * np.abs(LOGITS).max()
    return found


@pytest.mark.parametrize(
    ("found", "gated", "kept"),
    [
        (moved(16, 0.9 * TOLERANCE), False, True),
        (moved(1, 1.1 * TOLERANCE), False, False),
        # A gate near a tie is one example's.
        (moved(1, 0.5), True, True),
        (moved(2, 1.1 * TOLERANCE), True, False),
        (moved(1, np.nan), True, False),
    ],
)
def test_a_file_with_other_logits_is_refused(found, gated, kept):
    if kept:
        require_equal(found, LOGITS, gated=gated)
        return
    with pytest.raises(ValueError, match=r"logits that differ by .* for \d of 16 exam"):
        require_equal(found, LOGITS, gated=gated)


def test_the_version_of_a_module_that_several_distributions_have(tmp_path, monkeypatch):
    folder = tmp_path / "half_runtime_gpu-1.2.dist-info"
    folder.mkdir()
    (folder / "METADATA").write_text("Name: half-runtime-gpu\nVersion: 1.2\n")
    (folder / "top_level.txt").write_text("half_runtime\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(importlib.metadata.PackageNotFoundError):
        importlib.metadata.version("half_runtime")
    assert version_of("half_runtime") == "1.2"
    assert version_of("jax") == jax.__version__
    assert version_of("not_there") == "unknown"


def test_a_card_explains_only_fields_that_the_evaluation_has(tmp_path):
    write_run(tmp_path / "run", plain_config(rounds=1))
    export_model(tmp_path / "run", tmp_path / "model")
    facts = json.loads((tmp_path / "model" / "model.json").read_text())
    gated, dense = "eval/client_gated/mean", "eval/global_dense/accuracy"
    for names in ((), (gated,), (dense,), (dense, gated)):
        accuracy = {"round": 1, "eval/headline": 0.5} | dict.fromkeys(names, 0.5)
        text = card(facts | {"accuracy": accuracy}, {})
        assert ("`eval/client_gated`" in text) == (gated in names)
        assert ("`eval/global_dense`" in text) == (dense in names)
        assert (", where" in text) == bool(names)
