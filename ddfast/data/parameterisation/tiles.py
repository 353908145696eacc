"""Tiles: every stored image holds several small ones (IDC)."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn.functional import adaptive_avg_pool2d, interpolate, pad

from ddfast.data.parameterisation.base import Pixels
from ddfast.runtime.arguments import expect_whole


@dataclass(frozen=True)
class Tiles(Pixels):
    """Stored images are cut into factor × factor tiles, each of which is enlarged to the full size, bilinearly (IDC:
    Kim et al. 2022, section 3.2; factor 2, of ImageNet 3).

    Of sides that the factor does not divide the last tiles are filled up with 0, the data's mean.
    """

    name: ClassVar[str] = "tiles"
    by_rows: ClassVar[bool] = False
    factor: int = 2

    def __post_init__(self) -> None:
        expect_whole(factor=self.factor)

    @property
    def images_per_stored(self) -> int:
        """factor²."""
        return self.factor**2

    def _tile(self, sides: Sequence[int]) -> list[int]:
        return [-(-side // self.factor) for side in sides]

    def decode(self, parameters: Tensor, drawn: Tensor | None = None, others: Sequence[Tensor] = ()) -> Tensor:
        """The tiles of one stored image after another, row by row, enlarged."""
        f, (H, W) = self.factor, parameters.shape[2:]
        h, w = self._tile((H, W))
        padded = pad(parameters, (0, f * w - W, 0, f * h - H))  # [I, C, f h, f w]
        tiles = padded.unflatten(3, (f, w)).unflatten(2, (f, h)).permute(0, 2, 4, 1, 3, 5)  # [I, f, f, C, h, w]
        return interpolate(tiles.flatten(0, 2), size=(H, W), mode="bilinear", align_corners=False)

    def encode(self, images: Tensor, data: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """Stored images of tiles that are these images, made smaller by means over their pixels."""
        f, (H, W) = self.factor, images.shape[2:]
        h, w = self._tile((H, W))
        tiles = adaptive_avg_pool2d(images, (h, w)).unflatten(0, (-1, f, f))  # [I, f, f, C, h, w]
        stored = tiles.permute(0, 3, 1, 4, 2, 5).flatten(4, 5).flatten(2, 3)  # [I, C, f h, f w]
        return stored[:, :, :H, :W].contiguous(), {}

    def noise(
        self, count: int, size: tuple[int, int, int], data: Tensor, generator: torch.Generator
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Stored images of noise."""
        return torch.randn(count // self.images_per_stored, *size, generator=generator), {}

    def check(self, parameters: Tensor, others: Sequence[Tensor], count: int) -> None:
        """ValueError unless there is a label for every tile."""
        tiles = len(parameters) * self.images_per_stored
        if tiles != count:
            raise ValueError(f"labels: expected one for each of {tiles} tiles, got {count}")
