"""The small networks that students and adjoints are tested on, smooth and not, mixing images and not."""

from collections.abc import Callable

import torch
from torch import nn

from ddfast.networks import ConvNet, resnet18

K = 4
SIDE = 16


class PlainConvNet(nn.Module):
    """The field's ConvNet of PyTorch's layers, in the field's layout, of two blocks."""

    def __init__(self, channels, classes, width, size, norm="instancenorm", activation="relu", pooling="avgpooling"):
        super().__init__()
        layers, (H, W) = [], size
        for block in range(2):
            norms = {
                "instancenorm": lambda: nn.GroupNorm(width, width),
                "batchnorm": lambda: nn.BatchNorm2d(width),
                "layernorm": lambda H=H, W=W: nn.LayerNorm([width, H, W]),
                "groupnorm": lambda: nn.GroupNorm(4, width),
            }
            activations = {
                "relu": nn.ReLU,
                "leakyrelu": lambda: nn.LeakyReLU(0.01),
                "sigmoid": nn.Sigmoid,
                "swish": nn.SiLU,
            }
            poolings = {"avgpooling": nn.AvgPool2d, "maxpooling": nn.MaxPool2d}
            layers.append(nn.Conv2d(width if block else channels, width, kernel_size=3, padding=1))
            if norm != "none":
                layers.append(norms[norm]())
            layers.append(activations[activation]())
            if pooling != "none":
                layers.append(poolings[pooling](kernel_size=2, stride=2))
                H, W = H // 2, W // 2
        self.features = nn.Sequential(*layers)
        self.classifier = nn.Linear(width * H * W, classes)

    def forward(self, images):
        return self.classifier(self.features(images).flatten(1))


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
