"""The networks that are distilled for and evaluated on, by name."""

from collections.abc import Callable

import torch
from torch import nn

from ddfast.networks.convnet import ConvNet, NormReLUPool
from ddfast.networks.resnet import resnet18

NETWORKS: dict[str, Callable[..., nn.Module]] = {"convnet": ConvNet, "resnet18": resnet18}

__all__ = ["NETWORKS", "ConvNet", "NormReLUPool", "create", "resnet18"]


def create(
    name: str,
    *,
    channels: int,
    num_classes: int,
    image_size: tuple[int, int],
    generator: torch.Generator,
    **options,
) -> nn.Module:
    """A network of NETWORKS, on the CPU, its initial parameters drawn from `generator`; the global state is left alone.

    Errors: ValueError that lists the names, for an unknown one.
    """
    if name not in NETWORKS:
        raise ValueError(f"network: expected one of {', '.join(NETWORKS)}, got {name!r}")
    seed = int(torch.randint(2**63 - 1, (), generator=generator, device=generator.device))
    with torch.random.fork_rng(devices=[]):
        torch.random.default_generator.manual_seed(seed)
        return NETWORKS[name](channels=channels, num_classes=num_classes, image_size=image_size, **options)
