"""The names of the classes of the known data sets, in the order of their labels."""

import string
from collections.abc import Sequence

from fedjax_prune.data.by_client import SYMBOLS
from fedjax_prune.data.datasets import DATASETS

_CIFAR10 = "airplane automobile bird cat deer dog frog horse ship truck"
_CIFAR100 = """
apple aquarium_fish baby bear beaver bed bee beetle bicycle bottle bowl boy bridge bus
butterfly camel can castle caterpillar cattle chair chimpanzee clock cloud cockroach
couch crab crocodile cup dinosaur dolphin elephant flatfish forest fox girl hamster
house kangaroo keyboard lamp lawn_mower leopard lion lizard lobster man maple_tree
motorcycle mountain mouse mushroom oak_tree orange orchid otter palm_tree pear
pickup_truck pine_tree plain plate poppy porcupine possum rabbit raccoon ray road rocket
rose sea seal shark shrew skunk skyscraper snail snake spider squirrel streetcar
sunflower sweet_pepper table tank telephone television tiger tractor train trout tulip
turtle wardrobe whale willow_tree wolf woman worm
"""

LABELS: dict[str, Sequence[str]] = {
    "cifar10": _CIFAR10.split(),
    "cifar100": _CIFAR100.split(),
    "mnist": string.digits,
    "fashion_mnist": (
        "T-shirt/top",
        "Trouser",
        "Pullover",
        "Dress",
        "Coat",
        "Sandal",
        "Shirt",
        "Sneaker",
        "Bag",
        "Ankle boot",
    ),
    # Of small letters it has those that do not look like their capitals.
    "emnist": string.digits + string.ascii_uppercase + "abdefghnqrt",
    "digits": string.digits,
    "femnist": string.digits + string.ascii_uppercase + string.ascii_lowercase,
    "shakespeare": SYMBOLS,
}
"""Name of a data set -> names of its classes; others have numbers."""


def labels_of(name: str, classes: Sequence[str] = ()) -> tuple[str, ...]:
    """Gives the names of the classes of a data set, in the order of its labels.

    Args:
      name: a key of `DATASETS`.
      classes: those of the user's own data.

    Examples:
      >>> labels_of("mnist")[:3], labels_of("arrays", ["cat", "dog"])
      (('0', '1', '2'), ('cat', 'dog'))
    """
    numbers = map(str, range(DATASETS[name].num_classes))
    return tuple(classes or LABELS.get(name, tuple(numbers)))
