"""DC's own augmentation (Zhao et al. 2021, arXiv 2006.05929, by its published code), for networks that are trained on a
set."""

import math

import torch
from torch import Tensor

from ddfast.data.augment import DC, DSA, family_of
from ddfast.ops import dsa_augment
from ddfast.ops.dsa_augment import IDENTITY

TRANSFORMS = ("crop", "scale", "rotate", "noise")
# Magnitudes of the published code.
CROP = 4  # pixels: a shift of −4 to 3
SCALE = 0.2  # sides of 0.8 to 1.2 of theirs
ROTATION = 45  # degrees: −45 to 44, whole
NOISE = 0.001


def augmentation(strategy: str) -> "DSA | DCAugmentation":
    """What a strategy names, for networks that are trained side by side."""
    return DCAugmentation(strategy) if family_of(strategy or "")[0] == DC else DSA(strategy)


class DCAugmentation:
    """Draws one transform of a strategy for every image.

    Args:
        strategy: dc: and alternatives joined by underscores: crop, scale, rotate, noise. The published code evaluates
            with crop_scale_rotate on MNIST, with crop_noise where the network has batch norms, and with none else.

    What comes into the image is 0 for scale; for crop the mean of the minibatch per channel, for rotate that of all
    channels. Sampling is bilinear, where the published code takes the nearest pixel (scale) or cubic splines (rotate).

    Errors: ValueError that lists the transforms.
    """

    def __init__(self, strategy: str) -> None:
        self.kinds = family_of(strategy)[1].split("_")
        if not set(self.kinds) <= set(TRANSFORMS):
            raise ValueError(
                f"dsa_strategy: expected some of {', '.join(TRANSFORMS)} joined by underscores after {DC}:, of which "
                f"one is drawn for each image, got {strategy!r}"
            )

    def side_by_side(
        self,
        images: Tensor,  # [S, B, C, H, W]
        generators: list[torch.Generator],  # S
    ) -> Tensor:  # [S, B, C, H, W]
        """S minibatches, each by transforms drawn from its generator, on the CPU."""
        S, B, C, H, W = images.shape
        draws = [self._draw(B, (C, H, W), generator) for generator in generators]
        kinds, rows, noise = (torch.stack(parts).to(images.device) for parts in zip(*draws, strict=True))
        mean = images.mean((1, 3, 4)).view(S, 1, C, 1, 1)
        kinds = kinds.view(S, B, 1, 1, 1)
        fill = torch.where(kinds == TRANSFORMS.index("crop"), mean, 0.0)
        fill = torch.where(kinds == TRANSFORMS.index("rotate"), mean.mean(2, keepdim=True), fill)
        moved = dsa_augment((images - fill).flatten(0, 1), rows.flatten(0, 1).to(images)).unflatten(0, (S, B))
        return moved + fill + noise.to(images)

    def _draw(
        self, count: int, shape: tuple[int, int, int], generator: torch.Generator
    ) -> tuple[Tensor, Tensor, Tensor]:
        """The kind of each image, [B]; its parameters of dsa_augment, float64 [B, 16]; and its noise, [B, C, H, W]."""
        drawn = torch.randint(len(self.kinds), (count,), generator=generator)
        kinds = torch.tensor([TRANSFORMS.index(name) for name in self.kinds])[drawn]
        down, right = torch.randint(-CROP, CROP, (2, count), generator=generator)
        sides = torch.rand((2, count), generator=generator, dtype=torch.float64) * 2 * SCALE + 1 - SCALE
        angle = torch.randint(-ROTATION, ROTATION, (count,), generator=generator).double() * math.pi / 180
        scaled, turned = _scaled(sides, shape[1:]), _turned(angle, shape[1:])
        parameters = {"crop": {"down": down, "right": right}, "scale": scaled, "rotate": turned, "noise": {}}
        columns = []
        for name, value in IDENTITY.items():
            column = torch.full((count,), value, dtype=torch.float64)
            for number, kind in enumerate(TRANSFORMS):
                column = torch.where(kinds == number, parameters[kind].get(name, column), column)
            columns.append(column)
        if "noise" not in self.kinds:
            return kinds, torch.stack(columns, 1), torch.zeros((1, 1, 1, 1))
        noise = NOISE * torch.randn((count, *shape), generator=generator, dtype=torch.float32)
        return kinds, torch.stack(columns, 1), noise * (kinds == TRANSFORMS.index("noise")).view(-1, 1, 1, 1)


def _scaled(sides: Tensor, image_size: tuple[int, int]) -> dict[str, Tensor]:  # [2, B], of height and width
    """The map of an image that is resized to whole pixels and put in the middle."""
    lengths = [torch.floor(share * side) for share, side in zip(sides, image_size, strict=True)]
    canvas = torch.stack([*lengths, torch.full_like(lengths[0], max(image_size))]).amax(0)
    found = {}
    for name, length, side in zip(("yy", "xx"), lengths, image_size, strict=True):
        begins = torch.floor((canvas - length) / 2) - torch.floor((canvas - side) / 2)
        found[name] = side / length
        found[f"{name[0]}0"] = (0.5 - begins) * side / length - 0.5
    return found


def _turned(angle: Tensor, image_size: tuple[int, int]) -> dict[str, Tensor]:  # [B], radians
    """The map of a rotation about the middle."""
    (y, x), cos, sin = ((side - 1) / 2 for side in image_size), angle.cos(), angle.sin()
    return {
        "xx": cos,
        "xy": -sin,
        "x0": x - cos * x + sin * y,
        "yx": sin,
        "yy": cos,
        "y0": y - sin * x - cos * y,
    }
