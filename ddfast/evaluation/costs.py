"""What a network costs: parameters and FLOPs."""

from typing import NamedTuple

import torch

from ddfast import networks
from ddfast.data import Dataset
from ddfast.runtime import seeds


class NetworkCost(NamedTuple):
    """Of one network on images of a data set."""

    parameters: int
    flops: int  # of classifying an image, by torch.utils.flop_counter: convolutions and matrix products


@torch.no_grad()
def cost_of(name: str, data: Dataset) -> NetworkCost:
    """The cost of a network by name."""
    from torch.utils.flop_counter import FlopCounterMode

    net = networks.create(name, generator=seeds.generator(0), **data.network_arguments).eval()
    images = torch.zeros(1, data.channels, *data.image_size)
    with FlopCounterMode(display=False) as counter:
        net(images)
    return NetworkCost(sum(p.numel() for p in net.parameters()), counter.get_total_flops())
