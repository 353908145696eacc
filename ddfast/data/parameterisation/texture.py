"""Textures: canvases of which every use sees a part."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from ddfast.data.parameterisation.base import Pixels
from ddfast.runtime.arguments import expect_whole


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


@dataclass(frozen=True)
class Texture(Pixels):
    """Canvases, of which every use sees a crop at a random place of the torus that they tile (Cazenavette et al. 2022,
    "Wearable ImageNet")."""

    name: ClassVar[str] = "texture"
    is_random: ClassVar[bool] = True
    canvas: int = 2

    def __post_init__(self) -> None:
        expect_whole(canvas=self.canvas)

    def draw(self, count: int, size: tuple[int, int], generator: torch.Generator) -> Tensor | None:
        """Shifts, int64 [count, 2]."""
        return draw_rolls(count, size, generator)

    def decode(self, parameters: Tensor, drawn: Tensor | None = None, others: Sequence[Tensor] = ()) -> Tensor:
        """The crops at these places."""
        H, W = parameters.shape[2:]
        return crop(parameters, drawn, self.image_size((H, W)))

    def image_size(self, size: tuple[int, ...]) -> tuple[int, int]:
        """A part of the canvas."""
        size = super().image_size(size)
        if any(side % self.canvas for side in size):
            raise ValueError(f"canvas: expected a divisor of both sides, {list(size)}, got {self.canvas}")
        H, W = (side // self.canvas for side in size)
        return H, W
