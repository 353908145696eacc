"""Memory layout of maps."""

import torch
from torch import Tensor


def channels_last(maps: Tensor) -> Tensor:  # [N, C, H, W]
    """The same maps, channels-last, also where one channel makes both layouts the same bytes: by its strides PyTorch
    chooses the layout of a convolution, and the other one is several times slower."""
    if maps.shape[1] == 1:
        return maps[:, 0].contiguous()[..., None].permute(0, 3, 1, 2)
    return maps.contiguous(memory_format=torch.channels_last)
