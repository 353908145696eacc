"""DSA: differentiable Siamese augmentation (Zhao & Bilen 2021, arXiv 2102.08259), in the conventions of its users."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from ddfast.ops import dsa_augment
from ddfast.ops.dsa_augment import IDENTITY
from ddfast.runtime.arguments import expect_one_of

FULL_STRATEGY = "color_crop_cutout_flip_scale_rotate"
NO_STRATEGY = "none"
FAMILIES = ("mtt", "dsa")
DC = "dc"  # that of ddfast.data.DCAugmentation

# Magnitudes of the published code.
BRIGHTNESS, SATURATION, CONTRAST = 1.0, 2.0, 0.5
CROP = 0.125  # of the side: the largest shift
CUTOUT = 0.5  # of the side: the box
FLIP = 0.5  # probability
ROTATION = 15.0  # degrees
SCALE = 1.2


def family_of(strategy: str) -> tuple[str | None, str]:
    """What stands before the colon, None where nothing does, and the transforms, in small letters."""
    family, colon, names = strategy.lower().rpartition(":")
    if colon and family not in (*FAMILIES, DC):
        expected = ", ".join((*FAMILIES, DC))
        raise ValueError(f"dsa_strategy: expected one of {expected} before the colon, got {strategy!r}")
    return family or None, names


@dataclass(frozen=True)
class Draw:
    """One drawn transform: call it on images [B, C, H, W]; differentiable in them, and always the same."""

    kind: str  # a transform of TRANSFORMS, some joined by +, or none
    values: dict[str, Tensor]  # as they were drawn: [B] each, or [1] for one magnitude for the batch
    rows: Tensor  # float64 [B, 16], what ddfast.ops.dsa_augment takes

    def __call__(self, images: Tensor) -> Tensor:  # [B, C, H, W] -> [B, C, H, W]
        """Transform images."""
        return images if self.kind == NO_STRATEGY else dsa_augment(images, self.rows.to(images))


@dataclass(frozen=True)
class Draws:
    """The draws of all inner steps: what ddfast.unroll takes as `augment`. Rows elsewhere than the images are copied
    to their device when they are used."""

    rows: Tensor  # [T, B, 16]
    repeats: ClassVar[bool] = True  # drawn beforehand: a backward need not look

    def __call__(self, images: Tensor, n: int) -> Tensor:  # [B, C, H, W] -> [B, C, H, W]
        """Transform the minibatch of step n; a smaller one than was drawn for takes the first of its rows."""
        return dsa_augment(images, self.rows[n, : len(images)].to(images))


class DSA:
    """Draws one transform of a strategy, or one join of several, for every minibatch.

    Args:
        strategy: alternatives joined by underscores, of which one is drawn: color, crop, cutout, flip, scale, rotate,
            or some of them joined by +, as crop+flip, which are drawn and applied together; none for no change. A
            family and a colon may stand before them: dsa:color_crop.
        family: mtt (MTT, FTD, TESLA, DATM: magnitudes drawn per image, align_corners=True) or dsa (DC, DSA, DM: one
            magnitude for a minibatch of an unroll, align_corners=False); None for the strategy's, or mtt. Networks
            that are trained side by side get a magnitude per image in both, as the published code trains them.

    Flip with p = 0.5; scale in [1/1.2, 1.2], x and y apart; rotation by ±15°; crop: a shift of ±12.5% of the side;
    cutout: a box of half the side; color: brightness +(u − 0.5), saturation ×2u about the channel mean, contrast
    ×(u + 0.5) about the mean of the image, in this order. Bilinear sampling, zero padding. However they are written,
    joined transforms are applied as ddfast.ops.dsa_augment does: color, crop, cutout, flip, scale or rotate.

    Errors: ValueError that lists the transforms, or for a join of one with itself, or of scale with rotate: the op has
    one affine map.
    """

    def __init__(self, strategy: str = FULL_STRATEGY, family: str | None = None) -> None:
        named, names = family_of(strategy or NO_STRATEGY)
        if named == DC:
            raise ValueError(
                f"dsa_strategy: dc: is for networks that are trained on a set, by ddfast evaluate; expected one of "
                f"{', '.join(TRANSFORMS)} of DSA here, got {strategy!r}"
            )
        if family is not None and named not in (None, family):
            raise ValueError(f"family: the strategy {strategy!r} says {named}, got {family!r}")
        family = family or named or FAMILIES[0]
        expect_one_of("family", family, FAMILIES)
        kinds = names.split("_")
        joins = [kind.split("+") for kind in kinds]
        if kinds != [NO_STRATEGY] and not set().union(*joins) <= set(TRANSFORMS):
            raise ValueError(
                f"dsa_strategy: expected some of {', '.join(TRANSFORMS)} joined by underscores, of which one is drawn, "
                f"or by +, which are applied together; or none; got {strategy!r}"
            )
        if any(len(set(join)) < len(join) or {"scale", "rotate"} <= set(join) for join in joins):
            raise ValueError(
                f"dsa_strategy: expected transforms joined by + to be different, and not scale with rotate, "
                f"got {strategy!r}"
            )
        self.kinds, self.family = kinds, family

    def draw(
        self,
        count: int,  # B
        image_size: tuple[int, int],  # (H, W)
        generator: torch.Generator,
        per_image: bool = False,  # magnitudes, whatever the family
    ) -> Draw:
        """A transform for a minibatch of `count` images, drawn on the CPU."""
        if self.kinds == [NO_STRATEGY]:
            return Draw(NO_STRATEGY, {}, torch.empty(0))
        kind = self.kinds[int(torch.randint(len(self.kinds), (), generator=generator))]
        values: dict[str, Tensor] = {}
        parameters: dict[str, Tensor] = {}
        for transform in (TRANSFORMS[name] for name in kind.split("+")):
            drawn = transform.draw(count if per_image or self.family == "mtt" else 1, image_size, generator)
            values |= drawn
            parameters |= transform.parameters(image_size, self.family == "mtt", **drawn)
        columns = [parameters.get(name, torch.tensor(value)).double().expand(count) for name, value in IDENTITY.items()]
        return Draw(kind, values, torch.stack(columns, 1))

    def draw_steps(
        self,
        steps: int,  # T
        count: int,  # B
        image_size: tuple[int, int],  # (H, W)
        generator: torch.Generator,
    ) -> Draws | None:
        """A transform for each inner step, drawn on the CPU; None where the strategy is none. `count` is the size of
        the largest minibatch."""
        draws = [self.draw(count, image_size, generator) for _ in range(steps)]
        return None if self.kinds == [NO_STRATEGY] else Draws(torch.stack([draw.rows for draw in draws]))

    def side_by_side(
        self,
        images: Tensor,  # [S, B, C, H, W]
        generators: list[torch.Generator],  # S
    ) -> Tensor:  # [S, B, C, H, W]
        """S minibatches, each by a transform drawn from its generator."""
        S, B, _, H, W = images.shape
        draws = [self.draw(B, (H, W), generator, per_image=True) for generator in generators]
        if self.kinds == [NO_STRATEGY]:
            return images
        rows = torch.cat([draw.rows for draw in draws]).to(images)
        return dsa_augment(images.flatten(0, 1), rows).unflatten(0, (S, B))


@dataclass(frozen=True)
class Transform:
    """How the magnitudes of a transform are drawn, and which parameters of dsa_augment they are: [B] or [1] each."""

    draw: Callable[[int, tuple[int, int], torch.Generator], dict[str, Tensor]]
    parameters: Callable[..., dict[str, Tensor]]


def _uniform(count: int, generator: torch.Generator, low: float = 0.0, high: float = 1.0) -> Tensor:  # [count]
    return low + (high - low) * torch.rand(count, generator=generator, dtype=torch.float32)


def _whole(low: int, high: int, count: int, generator: torch.Generator) -> Tensor:  # int64 [count] in [low, high)
    return torch.randint(low, high, (count,), generator=generator)


def _draw_color(count, image_size, generator):
    return {name: _uniform(count, generator) for name in ("brightness", "saturation", "contrast")}


def _color(image_size, align_corners, brightness, saturation, contrast):
    return {
        "brightness": BRIGHTNESS * (brightness.double() - 0.5),
        "saturation": SATURATION * saturation,
        "contrast": contrast.double() + CONTRAST,
    }


def _draw_crop(count, image_size, generator):
    most = [int(side * CROP + 0.5) for side in image_size]
    return {name: _whole(-m, m + 1, count, generator) for name, m in zip(("down", "right"), most, strict=True)}


def _crop(image_size, align_corners, down, right):
    return {"down": down, "right": right}


def _draw_cutout(count, image_size, generator):
    boxes = [int(side * CUTOUT + 0.5) for side in image_size]
    return {
        name: _whole(0, side + (1 - box % 2), count, generator)
        for name, side, box in zip(("row", "column"), image_size, boxes, strict=True)
    }


def _cutout(image_size, align_corners, row, column):
    """The box about a pixel, as far as it lies in the image."""
    height, width = (int(side * CUTOUT + 0.5) for side in image_size)
    top, left = row - height // 2, column - width // 2
    return {"top": top, "bottom": top + height, "left": left, "end": left + width}


def _draw_flip(count, image_size, generator):
    return {"flipped": _uniform(count, generator) < FLIP}


def _flip(image_size, align_corners, flipped):
    return {"flip": flipped}


def _draw_scale(count, image_size, generator):
    return {name: _uniform(count, generator, 1 / SCALE, SCALE) for name in ("x", "y")}


def _scale(image_size, align_corners, x, y):
    zero = torch.zeros_like(x)
    return _affine(image_size, align_corners, ((x, zero), (zero, y)))


def _draw_rotate(count, image_size, generator):
    return {"angle": math.radians(ROTATION) * _uniform(count, generator, -1.0, 1.0)}


def _rotate(image_size, align_corners, angle):
    return _affine(image_size, align_corners, ((angle.cos(), -angle.sin()), (angle.sin(), angle.cos())))


def _affine(image_size: tuple[int, int], align_corners: bool, matrix) -> dict[str, Tensor]:
    """A 2×2 matrix about the image's middle, in coordinates that go from −1 to 1 over each side as affine_grid has
    them, in pixels."""
    (xx, xy), (yx, yy) = ((value.double() for value in row) for row in matrix)
    H, W = image_size
    height, width = (H - 1, W - 1) if align_corners else (H, W)  # pixels for the way from −1 to 1
    middle_x, middle_y = (W - 1) / 2, (H - 1) / 2
    xy, yx = xy * width / height, yx * height / width
    return {
        "xx": xx,
        "xy": xy,
        "x0": middle_x - xx * middle_x - xy * middle_y,
        "yx": yx,
        "yy": yy,
        "y0": middle_y - yx * middle_x - yy * middle_y,
    }


TRANSFORMS = {
    "color": Transform(_draw_color, _color),
    "crop": Transform(_draw_crop, _crop),
    "cutout": Transform(_draw_cutout, _cutout),
    "flip": Transform(_draw_flip, _flip),
    "scale": Transform(_draw_scale, _scale),
    "rotate": Transform(_draw_rotate, _rotate),
}
