"""A small vision transformer for small images."""

import math
from functools import partial

from torch import nn

from ddfast.runtime.arguments import expect_whole


def vit(
    channels: int = 3,
    num_classes: int = 10,
    image_size: tuple[int, int] = (32, 32),
    *,
    patch: int = 4,
    width: int = 192,
    depth: int = 6,
    heads: int = 3,
) -> nn.Module:
    """torchvision's vision transformer (Dosovitskiy et al. 2021) with the width and heads of ViT-Tiny, half of its
    layers, and patches of 4 pixels.

    Errors: ValueError for images that are no squares of whole patches, or a width that the heads do not share evenly.
    """
    from torchvision.models.vision_transformer import VisionTransformer

    expect_whole(patch=patch, width=width, depth=depth, heads=heads)
    H, W = image_size
    if H != W or H % patch:
        raise ValueError(
            f"image_size: expected square images of whole patches of {patch} pixels for vit, got {H} × {W}"
        )
    if width % heads:
        raise ValueError(f"width: expected a multiple of the {heads} heads, got {width}")
    network = VisionTransformer(
        H, patch, depth, heads, width, 2 * width, num_classes=num_classes, norm_layer=partial(nn.LayerNorm, eps=1e-6)
    )
    if channels != 3:
        network.conv_proj = nn.Conv2d(channels, width, patch, stride=patch)
        nn.init.trunc_normal_(network.conv_proj.weight, std=math.sqrt(1 / (channels * patch**2)))
        nn.init.zeros_(network.conv_proj.bias)
    nn.init.trunc_normal_(network.heads.head.weight, std=0.02)  # torchvision's zeros: no gradient goes through them
    return network
