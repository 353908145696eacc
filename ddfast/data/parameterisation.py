"""How the tensors that are learned become the images that networks see: pixels, and textures."""

from dataclasses import asdict, dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from ddfast.data.augment import Draws
from ddfast.runtime.arguments import expect_one_of, expect_whole


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
class Pixels:
    """The learned tensors are the images. The base of all parameterisations.

    A parameterisation says how learned tensors [I, C, …], kept as the images of a SyntheticSet, are decoded to what
    networks see. It is saved with the set; methods and the evaluation see images through `decode` only.
    """

    name: ClassVar[str] = "pixels"
    is_random: ClassVar[bool] = False  # whether every use sees other images, by numbers that `draw` draws
    canvas: ClassVar[int] = 1  # the side of a learned image over the side of what networks see

    def draw(self, count: int, size: tuple[int, int], generator: torch.Generator) -> Tensor | None:
        """The random numbers [count, …] of one use of as many learned images of these sides (H, W); None for none."""
        return None

    def decode(self, parameters: Tensor, drawn: Tensor | None = None) -> Tensor:  # [I, C, …] -> [I, C, H, W]
        """What networks see of learned images, differentiable in them; `drawn`, what `draw` gave for this use."""
        return parameters

    def image_size(self, size: tuple[int, int]) -> tuple[int, int]:
        """(H, W) of what networks see of learned images of these sides; ValueError where it cannot be."""
        return size

    def see(self, parameters: Tensor, generator: torch.Generator) -> Tensor:  # [I, C, …] -> [I, C, H, W]
        """One use, with numbers that are drawn for it."""
        H, W = parameters.shape[2:]
        drawn = self.draw(len(parameters), (H, W), generator)
        return self.decode(parameters, None if drawn is None else drawn.to(parameters.device))

    def describe(self) -> dict[str, Any]:
        """As JSON holds it; `described` reads it."""
        return {"name": self.name, **asdict(self)}


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

    def decode(self, parameters: Tensor, drawn: Tensor | None = None) -> Tensor:
        """The crops at these places."""
        H, W = parameters.shape[2:]
        return crop(parameters, drawn, self.image_size((H, W)))

    def image_size(self, size: tuple[int, int]) -> tuple[int, int]:
        """A part of the canvas."""
        if any(side % self.canvas for side in size):
            raise ValueError(f"canvas: expected a divisor of both sides, {list(size)}, got {self.canvas}")
        H, W = (side // self.canvas for side in size)
        return H, W


PIXELS = Pixels()
PARAMETERISATIONS: dict[str, type[Pixels]] = {kind.name: kind for kind in (Pixels, Texture)}


def described(about: dict[str, Any]) -> Pixels:
    """The parameterisation that `describe` wrote; ValueError for an unknown one."""
    about = dict(about)
    name = about.pop("name", None)
    expect_one_of("parameterisation", name, PARAMETERISATIONS)
    return PARAMETERISATIONS[name](**about)


def with_canvas(canvas: int) -> Pixels:
    """Pixels, or for a canvas of more than 1 textures."""
    expect_whole(canvas=canvas)
    return Texture(canvas) if canvas > 1 else PIXELS


@dataclass(frozen=True)
class Seen:
    """The images of all inner steps, decoded at their random places, and the augmentation after that: what
    ddfast.unroll takes as `augment`."""

    parameterisation: Pixels
    drawn: Tensor  # [T, B, …]
    draws: Draws | None = None
    repeats: ClassVar[bool] = True  # drawn beforehand: a backward need not look

    def __call__(self, parameters: Tensor, n: int) -> Tensor:  # [B, C, …] -> [B, C, H, W]
        """Decode the minibatch of step n, then augment it."""
        images = self.parameterisation.decode(parameters, self.drawn[n])
        return images if self.draws is None else self.draws(images, n)
