"""Memory layout of maps: what the kernels want, and what a caller gave and gets back."""

from collections.abc import Callable

import torch
from torch import Tensor


def channels_last(maps: Tensor) -> Tensor:  # [N, C, H, W]
    """The same maps, channels-last, also where one channel makes both layouts the same bytes: by its strides PyTorch
    chooses the layout of a convolution, and the other one is several times slower."""
    if maps.shape[1] == 1:
        return maps[:, 0].contiguous()[..., None].permute(0, 3, 1, 2)
    return maps.contiguous(memory_format=torch.channels_last)


def is_channels_last(maps: Tensor) -> bool:  # [N, C, H, W]
    """Whether the channels of a pixel lie side by side; not where that is the contiguous layout, too."""
    return not maps.is_contiguous() and maps.stride(1) == 1


def in_layout(maps: Tensor, last: bool) -> Tensor:  # [N, C, H, W]
    """The same maps channels-last, or contiguous."""
    return maps.contiguous(memory_format=torch.channels_last if last else torch.contiguous_format)


def keeping_layout(
    function: Callable[[Tensor], Tensor],  # [N, C, H, W] -> [N, C', H', W'], channels-last
    maps: Tensor,  # [N, C, H, W]
    taken: bool | None = None,
) -> Tensor:  # [N, C', H', W'], in the layout of maps
    """A function's result, and its derivatives of any order, in the layout of the maps that it is given; it takes them
    channels-last (`taken`), contiguous, or as they come (None)."""
    last = is_channels_last(maps)
    if last and taken:  # nothing is converted; what works in channels-last has such gradients, too
        return function(maps)
    given = _Laid.apply(maps, last if taken is None else taken)
    return _Laid.apply(function(given), last)


class _Laid(torch.autograd.Function):
    """Maps in one layout, whose gradient comes in the layout that they came in."""

    generate_vmap_rule = True

    @staticmethod
    def forward(maps: Tensor, last: bool) -> Tensor:
        return in_layout(maps, last)

    @staticmethod
    def setup_context(ctx, inputs, output) -> None:
        ctx.came_last = is_channels_last(inputs[0])

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[Tensor, None]:
        return _Laid.apply(grad, ctx.came_last), None
