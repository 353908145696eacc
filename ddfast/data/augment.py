"""DSA: differentiable Siamese augmentation (Zhao & Bilen 2021, arXiv 2102.08259), in the conventions of its users."""

import math
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.nn.functional import affine_grid, grid_sample

FULL_STRATEGY = "color_crop_cutout_flip_scale_rotate"
NO_STRATEGY = "none"
FAMILIES = ("mtt", "dsa")

# Magnitudes of the published code.
BRIGHTNESS, SATURATION, CONTRAST = 1.0, 2.0, 0.5
CROP = 0.125  # of the side: the largest shift
CUTOUT = 0.5  # of the side: the box
FLIP = 0.5  # probability
ROTATION = 15.0  # degrees
SCALE = 1.2


@dataclass(frozen=True)
class Draw:
    """One drawn transform: call it on images [B, C, H, W]; differentiable in them, and always the same."""

    kind: str  # a transform of TRANSFORMS, or none
    values: dict[str, Tensor] = field(default_factory=dict)  # [B] each, or [1] for one magnitude for the batch
    align_corners: bool = True

    def __call__(self, images: Tensor) -> Tensor:  # [B, C, H, W] -> [B, C, H, W]
        """Transform images."""
        if self.kind == NO_STRATEGY:
            return images
        return TRANSFORMS[self.kind].apply(images, self.align_corners, **self.values)

    def to(self, device: torch.device) -> "Draw":
        """The same on a device."""
        return Draw(self.kind, {name: value.to(device) for name, value in self.values.items()}, self.align_corners)


class DSA:
    """Draws one transform of a strategy for every minibatch.

    Args:
        strategy: transforms joined by underscores, of color, crop, cutout, flip, scale, rotate; none for no change.
        family: mtt (MTT, FTD, TESLA, DATM: magnitudes drawn per image, align_corners=True) or dsa (DC, DSA, DM: one
            magnitude for the whole batch, align_corners=False).

    Flip with p = 0.5; scale in [1/1.2, 1.2], x and y apart; rotation by ±15°; crop: a shift of ±12.5% of the side;
    cutout: a box of half the side; color: brightness +(u − 0.5), saturation ×2u about the channel mean, contrast
    ×(u + 0.5) about the mean of the image, in this order. Bilinear sampling, zero padding.

    Errors: ValueError that lists the transforms.
    """

    def __init__(self, strategy: str = FULL_STRATEGY, family: str = "mtt"):
        if family not in FAMILIES:
            raise ValueError(f"family: expected one of {', '.join(FAMILIES)}, got {family!r}")
        kinds = (strategy or NO_STRATEGY).lower().split("_")
        unknown = [kind for kind in kinds if kind not in TRANSFORMS]
        if unknown and kinds != [NO_STRATEGY]:
            raise ValueError(
                f"dsa_strategy: expected some of {', '.join(TRANSFORMS)} joined by underscores, or none, "
                f"got {strategy!r}"
            )
        self.kinds, self.family = kinds, family

    def draw(
        self,
        count: int,  # B
        image_size: tuple[int, int],  # (H, W)
        generator: torch.Generator,
    ) -> Draw:
        """A transform for a minibatch of `count` images, drawn on the CPU."""
        if self.kinds == [NO_STRATEGY]:
            return Draw(NO_STRATEGY)
        kind = self.kinds[int(torch.randint(len(self.kinds), (), generator=generator))]
        values = TRANSFORMS[kind].draw(count if self.family == "mtt" else 1, image_size, generator)
        return Draw(kind, values, align_corners=self.family == "mtt")


@dataclass(frozen=True)
class Transform:
    """How the magnitudes of a transform are drawn, and what they do."""

    draw: Callable[[int, tuple[int, int], torch.Generator], dict[str, Tensor]]
    apply: Callable[..., Tensor]


def _uniform(count: int, generator: torch.Generator, low: float = 0.0, high: float = 1.0) -> Tensor:  # [count]
    return low + (high - low) * torch.rand(count, generator=generator)


def _whole(low: int, high: int, count: int, generator: torch.Generator) -> Tensor:  # int64 [count] in [low, high)
    return torch.randint(low, high, (count,), generator=generator)


def _column(values: Tensor) -> Tensor:  # [B] -> [B, 1, 1, 1]
    return values.view(-1, 1, 1, 1)


def _draw_color(count, image_size, generator):
    return {name: _uniform(count, generator) for name in ("brightness", "saturation", "contrast")}


def _color(images, align_corners, brightness, saturation, contrast):
    images = images + BRIGHTNESS * (_column(brightness) - 0.5)
    mean = images.mean(1, keepdim=True)
    images = (images - mean) * (SATURATION * _column(saturation)) + mean
    mean = images.mean((1, 2, 3), keepdim=True)
    return (images - mean) * (_column(contrast) + CONTRAST) + mean


def _draw_crop(count, image_size, generator):
    most = [int(side * CROP + 0.5) for side in image_size]
    return {name: _whole(-m, m + 1, count, generator) for name, m in zip(("down", "right"), most, strict=True)}


def _crop(images, align_corners, down, right):
    return _shift(_shift(images, down, 2), right, 3)


def _shift(images: Tensor, by: Tensor, dim: int) -> Tensor:
    """images[…, i + by, …] along dim, zero outside. Two gathers: no index is written twice in the backward."""
    side = images.shape[dim]
    index = torch.arange(side, device=images.device) + by.view(-1, 1)  # [B, side]
    inside = (index >= 0) & (index < side)
    shape = [len(by), 1, 1, 1]
    shape[dim] = side
    index = index.clamp(0, side - 1).view(shape).expand_as(images)
    return images.gather(dim, index) * inside.view(shape)


def _draw_cutout(count, image_size, generator):
    boxes = [int(side * CUTOUT + 0.5) for side in image_size]
    return {
        name: _whole(0, side + (1 - box % 2), count, generator)
        for name, side, box in zip(("row", "column"), image_size, boxes, strict=True)
    }


def _cutout(images, align_corners, row, column):
    inside = _in_box(images, row, 2) & _in_box(images, column, 3)  # [B, 1, H, W]
    return images.masked_fill(inside, 0)


def _in_box(images: Tensor, middle: Tensor, dim: int) -> Tensor:
    """Which rows or columns the box about `middle` covers, as far as it lies in the image."""
    side = images.shape[dim]
    box = int(side * CUTOUT + 0.5)
    first = middle.view(-1, 1) - box // 2
    pixel = torch.arange(side, device=images.device)
    shape = [len(middle), 1, 1, 1]
    shape[dim] = side
    return ((pixel >= first) & (pixel < first + box)).view(shape)


def _draw_flip(count, image_size, generator):
    return {"flipped": _uniform(count, generator) < FLIP}


def _flip(images, align_corners, flipped):
    return torch.where(_column(flipped), images.flip(3), images)


def _draw_scale(count, image_size, generator):
    return {name: _uniform(count, generator, 1 / SCALE, SCALE) for name in ("x", "y")}


def _scale(images, align_corners, x, y):
    zero = torch.zeros_like(x)
    return _affine(images, align_corners, [[x, zero, zero], [zero, y, zero]])


def _draw_rotate(count, image_size, generator):
    return {"angle": math.radians(ROTATION) * _uniform(count, generator, -1.0, 1.0)}


def _rotate(images, align_corners, angle):
    zero = torch.zeros_like(angle)
    return _affine(images, align_corners, [[angle.cos(), -angle.sin(), zero], [angle.sin(), angle.cos(), zero]])


def _affine(images: Tensor, align_corners: bool, rows: list[list[Tensor]]) -> Tensor:  # rows of [B]
    matrix = torch.stack([torch.stack(row, -1) for row in rows], -2).to(images.dtype)  # [B, 2, 3]
    matrix = matrix.expand(len(images), 2, 3)
    grid = affine_grid(matrix, list(images.shape), align_corners=align_corners)
    return grid_sample(images, grid, mode="bilinear", padding_mode="zeros", align_corners=align_corners)


TRANSFORMS = {
    "color": Transform(_draw_color, _color),
    "crop": Transform(_draw_crop, _crop),
    "cutout": Transform(_draw_cutout, _cutout),
    "flip": Transform(_draw_flip, _flip),
    "scale": Transform(_draw_scale, _scale),
    "rotate": Transform(_draw_rotate, _rotate),
}
