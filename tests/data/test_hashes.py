"""The hash of data depends on what they are, not on how they lie in memory."""

import hashlib

import ml_dtypes
import numpy as np
import pytest

from fedjax_prune.data.hashes import hash_arrays
from fedjax_prune.types import Dataset

IMAGES = np.arange(2 * 3 * 4 * 1, dtype=np.uint8).reshape(2, 3, 4, 1)
LABELS = np.array([1, 2], np.int32)


def test_it_is_sha256_over_dtypes_shapes_and_entries():
    parts = [b"|u1(2, 3, 4, 1)", IMAGES.tobytes(), b"<i4(2,)", LABELS.tobytes()]
    expected = hashlib.sha256(b"".join(parts)).hexdigest()
    assert hash_arrays(Dataset(IMAGES, LABELS)) == expected


def test_the_layout_in_memory_does_not_matter():
    wide = np.zeros((2, 3, 8, 1), np.uint8)
    wide[:, :, ::2] = IMAGES
    for same in (IMAGES.copy(order="F"), wide[:, :, ::2]):
        assert hash_arrays(same) == hash_arrays(IMAGES)


@pytest.mark.parametrize(
    "other",
    [
        Dataset(IMAGES[::-1], LABELS[::-1]),
        Dataset(IMAGES, LABELS[::-1]),
        Dataset(IMAGES, LABELS.astype(np.int64)),
        Dataset(IMAGES.astype(np.float32), LABELS),
        Dataset(IMAGES.reshape(2, 4, 3, 1), LABELS),
        Dataset(IMAGES[:1], LABELS[:1]),
        Dataset(IMAGES[:0], LABELS[:0]),
        Dataset(IMAGES.view(np.int8), LABELS),
        (),
    ],
)
def test_any_change_is_another_hash(other):
    assert hash_arrays(other) != hash_arrays(Dataset(IMAGES, LABELS))


def test_arrays_of_any_kind_have_a_hash():
    kinds = [np.float32(1), np.zeros((0, 3)), np.ones(3, ml_dtypes.bfloat16)]
    assert len({hash_arrays(kind) for kind in kinds}) == 3
