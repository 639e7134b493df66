"""Files of a user: folders of examples, and Flax classes."""

import textwrap
from pathlib import Path

import numpy as np
from PIL import Image

CLASSES = ("ant", "bee", "cow")

NETS = """
from typing import Annotated

import flax.linen as nn
from flax import nnx


class Small(nn.Module):
    num_classes: int
    hidden: int = 8
    act: str = "relu"

    @nn.compact
    def __call__(self, x):
        x = getattr(nn, self.act)(nn.Conv(self.hidden, (3, 3), name="conv")(x))
        return nn.Dense(self.num_classes, name="fc")(x.mean(axis=(1, 2)))


class Same(nnx.Module):
    def __init__(self, num_classes, image_shape, *, hidden: int = 8, rngs):
        self.conv = nnx.Conv(image_shape[-1], hidden, (3, 3), rngs=rngs)
        self.fc = nnx.Linear(hidden, num_classes, rngs=rngs)

    def __call__(self, x):
        return self.fc(nnx.relu(self.conv(x)).mean(axis=(1, 2)))
"""


def write_nets(folder: Path, text: str = NETS) -> str:
    """Writes a file of classes; returns its path."""
    file = folder / "nets.py"
    file.write_text(textwrap.dedent(text))
    return str(file)


def draw_images(number: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Images [number, 8, 8, 1] of three classes, each bright in its own rows."""
    rng = np.random.default_rng(seed)
    labels = np.arange(number) % len(CLASSES)
    images = rng.integers(0, 60, (number, 8, 8, 1))
    for image, label in zip(images, labels, strict=True):
        image[2 * label : 2 * label + 2] += 180
    return images.astype(np.uint8), labels


def write_pictures(folder: Path, number: int = 60, clients: int = 0) -> str:
    """Writes a folder a class, or a folder a client with folders a class."""
    for index, (image, label) in enumerate(zip(*draw_images(number), strict=True)):
        # Each client has some of every class.
        client = [f"client{index // len(CLASSES) % clients}"] if clients else []
        place = folder.joinpath(*client, CLASSES[label])
        place.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image[..., 0]).save(place / f"{index}.png")
    return str(folder)


def write_arrays(folder: Path, number: int = 60, **more) -> str:
    """Writes train.npz and test.npz."""
    folder.mkdir(parents=True, exist_ok=True)
    for part, seed, count in (("train", 0, number), ("test", 1, 30)):
        images, labels = draw_images(count, seed)
        arrays = {name: values[:count] for name, values in more.items()}
        np.savez(folder / f"{part}.npz", images=images, labels=labels, **arrays)
    return str(folder)
