"""Textures: every use of a canvas is a crop at a random place of the torus that it tiles (Cazenavette et al. 2022)."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from ddfast.data.augment import Draws


def draw_rolls(
    count: int,  # B
    canvas_size: tuple[int, int],  # (cH, cW)
    generator: torch.Generator,
) -> Tensor:  # int64 [B, 2]
    """Shifts down and right, uniform over the canvas, drawn on the CPU."""
    return torch.stack([torch.randint(side, (count,), generator=generator) for side in canvas_size], 1)


def crop(
    canvases: Tensor,  # [B, C, cH, cW]
    rolls: Tensor,  # int64 [B, 2]
    size: tuple[int, int],  # (H, W)
) -> Tensor:  # [B, C, H, W]
    """Roll each canvas by its shifts, as torch.roll does, and take the top-left crop.

    The result at (y, x) is the canvas at (y − down mod cH, x − right mod cW).
    Differentiable in the canvases; the backward has the same bits every time, for no pixel is taken twice. Shapes do
    not depend on the rolls, and nothing waits for the device. Errors: ValueError for shapes that do not fit together.
    """
    if canvases.dim() != 4:
        raise ValueError(f"canvases: expected [B, C, cH, cW], got {list(canvases.shape)}")
    B, C, *canvas_size = canvases.shape
    if rolls.shape != (B, 2) or rolls.dtype != torch.int64:
        raise ValueError(f"rolls: expected int64 [{B}, 2], got {rolls.dtype} {list(rolls.shape)}")
    if not all(1 <= side <= most for side, most in zip(size, canvas_size, strict=True)):
        raise ValueError(f"size: expected 1 to the sides of the canvas, {canvas_size}, got {list(size)}")
    rows, columns = (
        (torch.arange(side, device=rolls.device) - shift[:, None]) % most  # [B, H], [B, W]
        for side, shift, most in zip(size, rolls.unbind(1), canvas_size, strict=True)
    )
    pixels = rows[:, :, None] * canvas_size[1] + columns[:, None, :]  # [B, H, W]
    return canvases.flatten(2).gather(2, pixels.flatten(1)[:, None].expand(-1, C, -1)).unflatten(2, tuple(size))


def random_crops(
    canvases: Tensor,  # [B, C, cH, cW]
    size: tuple[int, int],  # (H, W)
    generator: torch.Generator,
) -> Tensor:  # [B, C, H, W]
    """Crops at freshly drawn places; canvases of just this size are images, and come back as they are, undrawn."""
    if tuple(canvases.shape[2:]) == tuple(size):
        return canvases
    rolls = draw_rolls(len(canvases), tuple(canvases.shape[2:]), generator)
    return crop(canvases, rolls.to(canvases.device), size)


@dataclass(frozen=True)
class Crops:
    """The crops of all inner steps, and the augmentation after them: what ddfast.unroll takes as `augment`."""

    rolls: Tensor  # int64 [T, B, 2]
    size: tuple[int, int]  # (H, W)
    draws: Draws | None = None
    repeats: ClassVar[bool] = True  # drawn beforehand: a backward need not look

    def __call__(self, canvases: Tensor, n: int) -> Tensor:  # [B, C, cH, cW] -> [B, C, H, W]
        """Crop the minibatch of step n, then augment it."""
        images = crop(canvases, self.rolls[n], self.size)
        return images if self.draws is None else self.draws(images, n)
