"""The same augmentation for the real and the synthetic images of a class (DSA: Zhao & Bilen 2021)."""

import torch
from torch import Tensor

from ddfast.data import DSA

SIAMESE = "dsa:color_crop_cutout_flip_scale_rotate"  # the strategy of DSA and DM


def siamese(
    augment: DSA,
    real: Tensor,  # [B, C, H, W]
    synthetic: Tensor,  # [b, C, H, W]
    generator: torch.Generator,
) -> tuple[Tensor, Tensor]:  # like real, like synthetic
    """Both by one transform that is drawn, with its magnitudes; where those are drawn per image, each synthetic one has
    those of a real one."""
    draws = augment.draw_steps(1, max(len(real), len(synthetic)), tuple(real.shape[2:]), generator)
    return (real, synthetic) if draws is None else (draws(real, 0), draws(synthetic, 0))
