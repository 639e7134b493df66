"""The user's own arrays: what is made of them, and which ones are refused."""

import re

import numpy as np
import pytest

from fedjax_prune import DataError, from_arrays, from_npz

IMAGES = np.random.default_rng(0).integers(0, 256, (6, 4, 3, 3)).astype(np.uint8)
LABELS = [0, 1, 2, 0, 1, 2]


def test_images_and_labels_stay_as_they_are():
    dataset, population, classes, clients = from_arrays(IMAGES, LABELS)
    np.testing.assert_array_equal(dataset.images, IMAGES)
    np.testing.assert_array_equal(dataset.labels, LABELS)
    assert dataset.labels.dtype == np.int32
    assert (population, classes, clients) == (None, ("0", "1", "2"), ())


def test_images_without_channels_have_one():
    dataset = from_arrays(IMAGES[..., 0], LABELS).dataset
    np.testing.assert_array_equal(dataset.images, IMAGES[..., :1])


def test_vectors_are_any_floats():
    vectors = np.random.default_rng(0).normal(0, 9, (6, 5))
    dataset = from_arrays(vectors, LABELS).dataset
    assert dataset.images.dtype == np.float32
    np.testing.assert_array_equal(
        dataset.images[:, :, 0, 0], vectors.astype(np.float32)
    )


def test_clients_hold_their_examples_in_order():
    data = from_arrays(IMAGES, LABELS, clients=[30, 5, 30, 7, 5, 30])
    assert data.clients == ("5", "7", "30")
    assert [data.population.of(k).tolist() for k in range(3)] == [
        [1, 4],
        [3],
        [0, 2, 5],
    ]


def test_names_that_are_numbers_are_sorted_by_value():
    data = from_arrays(
        IMAGES, ["10", "9", "10", "100", "9", "9"], clients=list("b9ab9a")
    )
    assert data.classes == ("9", "10", "100")
    assert data.dataset.labels.tolist() == [1, 0, 1, 2, 0, 0]
    assert data.clients == ("9", "a", "b")
    held = from_arrays(IMAGES, LABELS, clients=["10", "9", "10", "100", "9", "9"])
    assert held.clients == ("9", "10", "100")
    assert [held.population.of(k).tolist() for k in range(3)] == [
        [1, 4, 5],
        [0, 2],
        [3],
    ]


def test_integers_that_are_clients_may_be_negative():
    assert from_arrays(IMAGES, LABELS, clients=[-2, -10, 3] * 2).clients == (
        "-10",
        "-2",
        "3",
    )


def test_names_are_labels():
    data = from_arrays(IMAGES, ["dog", "cat", "dog", "eel", "cat", "dog"])
    assert data.classes == ("cat", "dog", "eel")
    assert data.dataset.labels.tolist() == [1, 0, 1, 2, 0, 1]
    some = from_arrays(IMAGES[:1], ["eel"], classes=["eel", "ant"])
    assert (some.dataset.labels.tolist(), some.classes) == ([0], ("eel", "ant"))
    # As a column of pandas has them; classes may be numbers.
    column = np.array(["10", "9"], object)
    some = from_arrays(IMAGES[:2], column, classes=[9, 10])
    assert (some.dataset.labels.tolist(), some.classes) == ([1, 0], ("9", "10"))


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"labels": [0, 1, 3, 0, 1, 3]}, r"got 3 and no 2: number them anew, or name"),
        ({"labels": [1, 2, 3, 1, 2, 3]}, r"0 to n - 1 .* got 3 and no 0"),
        ({"labels": [0, -1, 1, 0, 1, 2]}, r"0 to n - 1 .* got -1 at index 1"),
        ({"labels": [0, 1]}, r"labels must have shape \(6,\), one for each image"),
        ({"labels": [0.5] * 6}, r"labels must be integers or names .* got float64"),
        ({"labels": np.zeros((6, 1), int)}, r"integers or names of shape .*\(6, 1\)"),
        ({"labels": [0, 1, 2, 0, 1, 2], "classes": ["a", "b"]}, r"labels .*\[0, 2\)"),
        (
            {"labels": list("abcabc"), "classes": ["a", "b"]},
            r"a, b, got 'c' at index 2",
        ),
        ({"classes": ["a", "a", "b"]}, "classes must differ, got a, a, b"),
        ({"classes": [3, "3", 5]}, "classes must differ, got 3, 3, 5"),
        ({"classes": [b"a", b"b", b"c"]}, "classes must be a list of names or int"),
        ({"classes": "abc"}, "classes must be a list of names or integers, got abc"),
        ({"images": IMAGES.astype(int)}, "images must be uint8 or floats, got int64"),
        ({"images": IMAGES / 100}, r"images must be finite and in \[0, 1\]"),
        (
            {"images": [*IMAGES[:3], IMAGES[3, :2], *IMAGES[4:]]},
            r"images must have one shape, got \(2, 3, 3\) at index 3 and \(4, 3, 3\)",
        ),
        (
            {"images": [*IMAGES[:5], [[[0, 0, 0]], [[0, 0]]]]},
            r"images\[5\] must be a full array: .* inhomogeneous",
        ),
        (
            {"images": [[0.0, np.nan]] * 6},
            r"must be finite in float32, got nan at index \(0, 1\)",
        ),
        (
            {"images": [[0.0, 1.0]] * 5 + [[1e300, 0.0]]},
            r"must be finite in float32, got 1e\+300 at index \(5, 0\)",
        ),
        ({"images": [[0, 1]] * 6}, "vectors must be floats, got int64"),
        ({"clients": [0, 1]}, r"clients must be integers or names of shape \(6,\)"),
        ({"clients": [0.5] * 6}, r"clients must be integers or names .* got float64"),
    ],
)
def test_what_does_not_fit_is_named(changed, message):
    arguments = {"images": IMAGES, "labels": LABELS} | changed
    with pytest.raises(DataError, match=message):
        from_arrays(**arguments)


def test_names_may_come_from_a_column_of_pandas():
    names = np.array(list("abbaab"), object)
    data = from_arrays(IMAGES, names, clients=names)
    assert (data.classes, data.clients) == (("a", "b"), ("a", "b"))


def test_a_file_has_what_from_arrays_takes(tmp_path):
    file = tmp_path / "own.npz"
    np.savez(
        file, images=IMAGES, labels=LABELS, clients=list("abbaab"), classes=list("xyz")
    )
    data, expected = from_npz(file), from_arrays(IMAGES, LABELS, clients=list("abbaab"))
    np.testing.assert_array_equal(data.dataset.images, expected.dataset.images)
    assert data.population.indices.tolist() == expected.population.indices.tolist()
    assert (data.classes, data.clients) == (("x", "y", "z"), ("a", "b"))


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"images": IMAGES}, "must hold images and labels, .* got images"),
        ({"images": IMAGES, "labels": LABELS, "y": LABELS}, "got images, labels, y"),
        (
            {"images": IMAGES, "labels": [0, 2] * 3},
            "own.npz: labels must be 0 to n - 1",
        ),
        (
            {"images": IMAGES, "labels": np.array([{}] * 6, object)},
            "own.npz cannot be read .* allow_pickle=False",
        ),
    ],
)
def test_a_file_that_does_not_fit_is_named(tmp_path, arrays, message):
    file = tmp_path / "own.npz"
    np.savez(file, **arrays)
    with pytest.raises(DataError, match=message):
        from_npz(file)


def test_a_missing_or_damaged_file_is_named(tmp_path):
    file = tmp_path / "own.npz"
    with pytest.raises(DataError, match=re.escape(f"{file} cannot be read")):
        from_npz(file)
    np.savez(file, images=IMAGES, labels=LABELS)
    content = bytearray(file.read_bytes())
    content[200:260] = bytes(60)
    file.write_bytes(content)
    with pytest.raises(DataError, match=re.escape(f"{file} cannot be read")):
        from_npz(file)


def test_a_file_of_one_array_says_how_to_write_several(tmp_path):
    np.save(tmp_path / "own.npy", IMAGES)
    message = r"own.npy cannot be read as a file of numpy.savez: it holds one array, as"
    with pytest.raises(DataError, match=message):
        from_npz(tmp_path / "own.npy")


def test_a_test_set_with_other_classes_is_refused(tmp_path):
    np.savez(tmp_path / "t.npz", images=IMAGES, labels=LABELS, classes=list("xyz"))
    with pytest.raises(DataError, match=r"classes must be x, z, y, got x, y, z"):
        from_npz(tmp_path / "t.npz", classes=list("xzy"))
