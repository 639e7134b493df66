"""Images of another size: whether they fit the memory is known before they are made."""

import jax
import numpy as np
import pytest

from fedjax_prune.data import load as loading
from fedjax_prune.data.datasets import DataError
from fedjax_prune.data.load import resize, resized_bytes
from fedjax_prune.runs import capacity, data_memory, experiment, train
from fedjax_prune.runs.completed import completed
from fedjax_prune.runs.experiment import Experiment, RunData
from fedjax_prune.runs.learning import make_learning
from fedjax_prune.runs.settings import SettingsError
from fedjax_prune.types import Dataset
from tests.own_files import write_pictures
from tests.small_runs import plain_config, tiny_config

ALL_DIGITS = {"data.num_train": 0, "eval.num_examples": 0}


def noise(count, *shape):
    images = np.random.default_rng(0).integers(0, 256, (count, *shape), np.uint8)
    return Dataset(images, np.zeros(count, np.int32))


@pytest.mark.parametrize("size", [5, 24, 61])
@pytest.mark.parametrize("shape", [(8, 8, 1), (32, 20, 3)])
def test_the_chunk_changes_no_pixel(monkeypatch, shape, size):
    """40 images at once, and 7 at once, of which the last 7 overlap others."""
    dataset = noise(40, *shape)
    whole = resize(dataset, size).images
    an_image = 4 * max(shape[0], size) * max(shape[1], size) * shape[2]
    monkeypatch.setattr(loading, "_CHUNK_BYTES", 7 * an_image)
    np.testing.assert_array_equal(resize(dataset, size).images, whole)


@pytest.mark.parametrize("size", [4, 500, 3000, 20_000])
@pytest.mark.parametrize("shape", [(8, 8, 1), (32, 32, 3)])
def test_a_chunk_takes_no_more_than_is_counted(shape, size):
    """XLA's plan, which allocates nothing, for as many images as one chunk has."""
    an_image = 4 * max(shape[0], size) * max(shape[1], size) * shape[2]
    chunk = max(1, loading._CHUNK_BYTES // an_image)
    images = jax.ShapeDtypeStruct((chunk, *shape), np.uint8)
    plan = loading._scale.lower(images, size).compile().memory_analysis()
    planned = plan.temp_size_in_bytes + plan.output_size_in_bytes
    counted = resized_bytes(0, shape, size)
    assert planned <= counted <= 4 * max(planned, loading._CHUNK_BYTES)


@pytest.mark.parametrize(
    ("size", "fitting", "gigabytes"),
    [
        # By hand: twice 1,797 size^2, once 1,797 * 64, and four times the larger of
        # 2^24 and 4 size^2.
        (3000, 1485, "32.5"),
        (20_000, 1485, "1,444.0"),
    ],
)
def test_images_beyond_the_memory_are_refused(
    monkeypatch, tmp_path, size, fitting, gigabytes
):
    monkeypatch.setattr(data_memory, "machine_bytes", lambda: 8 * 10**9)
    with pytest.raises(SettingsError) as caught:
        train.run(tiny_config(**ALL_DIGITS, **{"data.size": size}), tmp_path / "run")
    assert caught.value.problems == [
        f"data.size must be at most {fitting} for 1,797 images in the 8.0 GB of this "
        f"machine, got {size}, which takes {gigabytes} GB: take a smaller data.size "
        "or fewer images"
    ]
    assert not (tmp_path / "run").exists()


def test_the_size_that_is_named_fits_and_the_next_does_not(monkeypatch):
    """By hand: 720 * 213^2 + 360 * 64 + 2^26 is below 10^8, 720 * 214^2 not."""
    monkeypatch.setattr(data_memory, "machine_bytes", lambda: 10**8)
    data = experiment.load_data(tiny_config(**{"data.size": 213}))
    assert data.train.images.shape == (300, 213, 213, 1)
    with pytest.raises(SettingsError, match="at most 213 for 360 images"):
        experiment.load_data(tiny_config(**{"data.size": 214}))


@pytest.mark.parametrize(("size", "fitting", "needed"), [(0, 7, 7680), (32, 7, 122880)])
def test_pictures_beyond_the_memory_are_refused_before_they_are_decoded(
    monkeypatch, tmp_path, size, fitting, needed
):
    """By hand: 60 pictures twice, 2 * 60 * 8^2 or 2 * 60 * 32^2; 2 * 60 * 7^2 fits."""
    folder = write_pictures(tmp_path)
    changes = {"data.name": "image_folder", "data.dir": folder, "data.size": size}
    config = completed(plain_config(**changes, **{"data.min_size": 1}))
    (tmp_path / "ant" / "0.png").write_text("damaged")
    monkeypatch.setattr(data_memory, "machine_bytes", lambda: 7679)
    with pytest.raises(SettingsError) as caught:
        experiment.load_data(config)
    side = size or 8
    assert caught.value.problems == [
        f"data.size must be in [1, {fitting}] for the 60 pictures of {folder} in the "
        f"0.0 GB of this machine, got {size}: {side}x{side} pixels take 0.0 GB"
    ]
    monkeypatch.setattr(data_memory, "machine_bytes", lambda: needed)
    with pytest.raises(DataError, match="cannot be read as a picture"):
        experiment.load_data(config)


@pytest.mark.parametrize(
    ("groups", "file"),
    [
        ("0::/jobs/7", "jobs/memory.max"),
        ("4:memory:/jobs/7\n0::/", "memory/jobs/7/memory.limit_in_bytes"),
    ],
)
def test_a_control_group_limits_the_memory(tmp_path, groups, file):
    whole = data_memory.machine_bytes(tmp_path)
    assert whole > 10**6
    (tmp_path / "proc/self").mkdir(parents=True)
    (tmp_path / "proc/self/cgroup").write_text(f"{groups}\n")
    limit = tmp_path / "sys/fs/cgroup" / file
    limit.parent.mkdir(parents=True)
    limit.write_text("max\n")
    assert data_memory.machine_bytes(tmp_path) == whole
    limit.write_text("1000000\n")
    assert data_memory.machine_bytes(tmp_path) == 10**6


def test_a_network_beyond_the_memory_is_refused():
    """1.15e9 parameters of the first dense layer; the images are one byte, repeated."""
    config = tiny_config(devices=1, **ALL_DIGITS, **{"data.size": 3000})
    config.model.width = 1.0

    def images(count):
        one = np.broadcast_to(np.uint8(0), (count, 3000, 3000, 1))
        return Dataset(one, np.zeros(count, np.int32))

    learning = make_learning(config)
    data = RunData(images(1442), images(355), (), (), False)
    with pytest.raises(SettingsError, match=r"one lane needs \d+ GB .* data.size"):
        capacity.fitting_lanes(
            capacity.memory_estimate(Experiment(learning, data)), 1, 64 * 10**9
        )
