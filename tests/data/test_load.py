"""Loading: TFDS folders made here, and the embedded digits."""

import io
import json
import struct
import subprocess
import sys

import numpy as np
import pytest
from array_record.python.array_record_module import ArrayRecordWriter
from PIL import Image
from sklearn.datasets import load_digits

from fedjax_prune.data.datasets import DATASETS, DataError
from fedjax_prune.data.load import count_examples, load

VERSIONS = {"cifar10": "3.0.2", "mnist": "3.0.1", "emnist": "3.1.0"}


def varint(value):
    return bytes([value]) if value < 128 else bytes([value % 128 + 128, value // 128])


def message(field, payload):
    """Encodes a protocol buffer field of the wire type 2, shorter than 16 KiB."""
    return varint(field << 3 | 2) + varint(len(payload)) + payload


def example(image, label):
    """Encodes a tf.train.Example with a PNG image and a label."""
    buffer = io.BytesIO()
    Image.fromarray(image.squeeze()).save(buffer, "PNG")
    features = {
        b"image": message(1, message(1, buffer.getvalue())),
        b"label": message(3, message(1, varint(label))),
    }
    entries = [message(1, k) + message(2, v) for k, v in features.items()]
    return message(1, b"".join(message(1, entry) for entry in entries))


def write_records(path, records, file_format):
    if file_format == "array_record":
        writer = ArrayRecordWriter(str(path), "group_size:1")
        for record in records:
            writer.write(record)
        writer.close()
        return
    # The four bytes after the length and after the data are checksums.
    frames = [struct.pack("<QI", len(r), 0) + r + bytes(4) for r in records]
    path.write_bytes(b"".join(frames))


def prepare(root, name, splits, file_format="array_record", shards=1):
    """Writes a folder as TFDS prepares it; returns it."""
    info = DATASETS[name]
    folder = root / info.tfds_name / VERSIONS[name]
    folder.mkdir(parents=True)
    base = info.tfds_name.split("/")[0]
    feature = "tensorflow_datasets.core.features."
    dimensions = [str(side) for side in info.image_shape]
    image = {"shape": {"dimensions": dimensions}, "dtype": "uint8"}
    features = {
        "image": {"pythonClassName": feature + "image_feature.Image", "image": image},
        "label": {
            "pythonClassName": feature + "class_label_feature.ClassLabel",
            "classLabel": {"numClasses": str(info.num_classes)},
        },
    }
    tree = {
        "pythonClassName": feature + "features_dict.FeaturesDict",
        "featuresDict": {"features": features},
    }
    (folder / "features.json").write_text(json.dumps(tree))
    lengths = {}
    for split, (images, labels) in splits.items():
        records = [example(x, y) for x, y in zip(images, labels, strict=True)]
        pieces = np.array_split(np.arange(len(records)), shards)
        lengths[split] = [str(len(piece)) for piece in pieces]
        for number, piece in enumerate(pieces):
            file = f"{base}-{split}.{file_format}-{number:05}-of-{shards:05}"
            write_records(folder / file, [records[i] for i in piece], file_format)
    template = "{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}"
    entries = [
        {"name": s, "filepathTemplate": template, "shardLengths": n, "numBytes": "1"}
        for s, n in lengths.items()
    ]
    description = {
        "name": base,
        "version": VERSIONS[name],
        "fileFormat": file_format,
        "splits": entries,
    }
    if "/" in info.tfds_name:
        description["configName"] = info.tfds_name.split("/")[1]
    (folder / "dataset_info.json").write_text(json.dumps(description))
    return folder


def make_splits(name, seed=0):
    info = DATASETS[name]
    rng = np.random.default_rng(seed)
    return {
        split: (
            rng.integers(0, 256, (size, *info.image_shape), np.uint8),
            rng.integers(0, info.num_classes, size),
        )
        for split, size in (("train", 7), ("test", 3))
    }


@pytest.mark.parametrize("file_format", ["array_record", "tfrecord"])
@pytest.mark.parametrize(("name", "shards"), [("cifar10", 2), ("mnist", 1)])
def test_reads_both_formats(tmp_path, file_format, name, shards):
    splits = make_splits(name)
    prepare(tmp_path, name, splits, file_format, shards)
    for dataset, (images, labels) in zip(
        load(name, str(tmp_path)), splits.values(), strict=True
    ):
        np.testing.assert_array_equal(dataset.images, images)
        np.testing.assert_array_equal(dataset.labels, labels)
        assert (dataset.images.dtype, dataset.labels.dtype) == (np.uint8, np.int32)


@pytest.mark.parametrize("file_format", ["array_record", "tfrecord"])
def test_reads_only_the_beginning(tmp_path, file_format):
    splits = make_splits("mnist")
    prepare(tmp_path, "mnist", splits, file_format, 2)
    train, test = load("mnist", str(tmp_path), num_train=5, num_test=3)
    np.testing.assert_array_equal(train.images, splits["train"][0][:5])
    np.testing.assert_array_equal(train.labels, splits["train"][1][:5])
    np.testing.assert_array_equal(test.images, splits["test"][0])


@pytest.mark.parametrize(
    ("name", "counts", "said"),
    [
        ("mnist", {"num_train": 8}, "num_train (of a run: data.num_train) must be in "),
        ("mnist", {"num_train": 8}, "in [0, 7], the train examples of mnist, got 8."),
        (
            "mnist",
            {"num_test": 4},
            "num_test (of a run: eval.num_examples) must be in ",
        ),
        ("mnist", {"num_test": 4}, "in [0, 3], the test examples of mnist, got 4."),
        ("mnist", {"num_train": -1}, "in [0, 7], the train examples of mnist, got -1."),
        ("digits", {"num_train": 1500}, "in [0, 1442], the train examples of digits,"),
        ("digits", {"num_test": 356}, "in [0, 355], the test examples of digits, got"),
    ],
)
def test_no_more_examples_than_there_are(tmp_path, name, counts, said):
    prepare(tmp_path, "mnist", make_splits("mnist"))
    with pytest.raises(DataError) as caught:
        load(name, str(tmp_path), **counts)
    assert said in str(caught.value) and "remove it" not in str(caught.value)


CORE = "tensorflow_datasets.core.features."
HIDDEN = {"type": "evil.Feature", "content": {}}


@pytest.mark.parametrize(
    ("feature", "named"),
    [
        ({"pythonClassName": "evil.Feature", "image": {}}, "evil.Feature"),
        ({"python_class_name": "evil.Feature", "image": {}}, "evil.Feature"),
        (HIDDEN, "evil.Feature"),
        ({"jsonFeature": {"json": json.dumps({"x": HIDDEN})}}, "evil.Feature"),
        ({"pythonClassName": CORE + "audio_feature.Audio"}, "audio_feature.Audio"),
    ],
)
def test_only_known_features_are_read(tmp_path, monkeypatch, feature, named):
    """No name in features.json makes the reader import a module of the folder."""
    folder = prepare(tmp_path, "mnist", make_splits("mnist"))
    (folder / "evil.py").write_text("raise SystemExit('imported')")
    monkeypatch.syspath_prepend(folder)
    monkeypatch.chdir(folder)
    tree = json.loads((folder / "features.json").read_text())
    known = tree["pythonClassName"]
    tree["featuresDict"]["features"]["more"] = {"pythonClassName": known} | feature
    (folder / "features.json").write_text(json.dumps(tree))
    description = json.loads((folder / "dataset_info.json").read_text())
    description["moduleName"] = "evil"
    (folder / "dataset_info.json").write_text(json.dumps(description))
    with pytest.raises(DataError) as caught:
        load("mnist", str(tmp_path))
    assert f"cannot read mnist in {folder}: features.json must name only" in str(
        caught.value
    )
    assert named in str(caught.value) and "evil" not in sys.modules


def test_older_folders_are_read(tmp_path, monkeypatch):
    """Both forms of features.json are read; their moduleName imports nothing."""
    splits = make_splits("cifar10")
    folder = prepare(tmp_path, "cifar10", splits)
    (folder / "evil.py").write_text("raise SystemExit('imported')")
    monkeypatch.syspath_prepend(folder)
    description = json.loads((folder / "dataset_info.json").read_text())
    description["moduleName"] = "evil"
    (folder / "dataset_info.json").write_text(json.dumps(description))
    # TFDS before 4.4 wrote this form of the file.
    image = {"shape": [32, 32, 3], "dtype": "uint8", "encoding_format": "png"}
    content = {
        "image": {"type": CORE + "image_feature.Image", "content": image},
        "label": {
            "type": CORE + "class_label_feature.ClassLabel",
            "content": {"num_classes": 10},
        },
    }
    older = {"type": CORE + "features_dict.FeaturesDict", "content": content}
    for tree in (None, older):
        if tree:
            (folder / "features.json").write_text(json.dumps(tree))
        train, _ = load("cifar10", str(tmp_path))
        np.testing.assert_array_equal(train.images, splits["train"][0])
    assert "evil" not in sys.modules


def test_emnist_comes_upright(tmp_path):
    splits = make_splits("emnist")
    prepare(tmp_path, "emnist", splits)
    train, _ = load("emnist", str(tmp_path))
    np.testing.assert_array_equal(
        train.images[..., 0], splits["train"][0][..., 0].transpose(0, 2, 1)
    )


def test_folder_comes_from_the_environment(tmp_path, monkeypatch):
    splits = make_splits("mnist")
    prepare(tmp_path, "mnist", splits)
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path))
    train, _ = load("mnist")
    np.testing.assert_array_equal(train.labels, splits["train"][1])


def test_the_newest_whole_version_is_read(tmp_path):
    old = prepare(tmp_path, "mnist", make_splits("mnist", seed=1))
    old.rename(old.with_name("3.0.0"))
    splits = make_splits("mnist")
    prepare(tmp_path, "mnist", splits)
    # TFDS leaves such a folder when it is interrupted.
    broken = old.with_name("incomplete.ABC_3.0.9")
    broken.mkdir()
    (broken / "dataset_info.json").write_text("{}")
    train, _ = load("mnist", str(tmp_path))
    np.testing.assert_array_equal(train.labels, splits["train"][1])


@pytest.mark.parametrize("file_format", ["array_record", "tfrecord"])
@pytest.mark.parametrize("damage", ["cut", "empty", "gone", "garbage"])
def test_damaged_files_are_named(tmp_path, file_format, damage):
    folder = prepare(tmp_path, "mnist", make_splits("mnist"), file_format)
    file = folder / f"mnist-test.{file_format}-00000-of-00001"
    content = file.read_bytes()
    file.unlink()
    if damage != "gone":
        cut = {"cut": content[:-20], "empty": b"", "garbage": b"\xff" * len(content)}
        file.write_bytes(cut[damage])
    with pytest.raises(DataError) as caught:
        load("mnist", str(tmp_path))
    assert str(folder) in str(caught.value)
    assert "tfds build mnist --file_format=array_record" in str(caught.value)


@pytest.mark.parametrize("name", ["cifar10", "emnist"])
def test_examples_are_counted_before_they_are_read(tmp_path, name):
    folder = prepare(tmp_path, name, make_splits(name))
    for file in folder.glob("*array_record*"):
        file.unlink()
    assert count_examples(name, str(tmp_path)) == (7, 3)
    assert count_examples(name, str(tmp_path), num_train=5, num_test=2) == (5, 2)
    with pytest.raises(DataError, match=r"test examples of .*, got 4"):
        count_examples(name, str(tmp_path), num_test=4)


@pytest.mark.parametrize(
    ("images", "label", "said"),
    [
        (np.zeros((2, 8, 8, 1), np.uint8), 0, "got (8, 8, 1)"),
        (np.zeros((2, 28, 28, 1), np.uint8), 11, "labels must be in [0, 10), got 11"),
    ],
)
def test_contents_of_another_shape_or_label(tmp_path, images, label, said):
    wrong = images, np.full(2, label)
    prepare(tmp_path, "mnist", {"train": wrong, "test": wrong}, "tfrecord")
    with pytest.raises(DataError) as caught:
        load("mnist", str(tmp_path))
    assert said in str(caught.value)


def test_a_missing_set_is_one_clear_error(tmp_path):
    # This folder cannot be made, so nothing is downloaded even with a network.
    folder = tmp_path / "file" / "inner folder"
    folder.parent.write_text("not a folder")
    with pytest.raises(DataError) as caught:
        load("emnist", str(folder))
    said = str(caught.value)
    assert f"emnist/balanced is not prepared in {folder}" in said
    assert "pip install -e '.[prepare]' && tfds build emnist/balanced" in said
    assert f"--file_format=array_record --data_dir='{folder}'" in said


def test_tensorflow_is_not_imported(tmp_path):
    prepare(tmp_path, "mnist", make_splits("mnist"), "tfrecord")
    code = (
        "import sys; from fedjax_prune.data.load import load;"
        "import fedjax_prune.data.by_client, fedjax_prune.data.partition;"
        "slow = {'tensorflow_datasets', 'sklearn', 'PIL', 'array_record'};"
        "assert not slow & set(sys.modules), slow & set(sys.modules);"
        f"print(len(load('mnist', {str(tmp_path)!r})[0].labels));"
        "assert 'tensorflow' not in sys.modules"
    )
    command = [sys.executable, "-c", code]
    run = subprocess.run(command, capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "7"


def test_digits_are_a_fixed_stratified_split():
    train, test = load("digits")
    images, labels = load_digits(return_X_y=True)
    pixels = np.concatenate([train.images, test.images]).reshape(-1, 64)
    # The images are the same in another order, so both are sorted by all pixels.
    expected = np.rint(images * 255 / 16).astype(np.uint8)
    np.testing.assert_array_equal(
        pixels[np.lexsort(pixels.T)], expected[np.lexsort(expected.T)]
    )
    counts = np.bincount(labels)
    np.testing.assert_array_equal(np.bincount(test.labels), counts // 5)
    np.testing.assert_array_equal(np.bincount(train.labels), counts - counts // 5)
    assert train.images.shape[1:] == DATASETS["digits"].image_shape
    again, few = load("digits", num_test=7)
    np.testing.assert_array_equal(train.images, again.images)
    np.testing.assert_array_equal(test.labels[:7], few.labels)


def test_unknown_name():
    with pytest.raises(ValueError, match=r"^name must be one of cifar10, .* 'cifar'"):
        load("cifar")


@pytest.mark.parametrize("name", ["femnist", "shakespeare"])
def test_sets_by_client_are_not_read_as_others(name):
    with pytest.raises(ValueError, match=f"{name} comes by client: .* load_by_client"):
        load(name)
