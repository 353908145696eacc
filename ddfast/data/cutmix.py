"""CutMix (Yun et al. 2019): a box of every image is taken from another one, and its label in proportion."""

import math

import torch
from torch import Tensor


def cutmix(
    images: Tensor,  # [B, C, H, W]
    targets: Tensor,  # weights [B, K]
    generator: torch.Generator,
) -> tuple[Tensor, Tensor]:  # like them
    """One box for the minibatch, whose area is uniform (a Beta(1, 1) share), at a place that is uniform; cut at the
    borders, and weighed by what is left. Equation 1 of the paper."""
    B, _, H, W = images.shape
    side = math.sqrt(float(torch.rand((), generator=generator)))
    spans = []
    for size in (H, W):
        centre = int(torch.randint(size, (), generator=generator))
        half = int(size * side) // 2
        spans.append(slice(max(0, centre - half), min(size, centre + half)))
    rows, columns = spans
    order = torch.randperm(B, generator=generator).to(images.device)
    mixed = images.clone()
    mixed[:, :, rows, columns] = images[order][:, :, rows, columns]
    share = (rows.stop - rows.start) * (columns.stop - columns.start) / (H * W)
    return mixed, (1 - share) * targets + share * targets[order]
