"""Objects that look like `datasets.Dataset`, which is not a dependency.

The stand-ins have what its documentation promises and nothing else. A long test reads
the real ones where the library is installed.
"""

import importlib.util
import io

import numpy as np
import pytest
from PIL import Image as Picture

from fedjax_prune import DataError, from_huggingface
from tests.pictures import deep_png


class Image:
    """The feature of pictures."""

    def __init__(self, mode=None, decode=True):
        self.mode, self.decode = mode, decode


class ClassLabel:
    """The feature of labels with names."""

    def __init__(self, names):
        self.names = names


class Value:
    """The feature of plain values."""


class Rows:
    """A split: features, a length, rows in order, a choice of columns, a format."""

    def __init__(self, features, columns, read=lambda value: value):
        self.features, self._columns, self._read = features, columns, read

    def __len__(self):
        return len(next(iter(self._columns.values())))

    def __iter__(self):
        for values in zip(*self._columns.values(), strict=True):
            row = dict(zip(self._columns, values, strict=True))
            yield {name: self._read(value) for name, value in row.items()}

    def select_columns(self, names):
        return Rows(
            {name: self.features[name] for name in names},
            {name: self._columns[name] for name in names},
            self._read,
        )

    def cast_column(self, name, feature):
        """Pictures that are not decoded are given as their files are."""
        assert isinstance(feature, Image) and not feature.decode
        stored = [stored_as(value) for value in self._columns[name]]
        columns = self._columns | {name: stored}
        return Rows(self.features | {name: feature}, columns, self._read)

    def with_format(self, type):
        assert type is None
        return Rows(self.features, self._columns)


def stored_as(picture, form="png"):
    if not isinstance(picture, Picture.Image):
        return picture
    file = io.BytesIO()
    picture.save(file, form)
    return {"bytes": file.getvalue(), "path": None}


def grey(value, size=(6, 4)):
    return Picture.new("L", size, value)


def split(**changed):
    columns = {
        "image": [grey(10), grey(20), grey(30)],
        "label": [1, 0, 1],
        "writer": ["w2", "w1", "w2"],
    } | changed
    features = {
        "image": Image(),
        "label": ClassLabel(["cat", "dog"]),
        "writer": Value(),
    }
    return Rows({n: features.get(n, Value()) for n in columns}, columns)


def test_the_columns_are_found_by_their_features():
    dataset, population, classes, clients = from_huggingface(split())
    assert dataset.images[:, 0, 0, 0].tolist() == [10, 20, 30]
    assert dataset.images.shape == (3, 4, 6, 1)
    assert (dataset.labels.tolist(), classes) == ([1, 0, 1], ("cat", "dog"))
    assert (population, clients) == (None, ())


def test_a_column_says_who_holds_an_example():
    data = from_huggingface(split(), clients="writer")
    assert data.clients == ("w1", "w2")
    assert [data.population.of(k).tolist() for k in range(2)] == [[1], [0, 2]]


def test_columns_without_features_are_named():
    arrays = np.arange(3 * 8).reshape(3, 2, 4)
    rows = split(pixels=arrays.tolist(), kind=["b", "a", "b"])
    data = from_huggingface(rows, image="pixels", label="kind")
    np.testing.assert_array_equal(data.dataset.images[..., 0], arrays)
    assert (data.dataset.labels.tolist(), data.classes) == ([1, 0, 1], ("a", "b"))
    # A test set without one of the classes.
    data = from_huggingface(
        split(kind=["c", "a", "c"]), label="kind", classes=("a", "b", "c")
    )
    assert (data.dataset.labels.tolist(), data.classes[1]) == ([2, 0, 2], "b")


def test_labels_of_a_test_set_are_found_by_their_names():
    classes = ("dog", "cow", "cat")
    data = from_huggingface(split(), classes=classes)
    assert (data.dataset.labels.tolist(), data.classes) == ([0, 2, 0], classes)
    with pytest.raises(DataError, match="must be one of the classes cow, cat, got 'do"):
        from_huggingface(split(), classes=("cow", "cat"))
    with pytest.raises(DataError, match=r"label, row 1 must be in \[0, 2\), got -1"):
        from_huggingface(split(label=[0, -1, 1]))


def test_pictures_in_the_format_of_pytorch_are_read_as_stored():
    def as_tensor(value):
        colours = isinstance(value, Picture.Image)
        return np.moveaxis(np.asarray(value), -1, 0) if colours else np.array(value)

    red = Picture.new("RGB", (6, 4), (200, 0, 0))
    plain = split(image=[red] * 3)
    rows = Rows(plain.features, plain._columns, as_tensor)
    images = from_huggingface(rows).dataset.images
    assert images.shape == (3, 4, 6, 3) and images[..., 0].min() == 200


def test_grey_and_coloured_pictures_have_three_channels():
    images = [grey(5), Picture.new("RGB", (6, 4), (1, 2, 3)), grey(7)]
    found = from_huggingface(split(image=images)).dataset.images
    assert found[:, 1, 1].tolist() == [[5, 5, 5], [1, 2, 3], [7, 7, 7]]


def test_pictures_are_scaled():
    images = [grey(5), grey(6, (3, 9)), grey(7)]
    assert from_huggingface(split(image=images), size=5).dataset.images.shape[1:3] == (
        5,
        5,
    )
    with pytest.raises(DataError, match=r"column image.*one shape, got \(9, 3, 1\) at"):
        from_huggingface(split(image=images))


def test_pictures_get_the_mode_of_the_feature(tmp_path):
    red = Picture.new("RGB", (6, 4), (200, 0, 0))
    red.save(tmp_path / "red.png")
    by_path = {"bytes": None, "path": str(tmp_path / "red.png")}
    rows = split(image=[grey(5), red, by_path])
    rows.features["image"] = Image(mode="L")
    assert from_huggingface(rows).dataset.images[:, 0, 0].tolist() == [[5], [60], [60]]


@pytest.mark.parametrize(
    ("rows", "options", "message"),
    [
        ({"train": split(), "test": split()}, {}, "one split, got train, test: take"),
        ([1, 2], {}, "must be a datasets.Dataset .* got list"),
        (
            split(),
            {"image": "picture"},
            "image must be one of the columns image .Image",
        ),
        (
            split(),
            {"clients": "who"},
            "clients must be one of the columns .* got 'who'",
        ),
        (
            split(label=[1, -1, 0]),
            {},
            r"column label, row 1 must be in \[0, 2\), got -1",
        ),
        (
            split(image=[grey(1), {"bytes": b"", "path": None}, grey(2)]),
            {},
            "column image, row 1 cannot be read as a picture: cannot identify",
        ),
        (
            split(image=[grey(1), {"bytes": None, "path": "gone.png"}, grey(2)]),
            {},
            r"column image, row 1 cannot be read as a picture: .*gone\.png",
        ),
        (
            split(image=[grey(1), {"bytes": deep_png(), "path": None}, grey(2)]),
            {},
            "column image, row 1 cannot be read .* 8 bits a channel, .* RGB;16B",
        ),
        (
            split(image=[grey(1), Picture.new("I;16", (6, 4)), grey(2)]),
            {},
            "column image, row 1 cannot be read .* 8 bits a channel",
        ),
        (split(image=[[[300]]] * 3), {}, r"row 0 must .* whole numbers in \[0, 255\]"),
        (
            split(image=[grey(1), None, grey(2)]),
            {},
            "column image, row 1 must be a picture or an array .* got NoneType",
        ),
        (
            split(label=[1, None, 0]),
            {},
            "column label, row 1 must be an integer or a name, got None",
        ),
        (
            split(writer=["w1", "w2", None]),
            {"clients": "writer"},
            "column writer, row 2 must be an integer or a name, got None",
        ),
        (
            split(label=[0, 1, 0.5]),
            {},
            "column label, row 2 must be an integer or a name, got 0.5",
        ),
        (split(image=[], label=[], writer=[]), {}, "one row, got an empty split"),
    ],
)
def test_what_does_not_fit_is_named(rows, options, message):
    with pytest.raises(DataError, match=message):
        from_huggingface(rows, **options)


def test_columns_that_could_be_meant_are_listed():
    rows = split()
    rows.features["writer"] = ClassLabel(["w1", "w2"])
    with pytest.raises(DataError, match=r"name one of the columns .* 2 of them are of"):
        from_huggingface(rows)


def test_a_size_must_be_a_whole_number():
    with pytest.raises(ValueError, match=r"size must be a whole number, got 8\.5"):
        from_huggingface(split(), size=8.5)


@pytest.mark.long
@pytest.mark.skipif(
    importlib.util.find_spec("datasets") is None,
    reason="datasets is not installed: pip install 'fedjax_prune[huggingface]'",
)
def test_the_library_itself_gives_what_the_stand_ins_give(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    import datasets  # pyright: ignore[reportMissingImports]

    names = ["cat", "dog"]
    features = datasets.Features(
        {
            "image": datasets.Image(),
            "label": datasets.ClassLabel(names=names),
            "writer": datasets.Value("string"),
            "pixels": datasets.Array2D((2, 3), "uint8"),
        }
    )
    columns = {
        "image": [grey(10), grey(20), grey(30)],
        "label": [1, 0, 1],
        "writer": ["w10", "w1", "w10"],
        "pixels": np.arange(18, dtype=np.uint8).reshape(3, 2, 3).tolist(),
    }
    rows = datasets.Dataset.from_dict(columns, features=features)
    for form in (rows, rows.with_format("numpy")):
        data = from_huggingface(form, clients="writer")
        assert data.dataset.images.shape == (3, 4, 6, 1)
        assert data.dataset.images[:, 0, 0, 0].tolist() == [10, 20, 30]
        assert data.dataset.labels.tolist() == [1, 0, 1]
        assert (data.classes, data.clients) == (("cat", "dog"), ("w1", "w10"))
        assert data.population.of(1).tolist() == [0, 2]
        found = from_huggingface(form, image="pixels", label="writer")
        assert found.dataset.images.ravel().tolist() == list(range(18))
        assert found.classes == ("w1", "w10")
    damaged = [stored_as(grey(1)), {"bytes": b"none", "path": None}, None]
    deep = [{"bytes": deep_png(), "path": None}] * 3
    for changed, message in (
        ({"label": [1, None, 0]}, "column label, row 1 must be an integer .* got None"),
        ({"image": [grey(1), None, grey(2)]}, "column image, row 1 must be a picture"),
        ({"image": damaged}, "column image, row 1 cannot be read as a picture"),
        ({"image": deep}, "column image, row 0 cannot be read .* 8 bits a channel"),
        ({name: [] for name in columns}, "at least one row, got an empty split"),
    ):
        odd = datasets.Dataset.from_dict(columns | changed, features=features)
        with pytest.raises(DataError, match=message):
            from_huggingface(odd)
    with pytest.raises(DataError, match="one split, got train: take"):
        from_huggingface(datasets.DatasetDict({"train": rows}))
    with pytest.raises(DataError, match="with features and a length, got Iterable"):
        from_huggingface(rows.to_iterable_dataset())
