"""The networks that are distilled for and evaluated on, by name."""

import inspect
from collections.abc import Callable

import torch
from torch import nn

from ddfast.networks.classic import alexcifarnet, alexnet, lenet, mlp, smallvgg, vgg11
from ddfast.networks.convnet import ConvNet, NormReLUPool
from ddfast.networks.resnet import resnet18, resnet18_ap

NETWORKS: dict[str, Callable[..., nn.Module]] = {
    "convnet": ConvNet,
    "resnet18": resnet18,
    "resnet18_ap": resnet18_ap,
    "vgg11": vgg11,
    "smallvgg": smallvgg,
    "alexnet": alexnet,
    "alexcifarnet": alexcifarnet,
    "lenet": lenet,
    "mlp": mlp,
}
GIVEN = {"channels", "num_classes", "image_size"}  # what the data set says

__all__ = [
    "NETWORKS",
    "ConvNet",
    "NormReLUPool",
    "alexcifarnet",
    "alexnet",
    "create",
    "lenet",
    "mlp",
    "resnet18",
    "resnet18_ap",
    "smallvgg",
    "vgg11",
]


def create(
    name: str,
    *,
    channels: int,
    num_classes: int,
    image_size: tuple[int, int],
    generator: torch.Generator,
) -> nn.Module:
    """A network, on the CPU, its initial parameters drawn from `generator`; the global state is left alone.

    `name` is one of NETWORKS, with options after colons: convnet, convnet:depth=4:width=64, resnet18:norm=batchnorm.

    Errors: ValueError that lists the names or the options, for unknown ones, or says what images are too small.
    """
    base, options = _parsed(name)
    seed = int(torch.randint(2**63 - 1, (), generator=generator, device=generator.device))
    with torch.random.fork_rng(devices=[]):
        torch.random.default_generator.manual_seed(seed)
        return NETWORKS[base](channels=channels, num_classes=num_classes, image_size=image_size, **options)


def _parsed(name: str) -> tuple[str, dict[str, int | str]]:
    base, *words = str(name).lower().split(":")
    if base not in NETWORKS:
        raise ValueError(f"network: expected one of {', '.join(NETWORKS)}, got {name!r}")
    known = [option for option in inspect.signature(NETWORKS[base]).parameters if option not in GIVEN]
    options: dict[str, int | str] = {}
    for word in words:
        option, _, value = word.replace("-", "_").partition("=")
        if option not in known or not value:
            raise ValueError(
                f"network: expected options of {', '.join(known) or 'none'} as {base}:name=value, got {name!r}"
            )
        options[option] = int(value) if value.isdigit() else value
    return base, options
