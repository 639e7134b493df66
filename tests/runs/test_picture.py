"""The picture of a run shows what its rows say."""

import math

import numpy as np
from PIL import Image

from fedjax_prune.runs import picture

GATED = [
    {
        "round": n,
        "train/loss": 2 / n,
        "train/accuracy": n / 10,
        "bytes/down": 3e6,
        "bytes/up": 1e6,
        "bytes/dense": 4e6,
        "gates/conv1/used": 0.5,
    }
    for n in (1, 2, 3)
]
GATED[1] |= {
    "eval/global_dense/accuracy": 0.25,
    "eval/client_gated/mean": 0.5,
    "eval/after_local/mean": 0.125,
    "eval/client_local/mean": 0.75,
    "eval/clients": 4,
}
# Round 0 explores; later rounds send half of what they would without masks.
MASKED = [
    {
        "round": n,
        "train/loss": math.nan if n == 1 else 0.5,
        "train/accuracy": 0.5,
        "bytes/down": 1e6 if n else 2e6,
        "bytes/up": 1e6 if n else 2e6,
        "bytes/dense": 4e6,
        "sparsity/all": n / 4,
        "eval/global_dense/accuracy": 0.5,
        "eval/client_gated/mean": 0.5,
        "eval/client_local/mean": 0.75,
        "eval/clients": 1,
    }
    for n in (0, 1, 2)
]


def lines(rows):
    """Axis -> label of a line -> its points."""
    figure = picture.plot(rows)
    assert figure is not None
    return {
        axes.get_ylabel(): {
            line.get_label(): np.asarray(line.get_xydata()).tolist()
            for line in axes.get_lines()
        }
        for axes in figure.axes
    }


def test_a_gated_run_shows_all_accuracies_in_percent():
    drawn = lines(GATED)
    assert list(drawn) == ["accuracy (%)", "training loss", "MB sent so far"]
    assert drawn["accuracy (%)"] == {
        "test set, shared model without gates": [[2, 25]],
        "test set, shared model with own gates (mean)": [[2, 50]],
        "test set, before averaging (mean)": [[2, 12.5]],
        "own validation sets (mean)": [[2, 75]],
        "training images, during the round": [[1, 10], [2, 20], [3, 30]],
    }
    (loss,) = drawn["training loss"].values()
    assert loss == [[1, 2], [2, 1], [3, 2 / 3]]
    (sent,) = drawn["MB sent so far"].values()
    assert sent == [[1, 4], [2, 8], [3, 12]]


def test_a_masked_run_shows_what_masks_save_and_no_mean_over_one_client():
    drawn = lines(MASKED)
    assert set(drawn["accuracy (%)"]) == {
        "test set, shared model",
        "training images, during the round",
    }
    (loss,) = drawn["training loss"].values()
    np.testing.assert_array_equal(loss, [[1, math.nan], [2, 0.5]])
    assert drawn["MB sent so far"] == {
        "with masks": [[0, 4], [1, 6], [2, 8]],
        "without": [[0, 4], [1, 8], [2, 12]],
    }
    (pruned,) = drawn["pruned (%)"].values()
    assert pruned == [[1, 25], [2, 50]]


def test_the_file_is_a_small_picture(tmp_path):
    picture.draw(MASKED, tmp_path / "rounds.png")
    with Image.open(tmp_path / "rounds.png") as image:
        assert image.format == "PNG"
        assert image.width >= 700
    assert (tmp_path / "rounds.png").stat().st_size < 60_000


def test_without_a_finished_round_nothing_is_drawn(tmp_path):
    picture.draw(MASKED[:1], tmp_path / "rounds.png")
    picture.draw([], tmp_path / "rounds.png")
    assert not list(tmp_path.iterdir())


def test_the_file_that_a_link_names_stays_as_it_is(tmp_path):
    (tmp_path / "outside").write_text("mine")
    for name in ("rounds.png", ".rounds.png.new"):
        (tmp_path / name).symlink_to(tmp_path / "outside")
    picture.draw(GATED, tmp_path / "rounds.png")
    assert (tmp_path / "outside").read_text() == "mine"
    assert not (tmp_path / "rounds.png").is_symlink()
    with Image.open(tmp_path / "rounds.png") as image:
        assert image.format == "PNG"
