"""The models of the PyTorch peers."""
# pyright: reportMissingImports=false

import torch
from torch import nn

from .worker import VGG_DENSE, VGG_LAYERS, Data, check_num_params


class _Input(nn.Module):
    """Scales and transposes a batch of images for the layers after it."""

    def __init__(self, memory_format: torch.memory_format):
        super().__init__()
        self._memory_format = memory_format

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Returns images, [batch_size, channels, height, width] float32 in [0, 1].

        Args:
          images: [batch_size, height, width, channels] uint8.
        """
        images = images.permute(0, 3, 1, 2)
        images = images.to(torch.float32, memory_format=self._memory_format)
        return images.div_(255)


def _cnn(image_shape: tuple[int, ...], num_classes: int) -> list[nn.Module]:
    height, width, channels = image_shape
    return [
        nn.Conv2d(channels, 32, 3),
        nn.ReLU(),
        nn.Conv2d(32, 64, 3),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Dropout(0.25),
        nn.Flatten(),
        nn.Linear((height - 4) // 2 * ((width - 4) // 2) * 64, 128),
        nn.ReLU(),
        nn.Dropout(0.5),
        nn.Linear(128, num_classes),
    ]


def _vgg11(
    image_shape: tuple[int, ...], num_classes: int, width: float
) -> list[nn.Module]:
    size, _, channels = image_shape
    layers: list[nn.Module] = []
    for layer in VGG_LAYERS:
        if layer == 0:
            layers.append(nn.MaxPool2d(2))
            size //= 2
            continue
        convolution = nn.Conv2d(channels, int(layer * width), 3, padding=1)
        # Without normalisation layers, PyTorch's own scale makes the signal vanish.
        nn.init.kaiming_normal_(convolution.weight, mode="fan_out")
        nn.init.zeros_(convolution.bias)
        layers += [convolution, nn.ReLU()]
        channels = int(layer * width)
    layers += [nn.Flatten(), nn.Dropout(0.5)]
    features = channels * size * size
    hidden = int(VGG_DENSE * width)
    layers += [nn.Linear(features, hidden), nn.ReLU(), nn.Dropout(0.5)]
    layers += [nn.Linear(hidden, hidden), nn.ReLU(), nn.Linear(hidden, num_classes)]
    return layers


def build(work: str, data: Data) -> nn.Module:
    """Returns the model of a work, on the device, in training mode.

    It takes images as they are in the data, uint8, and returns logits.
    """
    image_shape = data.images.shape[1:]
    # Each model uses the memory layout that is faster for it on a CPU.
    if work == "w2":
        memory_format = torch.contiguous_format
        layers = _vgg11(image_shape, data.num_classes, data.width)
    else:
        memory_format = torch.channels_last
        layers = _cnn(image_shape, data.num_classes)
    model = nn.Sequential(_Input(memory_format), *layers)
    check_num_params(work, data, sum(p.numel() for p in model.parameters()))
    return model.to(device(), memory_format=memory_format).train()


def device() -> torch.device:
    """Returns the first GPU if there is one, else the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def mean(tensors: list[torch.Tensor]) -> float:
    """Returns the mean over all entries of all tensors."""
    total = sum(tensor.double().sum().item() for tensor in tensors)
    return total / sum(tensor.numel() for tensor in tensors)
