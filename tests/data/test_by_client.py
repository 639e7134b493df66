"""Data that comes with its clients: LEAF's files and plays."""

import json
import os
from dataclasses import astuple
from pathlib import Path

import numpy as np
import pytest

from configs.base import get_config
from fedjax_prune.data.by_client import (
    SYMBOLS,
    WINDOW,
    load_by_client,
    speeches_by_speaker,
)
from fedjax_prune.data.datasets import DataError
from tests.small_runs import build

SHARED = Path(__file__).parents[3] / "shared/data/shakespeare"
PLAYS = Path(os.environ.get("SHAKESPEARE_DIR", SHARED))


def test_text_windows_by_hand(tmp_path):
    speech = "".join(SYMBOLS[40 + i % 20] for i in range(1500))
    play = "".join(f"ANNA:\n{speech[i : i + 500]}\n\n" for i in (0, 500, 1000))
    play += "BOB:\nShort.\n\n" * 3 + f"CARL:\n{speech}\n\n"
    (tmp_path / "play.txt").write_text(play)
    found = load_by_client("shakespeare", tmp_path, 1, seed=0)
    # Two line ends join three speeches. Bob says too little, and Carl speaks once.
    total = 1502 - WINDOW
    assert found.population.sizes.tolist() == [total * 9 // 10]
    assert found.held_out.sizes.tolist() == [total - total * 9 // 10 - WINDOW + 1]
    images, labels = found.dataset
    assert images.shape == (total, WINDOW, 1, 1) and images.dtype == np.uint8
    text = [SYMBOLS[i] for i in images[3, :, 0, 0]]
    assert "".join(text) == speech[3 : 3 + WINDOW]
    assert SYMBOLS[labels[3]] == speech[3 + WINDOW]
    last_seen = found.population.indices[-1] + WINDOW
    assert found.held_out.indices[0] == last_seen


def test_symbols_are_leafs():
    assert len(SYMBOLS) == len(set(SYMBOLS)) == 80


PLAY = """A preface: it ends here.

First Citizen:
Hear me: what I say
is this:
A list.

All:

First Citizen:
One more
\t
line.

ANNA: \t
No line ends in a name:

ANNA:
Of a colon: no end
Cut:
off."""


def test_who_speaks():
    """A name stands alone in a line after a blank one; empty speeches are left out."""
    expected = {
        "First Citizen": [
            "Hear me: what I say\nis this:\nA list.",
            "One more\n\nline.",
        ],
        "ANNA": ["No line ends in a name:", "Of a colon: no end\nCut:\noff."],
    }
    assert speeches_by_speaker(PLAY) == expected
    assert list(speeches_by_speaker(PLAY)) == ["First Citizen", "ANNA"]
    cut = PLAY[PLAY.index("First") :]
    assert speeches_by_speaker(cut) == speeches_by_speaker("\n" + cut) == expected
    assert speeches_by_speaker("") == speeches_by_speaker("Nobody speaks.") == {}


@pytest.mark.skipif(
    not (PLAYS / "input.txt").exists(), reason=f"no tiny Shakespeare in {PLAYS}"
)
def test_who_speaks_in_tiny_shakespeare():
    expected = json.loads((PLAYS / "shakespeare_by_speaker.json").read_text())
    found = speeches_by_speaker((PLAYS / "input.txt").read_text())
    assert len(found) == 299
    assert found == expected["user_data"]


def assert_equal_data(found, expected):
    np.testing.assert_equal(found.dataset, expected.dataset)
    np.testing.assert_equal([*map(astuple, found[1:])], [*map(astuple, expected[1:])])


def test_byte_order_marks_and_line_ends_change_nothing(tmp_path):
    speech = "Some words that end nowhere,\nand more.\n" * 15
    play = f"ANNA:\n{speech}\n" * 3
    files = {
        "plain": play.encode(),
        "marked": play.encode("utf-8-sig"),
        "windows": play.replace("\n", "\r\n").encode("utf-8-sig"),
    }
    found = []
    for name, content in files.items():
        folder = tmp_path / name
        folder.mkdir()
        (folder / "play.txt").write_bytes(content)
        found.append(load_by_client("shakespeare", folder, 1, seed=0))
    total = 3 * len(speech.strip()) + 2 - WINDOW
    assert len(found[0].dataset.labels) == total
    assert_equal_data(found[1], found[0])
    assert_equal_data(found[2], found[0])
    (tmp_path / "play.txt").write_bytes(b"ANNA:\n\xe9t\xe9\n")
    with pytest.raises(DataError, match=r"play\.txt must be text in UTF-8"):
        load_by_client("shakespeare", tmp_path, 1, seed=0)


def test_speeches_from_json(tmp_path):
    text = "ab cd " * 200
    speakers = {"X": [text] * 3, "Y": {"raw": text}, "Z": text, "W": [text] * 2}
    content = {"users": list(speakers), "user_data": speakers}
    (tmp_path / "speakers.json").write_text(json.dumps(content), encoding="utf-8-sig")
    found = load_by_client("shakespeare", tmp_path, 3, seed=0)
    assert len(found.dataset.labels) == 5 * len(text) + 2 - 3 * WINDOW
    with pytest.raises(DataError, match=r"has 3 clients .* at most that, got 4"):
        load_by_client("shakespeare", tmp_path, 4, seed=0)


def leafs_pairs(text):
    """Makes windows of a speaker's text as LEAF does."""
    places = range(len(text) - WINDOW)
    return {
        "x": [text[i : i + WINDOW] for i in places],
        "y": [text[i + WINDOW] for i in places],
    }


def test_leafs_pairs_are_read_as_they_are(tmp_path):
    rng = np.random.default_rng(0)
    texts = {
        user: "".join(SYMBOLS[i] for i in rng.integers(0, 80, 1500))
        for user in ("B", "A")
    }
    data = {user: leafs_pairs(text) | {"raw": text} for user, text in texts.items()}
    data["SHORT"] = leafs_pairs(texts["A"][:800])
    content = {"users": list(data), "user_data": data, "num_samples": [1420, 1420, 720]}
    (tmp_path / "all_data.json").write_text(json.dumps(content))
    found = load_by_client("shakespeare", tmp_path, 2, seed=0)
    images, labels = found.dataset
    assert images.shape == (2 * 1420, WINDOW, 1, 1) and labels.dtype == np.int32
    order = np.random.RandomState(0).permutation(2)
    users = [sorted(texts)[i] for i in order]
    windows = ["".join(SYMBOLS[i] for i in row) for row in images[:, :, 0, 0]]
    assert windows == data[users[0]]["x"] + data[users[1]]["x"]
    nexts = [SYMBOLS[i] for i in labels]
    assert nexts == data[users[0]]["y"] + data[users[1]]["y"]
    assert found.population.sizes.tolist() == [1278, 1278]
    assert found.held_out.sizes.tolist() == [1420 - 1278 - 79] * 2
    # Two files with half of the pairs each belong to the same user.
    for half, part in enumerate((slice(0, 700), slice(700, None))):
        halves = {
            user: {key: data[user][key][part] for key in ("x", "y")} for user in texts
        }
        content = {"users": list(texts), "user_data": halves}
        (tmp_path / "halves").mkdir(exist_ok=True)
        (tmp_path / "halves" / f"{half}.json").write_text(json.dumps(content))
    again = load_by_client("shakespeare", tmp_path / "halves", 2, seed=0)
    assert_equal_data(again, found)


@pytest.mark.parametrize(
    ("entry", "said"),
    [
        ({"x": ["a" * 79], "y": ["b"]}, f"x must hold texts of 80 .* got '{'a' * 79}'"),
        ({"x": ["a" * 80] * 2, "y": ["b", "bc"]}, r"y must .* got 'bc' at index 1"),
        ({"x": ["a" * 80], "y": [3]}, r"y must hold texts of 1 .* got 3 at index 0"),
        ({"x": ["a" * 80] * 2, "y": ["b"]}, r"equally long, got 2 and 1"),
        ({"y": ["b"]}, r"x must be a list"),
        ({"x": ["a" * 80]}, r"must have x and y, raw, or a list of speeches"),
        ([1, 2], r"must have x and y, raw, or a list of speeches, got \[1, 2\]"),
    ],
)
def test_what_is_neither_pairs_nor_speeches_is_named(tmp_path, entry, said):
    content = {"users": ["U"], "user_data": {"U": entry}}
    (tmp_path / "some.json").write_text(json.dumps(content))
    with pytest.raises(DataError, match=r"some\.json: user U.*" + said):
        load_by_client("shakespeare", tmp_path, 1, seed=0)


def test_images_of_writers(tmp_path):
    rng = np.random.default_rng(0)
    users = [f"w{i}" for i in range(4)]
    data = {
        user: {"x": rng.random((20, 784)).round(3).tolist(), "y": [i] * 20}
        for i, user in enumerate(users)
    }
    (tmp_path / "all_data_0.json").write_text(
        json.dumps({"users": users, "user_data": data})
    )
    found = load_by_client("femnist", tmp_path, 3, num_train=50, seed=1)
    order = np.random.RandomState(1).permutation(4)[:3]
    expected = np.repeat(order, [20, 20, 10])
    np.testing.assert_array_equal(found.dataset.labels, expected)
    pixels = np.round(255 * np.array(data[users[order[0]]]["x"][0])).reshape(28, 28)
    np.testing.assert_array_equal(found.dataset.images[0, :, :, 0], pixels)
    assert found.population.sizes.tolist() == [18, 18, 9]
    assert found.held_out.sizes.tolist() == [2, 2, 1]
    both = [*found.population.indices, *found.held_out.indices]
    assert set(both) == set(range(50))


def write_femnist(folder, data, file="all_data_0.json"):
    content = {"users": list(data), "user_data": data}
    (folder / file).write_text(json.dumps(content))


WHITE = [1.0] * 784


@pytest.mark.parametrize(
    ("x", "y", "said"),
    [
        ([WHITE] * 2, [3, -1], r"labels must be in \[0, 62\), got -1 at index 1"),
        ([WHITE] * 2, [62, 0], r"labels must be in \[0, 62\), got 62 at index 0"),
        ([WHITE] * 2, [0.5, 1], r"labels must be integers, got float64"),
        (
            [WHITE, [255] * 784],
            [0, 1],
            r"in \[0, 1\], got 255\.0 at index \(1, 0, 0, 0",
        ),
        ([[-0.5] * 784, WHITE], [0, 1], r"in \[0, 1\], got -0\.5 at index \(0, 0, 0"),
        ([WHITE, [float("nan")] * 784], [0, 1], r"finite .* got nan at index \(1, 0"),
        (
            [WHITE] * 3,
            [0, 1],
            r"labels must have shape \(3,\), one for each image, got",
        ),
        (
            [WHITE[1:]] * 2,
            [0, 1],
            r"x must hold images of 784 numbers, got .* \(2, 783\)",
        ),
        (
            [WHITE, WHITE[1:]],
            [0, 1],
            r"x must hold lists .*, got 783 at index 1 and 784 at index 0",
        ),
        ([WHITE, 1.0], [0, 1], r"x must hold lists .*, got no list at index 1 and"),
        (
            [WHITE, ["0.5"] * 784],
            [0, 1],
            r"x must hold numbers, got '0.5' at index 1, 0",
        ),
        ([[None] * 784, WHITE], [0, 1], r"x must hold numbers, got None at index 0, 0"),
        ([[10**30] * 784], [0], r"x must hold numbers below 2\^64"),
        ([WHITE] * 2, None, r"y must be a list, got None"),
        ([WHITE] * 2, [True, False], r"y must hold numbers, got True at index 0"),
        ([WHITE] * 2, [[0], [1, 2]], r"y must hold lists .*, got 2 at index 1 and 1"),
        ([], [0, 1], r"images must have shape .* without an empty axis"),
        (None, [0, 1], r"'x' is missing"),
    ],
)
def test_invalid_images_name_file_user_and_value(tmp_path, x, y, said):
    good = {"x": [WHITE] * 4, "y": [0, 1, 2, 61]}
    bad = {"y": y} if x is None else {"x": x, "y": y}
    write_femnist(tmp_path, {"good": good, "bad": bad})
    with pytest.raises(DataError, match=r"all_data_0\.json: user bad: .*" + said):
        load_by_client("femnist", tmp_path, 1, seed=0)


@pytest.mark.parametrize(
    ("entry", "said"),
    [
        ({"x": None, "y": [0]}, "x must be a list, got None"),
        (3, "must have x and y, got 3"),
        (None, "must have x and y, got None"),
    ],
)
def test_what_is_no_writer_is_named(tmp_path, entry, said):
    write_femnist(tmp_path, {"bad": entry})
    with pytest.raises(DataError) as caught:
        load_by_client("femnist", tmp_path, 1, seed=0)
    assert str(caught.value) == f"{tmp_path}/all_data_0.json: user bad: {said}"


def test_writers_with_too_few_images_are_not_drawn(tmp_path):
    sizes = {"none": 0, "a": 20, "one": 1, "b": 20, "two": 2}
    data = {user: {"x": [WHITE] * n, "y": [n] * n} for user, n in sizes.items()}
    data["a"] = {"x": [WHITE] * 10, "y": [20] * 10}  # in each of two files
    write_femnist(tmp_path, {"a": data["a"]}, "all_data_1.json")
    write_femnist(tmp_path, data)
    for seed in range(10):
        found = load_by_client("femnist", tmp_path, 3, seed=seed)
        assert sorted(found.population.sizes.tolist()) == [1, 18, 18]
        assert set(found.dataset.labels.tolist()) == {2, 20}
    with pytest.raises(DataError, match=r"has 3 clients with at least 2 .* got 4"):
        load_by_client("femnist", tmp_path, 4, seed=0)


def test_no_more_examples_than_the_clients_have(tmp_path):
    data = {user: {"x": [WHITE] * 20, "y": [0] * 20} for user in "abcd"}
    write_femnist(tmp_path, data)
    found = load_by_client("femnist", tmp_path, 3, num_train=60, seed=0)
    assert len(found.dataset.labels) == 60
    with pytest.raises(DataError) as caught:
        load_by_client("femnist", tmp_path, 3, num_train=61, seed=0)
    assert str(caught.value) == (
        "num_train (of a run: data.num_train) must be in [0, 60], the train examples "
        "of the 3 clients drawn from femnist, got 61."
    )
    with pytest.raises(DataError, match=r"num_train = 41 leaves .* fewer than 2"):
        load_by_client("femnist", tmp_path, 3, num_train=41, seed=0)
    with pytest.raises(ValueError, match=r"one of shakespeare, femnist, got 'mnist'"):
        load_by_client("mnist", tmp_path, 1, seed=0)
    with pytest.raises(ValueError, match=r"num_clients must be at least 1, got 0"):
        load_by_client("femnist", tmp_path, 0, seed=0)


def test_a_run_tests_on_no_more_than_is_held_out(tmp_path):
    write_femnist(tmp_path, {u: {"x": [WHITE] * 20, "y": [0] * 20} for u in "ab"})
    config = get_config("fedavg")
    config.data.update(
        name="femnist", dir=str(tmp_path), num_clients=2, partitioner="by_client"
    )
    config.data.local_val = "holdout"
    config.model.update(name="femnist_cnn", width=0.1, gated=False)
    config.eval.num_examples = 4
    assert len(build(config).data.test.labels) == 4
    config.eval.num_examples = 5
    with pytest.raises(DataError, match=r"eval\.num_examples\) must be in \[0, 4\]"):
        build(config)


def test_missing_and_broken_files(tmp_path):
    with pytest.raises(
        DataError, match=r"no .*json of LEAF and no .*NAME: after blank"
    ):
        load_by_client("shakespeare", tmp_path, 1, seed=0)
    with pytest.raises(DataError, match=r"no all_data_.*json .* TFDS's emnist has no"):
        load_by_client("femnist", tmp_path, 1, seed=0)
    (tmp_path / "all_data_0.json").write_text('{"users": ["a"]}')
    with pytest.raises(DataError, match="is not json of LEAF"):
        load_by_client("femnist", tmp_path, 1, seed=0)
