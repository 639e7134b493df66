"""Images and labels belong together, one label for each image."""

from fedjax_prune.types import Dataset


def check_pairs(dataset: Dataset) -> None:
    """Refuses images and labels that differ in number; only shapes are looked at.

    Args:
      dataset: whose arrays may be traced.

    Raises:
      ValueError: naming both numbers.
    """
    num_images, labels = len(dataset.images), dataset.labels.shape
    if labels != (num_images,):
        raise ValueError(
            f"labels must have shape ({num_images},), one for each image, got {labels}."
        )
