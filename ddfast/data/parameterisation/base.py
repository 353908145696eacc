"""How the tensors that are learned become the images that networks see; the pixels themselves."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from ddfast.data.augment import Draws


@dataclass(frozen=True)
class Pixels:
    """The learned tensors are the images. The base of all parameterisations.

    A parameterisation says how learned tensors, kept as the images of a SyntheticSet and its `others`, are decoded to
    what networks see, J images. It is saved with the set; methods and the evaluation see images through it only.
    """

    name: ClassVar[str] = "pixels"
    is_random: ClassVar[bool] = False  # whether every use sees other images, by numbers that `draw` draws
    canvas: ClassVar[int] = 1  # the side of a learned image over the side of what networks see
    others: ClassVar[tuple[str, ...]] = ()  # the tensors beside the images: floating point ones are learned, too
    axes: ClassVar[int] = 4  # of the images that are learned
    by_rows: ClassVar[bool] = True  # image i that networks see is decoded from row i of the images

    @property
    def images_per_stored(self) -> int:
        """How many images networks see for every one that takes the same storage as pixels."""
        return 1

    def draw(self, count: int, size: tuple[int, int], generator: torch.Generator) -> Tensor | None:
        """The random numbers [count, …] of one use of as many learned images of these sides (H, W); None for none."""
        return None

    def decode(
        self,
        parameters: Tensor,  # the set's images: [J, C, H, W], or what the parameterisation learns in their place
        drawn: Tensor | None = None,  # what `draw` gave for this use
        others: Sequence[Tensor] = (),  # as `self.others` names them
    ) -> Tensor:  # [J, C, H, W]
        """What networks see of what is learned, differentiable in it."""
        return parameters

    def encode(
        self,
        images: Tensor,  # [J, C, H, W], class by class
        data: Tensor,  # [N, C, H, W], training images, for what is common to all
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """What is learned where it begins near these images: the set's images, and its `others`."""
        return images, {}

    def noise(
        self, count: int, size: tuple[int, int, int], data: Tensor, generator: torch.Generator
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """As `encode`, for as many images of noise of sizes (C, H, W)."""
        return self.encode(torch.randn(count, *size, generator=generator), data)

    def image_size(self, size: tuple[int, ...]) -> tuple[int, int]:
        """(H, W) of what networks see of learned images of these sides; ValueError where it cannot be."""
        H, W = size
        return H, W

    def check(self, parameters: Tensor, others: Sequence[Tensor], count: int) -> None:
        """ValueError unless these decode to `count` images."""
        if len(parameters) != count:
            raise ValueError(f"images: expected as many as labels, {count}, got {len(parameters)}")

    def see(self, parameters: Tensor, generator: torch.Generator, others: Sequence[Tensor] = ()) -> Tensor:
        """One use, [J, C, H, W], with numbers that are drawn for it."""
        if not self.is_random:
            return self.decode(parameters, None, others)
        H, W = parameters.shape[2:]
        drawn = self.draw(len(parameters), (H, W), generator)
        return self.decode(parameters, drawn.to(parameters.device), others)

    def describe(self) -> dict[str, Any]:
        """As JSON holds it; `described` reads it."""
        return {"name": self.name, **asdict(self)}


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
