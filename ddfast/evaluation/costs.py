"""What a network costs: parameters and FLOPs."""

from math import prod
from typing import Any, NamedTuple

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
    with FlopCounterMode(display=False, custom_mapping={torch.ops.ddfast.conv3x3: _of_conv3x3}) as counter:
        net(images)
    return NetworkCost(sum(p.numel() for p in net.parameters()), counter.get_total_flops())


def _of_conv3x3(x: Any, weight: Any, *_others: Any, out_shape: Any, **_more: Any) -> int:
    """Those of the convolution that it is, though minimal filtering takes fewer: shapes [B, C, H, W], [O, C, 3, 3]."""
    return 2 * prod(out_shape) * prod(weight[1:])
