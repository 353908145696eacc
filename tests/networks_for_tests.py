"""The small networks that students and adjoints are tested on, smooth and not, mixing images and not."""

from collections.abc import Callable

import torch
from torch import nn

from ddfast.networks import ConvNet, resnet18

K = 4
SIDE = 16


class _Dropout(nn.Module):
    """A small ConvNet with dropout before its linear layer."""

    def __init__(self):
        super().__init__()
        self.convnet = ConvNet(3, 6, width=4, depth=2, image_size=(SIDE, SIDE))
        self.head = nn.Sequential(nn.Dropout(0.4), nn.Linear(6, K))

    def forward(self, images):
        return self.head(self.convnet(images))


def _convnet(**options) -> Callable[[], nn.Module]:
    return lambda: ConvNet(3, K, width=8, depth=2, image_size=(SIDE, SIDE), **options)


NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "convnet": _convnet(),
    "convnet-sigmoid-groupnorm-maxpooling": _convnet(norm="groupnorm", activation="sigmoid", pooling="maxpooling"),
    "convnet-batchnorm": _convnet(norm="batchnorm"),
    "dropout": _Dropout,
    "resnet18": lambda: resnet18(3, K, (SIDE, SIDE)),
}


def make(name: str) -> nn.Module:
    """A network of NETWORKS in float64, the same every time."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return NETWORKS[name]().double()
