"""Runs on the user's own data, from its files to the exported model."""

import json
import re
import shutil

import numpy as np
import pytest
from PIL import Image

from fedjax_prune.data.datasets import DataError
from fedjax_prune.runs import environment, export, train
from fedjax_prune.runs.checkpoint import CheckpointError
from fedjax_prune.runs.completed import completed
from fedjax_prune.runs.experiment import load_data
from fedjax_prune.runs.origin import require_moved
from fedjax_prune.runs.replay import verify_workdir
from fedjax_prune.runs.settings import SettingsError, check, problems
from fedjax_prune.runs.workdir import WorkdirError, read_config
from tests.own_files import CLASSES, draw_images, write_arrays, write_pictures
from tests.small_runs import plain_config


def own_config(name, folder, **changes):
    changes = {
        "data.name": name,
        "data.dir": folder,
        "data.num_clients": 3,
        "data.num_train": 0,
        "data.min_size": 1,
        "cohort_size": 2,
        "rounds": 2,
        "eval.num_examples": 0,
        "client.lr": 0.1,
        "client.epochs": 2,
    } | changes
    return plain_config(**changes)


def read(config):
    check(config)
    return load_data(completed(config))


def test_a_fifth_of_each_class_is_the_test_set(tmp_path):
    config = own_config("image_folder", write_pictures(tmp_path))
    data = read(config)
    assert np.bincount(data.test.labels).tolist() == [4, 4, 4]
    assert np.bincount(data.train.labels).tolist() == [16, 16, 16]
    together = np.concatenate([data.train.images, data.test.images]).reshape(60, -1)
    expected = draw_images(60)[0].reshape(60, -1)
    assert sorted(map(bytes, together)) == sorted(map(bytes, expected))
    assert data.train.labels.tolist() != sorted(data.train.labels)
    again = read(config)
    assert dict(again.hashes) == dict(data.hashes)


def test_a_part_of_the_examples_is_drawn(tmp_path):
    config = own_config(
        "image_folder",
        write_pictures(tmp_path),
        **{"data.num_train": 24, "eval.num_examples": 6},
    )
    data = read(config)
    assert (len(data.train.labels), len(data.test.labels)) == (24, 6)
    assert np.bincount(data.train.labels).min() > 0


def test_folders_of_parts_are_read_as_they_are(tmp_path):
    write_pictures(tmp_path / "train", 30)
    write_pictures(tmp_path / "test", 12)
    shutil.rmtree(tmp_path / "test" / "bee")
    config = own_config("image_folder", str(tmp_path), **{"data.local_val": "holdout"})
    data = read(config)
    assert np.bincount(data.train.labels).tolist() == [10, 10, 10]
    assert np.bincount(data.test.labels).tolist() == [4, 0, 4]


def test_arrays_are_read_with_their_test_set(tmp_path):
    data = read(own_config("arrays", write_arrays(tmp_path)))
    assert (len(data.train.labels), len(data.test.labels)) == (60, 30)
    images, labels = draw_images(30, 1)
    for image, label in zip(images, labels, strict=True):
        place = (data.test.images == image[None]).all(axis=(1, 2, 3)).argmax()
        assert data.test.labels[place] == label


def test_clients_keep_their_examples(tmp_path):
    config = own_config(
        "image_folder",
        write_pictures(tmp_path, clients=4),
        **{"data.partitioner": "by_client", "data.local_val": "holdout"},
    )
    data = read(config)
    assert len(data.population.sizes) == 3 and data.held_out
    # 15 examples a client, of which a tenth, two, are held out.
    assert data.population.sizes.tolist() == [13, 13, 13]
    assert len(data.test.labels) == 6
    held = data.validation(np.arange(3)).indices[:, :2].ravel()
    assert not set(held.tolist()) & set(data.population.indices.tolist())


def test_clients_of_arrays_are_read(tmp_path):
    clients = np.repeat(np.arange(5), 12)
    config = own_config(
        "arrays",
        write_arrays(tmp_path, clients=clients),
        **{"data.partitioner": "by_client", "data.local_val": "holdout"},
    )
    data = read(config)
    assert data.population.sizes.tolist() == [11, 11, 11]
    assert len(data.test.labels) == 30
    config.data.num_clients = 6
    with pytest.raises(DataError, match=r"has 5 clients .* at most that, got 6"):
        read(config)


def test_images_are_scaled(tmp_path):
    for name, folder in (
        ("image_folder", write_pictures(tmp_path / "a")),
        ("arrays", write_arrays(tmp_path / "b")),
    ):
        data = read(own_config(name, folder, **{"data.size": 12}))
        assert data.train.images.shape[1:] == (12, 12, 1)
        assert data.test.images.shape[1:] == (12, 12, 1)


@pytest.mark.parametrize("name", ["arrays", "image_folder"])
def test_a_run_goes_from_the_files_to_the_model(tmp_path, name):
    """Trains, evaluates, resumes, and exports without the data."""
    write = write_arrays if name == "arrays" else write_pictures
    folder = tmp_path / "data"
    changes = {"rounds": 12, "save_every": 12, "data.partitioner": "iid"}
    config = own_config(name, write(folder), **changes)
    workdir = tmp_path / "run"
    assert train.run(config, workdir) == 0
    saved = read_config(workdir)["data"]
    names = CLASSES if name == "image_folder" else ("0", "1", "2")
    assert (tuple(saved["classes"]), saved["image_shape"]) == (names, "8x8x1")
    accuracy = train.evaluate_workdir(workdir)["eval/global_dense/accuracy"]
    assert accuracy > 0.6
    config.rounds = 13
    assert train.run(config, workdir) == 0
    folder.rename(tmp_path / "elsewhere")
    export.export_model(workdir, tmp_path / "model")
    exported = export.load_model(tmp_path / "model")
    assert exported.facts["output"]["labels"] == list(names)
    images, labels = draw_images(30, 1)
    predicted = np.asarray(exported.predict(images)).argmax(-1)
    assert (predicted == labels).mean() > 0.6
    with pytest.raises(DataError, match="data"):
        train.evaluate_workdir(workdir)


def test_changed_files_are_named(tmp_path):
    config = own_config("image_folder", write_pictures(tmp_path / "data"))
    workdir = tmp_path / "run"
    assert train.run(config, workdir) == 0
    config.rounds = 4
    other = tmp_path / "data" / "ant"
    first = sorted(other.iterdir())[0]
    shutil.copy(sorted(other.iterdir())[1], first)
    with pytest.raises(CheckpointError, match="examples are not those of its rounds"):
        train.run(config, workdir)
    shutil.copytree(other, tmp_path / "data" / "dab")
    with pytest.raises(SettingsError, match=r"data.classes is .*dab.*, but the run in"):
        train.run(config, workdir)
    with pytest.raises(DataError, match="the folder dab, which is none of the classes"):
        train.evaluate_workdir(workdir)


@pytest.mark.parametrize(
    ("mode", "size", "found"), [("L", (8, 9), "9x8x1"), ("RGB", (8, 8), "8x8x3")]
)
def test_a_picture_of_another_shape_is_named(tmp_path, mode, size, found):
    config = own_config("image_folder", write_pictures(tmp_path))
    config = completed(config)
    Image.new(mode, size).save(tmp_path / "bee" / "1.png")
    with pytest.raises(DataError) as caught:
        load_data(config)
    assert str(caught.value) == (
        f"{tmp_path}/bee/1.png must have the shape 8x8x1 of the training examples, got "
        f"{found}."
    )


def test_grey_test_pictures_are_read_as_coloured_ones(tmp_path):
    write_pictures(tmp_path / "train", 30)
    write_pictures(tmp_path / "test", 12)
    for file in (tmp_path / "train").rglob("*.png"):
        Image.open(file).convert("RGB").save(file)
    data = read(own_config("image_folder", str(tmp_path)))
    assert data.train.images.shape[1:] == data.test.images.shape[1:] == (8, 8, 3)
    assert (data.test.images == data.test.images[..., :1]).all()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"data.dir": ""}, "data.dir must name the folder of your data"),
        (
            {"data.classes": ("a", "b")},
            "data.classes and data.image_shape must be empty",
        ),
        ({"data.image_shape": "8x8"}, "data.image_shape must be empty, the length of"),
        (
            {"data.partitioner": "by_client", "data.local_val": "holdout"}
            | {"data.num_train": 30},
            "data.num_train must be 0 for arrays",
        ),
        (
            {"data.partitioner": "by_client"},
            "data.local_val must be holdout for arrays",
        ),
        (
            {
                "data.name": "digits",
                "data.classes": ("a",),
                "data.image_shape": "8x8x1",
            },
            r"data.classes and data.image_shape must be empty.* 'digits'",
        ),
    ],
)
def test_fields_that_do_not_fit_are_found_before_the_data_are_read(changes, message):
    config = own_config("arrays", "somewhere", **changes)
    assert any(re.search(message, found) for found in problems(config))


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        (
            {"data.classes_per_client": 4},
            SettingsError,
            "classes_per_client must be at",
        ),
        (
            {"data.normalize": "cifar10"},
            SettingsError,
            "normalize must be none for arr",
        ),
        ({"model.name": "vgg11"}, SettingsError, "vgg11 needs images .* 'arrays'"),
        (
            {"data.partitioner": "by_client", "data.local_val": "holdout"},
            DataError,
            "must say who holds which example for data.partitioner by_client",
        ),
        ({"data.num_train": 100}, DataError, r"data.num_train\) must be in \[0, 60\]"),
    ],
)
def test_fields_that_the_data_do_not_fit_are_named(tmp_path, changes, error, message):
    changes = {"data.partitioner": "pathological"} | changes
    config = own_config("arrays", write_arrays(tmp_path), **changes)
    with pytest.raises(error, match=message):
        read(config)


def test_vectors_need_a_model_that_reads_them(tmp_path):
    rng = np.random.default_rng(0)
    vectors, labels = rng.normal(size=(60, 5)), np.arange(60) % 3
    np.savez(tmp_path / "train.npz", images=vectors, labels=labels)
    config = own_config("arrays", str(tmp_path), **{"model.dropout": 0.0})
    with pytest.raises(SettingsError, match=r"model.name must suit the kind of data"):
        completed(config)
    config.model.name = "logistic_regression"
    assert train.run(config, tmp_path / "run") == 0
    assert read_config(tmp_path / "run")["data"]["image_shape"] == "5"


@pytest.mark.parametrize("part", ["train", "test"])
def test_floats_cannot_be_scaled(tmp_path, part):
    images, labels = draw_images(30)
    for name in ("train", "test"):
        given = images / np.float32(255) if name == part else images
        np.savez(tmp_path / f"{name}.npz", images=given, labels=labels)
    with pytest.raises(DataError, match=r"data.size must be 0 for arrays of float32"):
        read(own_config("arrays", str(tmp_path), **{"data.size": 12}))
    missing = tmp_path / "none"
    with pytest.raises(DataError, match=r"none/train.npz cannot be read"):
        read(own_config("arrays", str(missing)))


def test_a_run_goes_on_after_its_data_were_moved(tmp_path):
    folder, workdir = write_pictures(tmp_path / "old"), tmp_path / "run"
    config = own_config("image_folder", folder)
    assert train.run(config, workdir) == 0
    shutil.move(folder, tmp_path / "new")
    config.rounds, config.data.dir = 3, str(tmp_path / "new")
    assert train.run(config, workdir) == 0
    assert train.evaluate_workdir(workdir)["round"] == 3
    found = verify_workdir(workdir)
    assert found.rounds == [1, 2, 3] and not found.rows + found.leaves + found.settings
    assert read_config(workdir)["data"]["dir"] == str(tmp_path / "new")


def test_other_data_in_another_folder_are_refused_before_the_first_checkpoint(tmp_path):
    """In the same folder a run may begin anew with them, because files change."""
    folder, workdir = write_pictures(tmp_path / "old"), tmp_path / "run"
    config = own_config("image_folder", folder)
    assert train.run(config, workdir) == 0
    shutil.rmtree(workdir / "checkpoints")
    config.data.dir = write_pictures(tmp_path / "other", 45)
    message = r"other data are than the run in .* has begun with: the training examples"
    with pytest.raises(WorkdirError, match=message):
        train.run(config, workdir)
    assert read_config(workdir)["data"]["dir"] == folder
    # Nothing is known of its data.
    file = workdir / environment.FILE
    (start,) = json.loads(file.read_text())
    del start["data"]
    for starts in ([], [start]):
        file.write_text(json.dumps(starts))
        require_moved(workdir, config, {"train": "another hash"})
