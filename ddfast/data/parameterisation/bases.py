"""Bases: images that share what they are made of (LinBa)."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn.functional import adaptive_avg_pool2d, interpolate

from ddfast.data.parameterisation.base import Pixels
from ddfast.runtime.arguments import expect_whole


@dataclass(frozen=True)
class Bases(Pixels):
    """Every image is a weighted sum of bases, small images that all classes share, enlarged to the full size,
    bilinearly (LinBa: Deng & Russakovsky 2022, "Remember the past", section 3.1; there, the weights are addresses).

    Both are learned. The set's images are the bases, [m, C, h, w] with sides of 1/factor; its weights are [J, m].
    """

    name: ClassVar[str] = "bases"
    others: ClassVar[tuple[str, ...]] = ("weights",)
    by_rows: ClassVar[bool] = False
    factor: int = 2
    count: int = 16  # m
    size: tuple[int, int] = (32, 32)  # (H, W) of the images

    def __post_init__(self) -> None:
        expect_whole(factor=self.factor, count=self.count)
        object.__setattr__(self, "size", tuple(self.size))

    @classmethod
    def within(cls, factor: int, size: tuple[int, int, int], stored: int, count: int | None = None) -> "Bases":
        """As many bases as take, with the weights, the storage of so many images of sizes (C, H, W); or `count`."""
        C, H, W = size
        one = C * -(-H // factor) * -(-W // factor) + stored * factor**2
        return cls(factor, max(1, stored * C * H * W // one) if count is None else count, (H, W))

    @property
    def images_per_stored(self) -> int:
        """factor²."""
        return self.factor**2

    def _small(self) -> tuple[int, int]:
        return -(-self.size[0] // self.factor), -(-self.size[1] // self.factor)

    def decode(self, parameters: Tensor, drawn: Tensor | None = None, others: Sequence[Tensor] = ()) -> Tensor:
        """Weighted sums of the bases, enlarged."""
        (weights,) = others
        images = (weights @ parameters.flatten(1)).unflatten(1, parameters.shape[1:])
        return interpolate(images, size=self.size, mode="bilinear", align_corners=False)

    def encode(self, images: Tensor, data: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """The bases and weights with the least squared error of these images, made smaller; the bases of their size."""
        small = adaptive_avg_pool2d(images, self._small())
        flat = small.flatten(1).double()
        if self.count > min(flat.shape):
            raise ValueError(f"bases: expected up to {min(flat.shape)} for {len(images)} images, got {self.count}")
        left, strength, right = torch.linalg.svd(flat, full_matrices=False)
        scale = flat.square().mean().sqrt() * flat.shape[1] ** 0.5
        bases = (right[: self.count] * scale).to(images.dtype).unflatten(1, small.shape[1:])
        weights = left[:, : self.count] * strength[: self.count] / scale
        return bases.contiguous(), {"weights": weights.to(images.dtype).contiguous()}

    def noise(
        self, count: int, size: tuple[int, int, int], data: Tensor, generator: torch.Generator
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Bases of noise, and weights that make images of noise of them."""
        bases = torch.randn(self.count, size[0], *self._small(), generator=generator)
        return bases, {"weights": torch.randn(count, self.count, generator=generator) / self.count**0.5}

    def image_size(self, size: tuple[int, ...]) -> tuple[int, int]:
        """Those of the images."""
        if size != self._small():
            raise ValueError(f"images: expected bases of sides {self._small()}, got {size}")
        return self.size

    def check(self, parameters: Tensor, others: Sequence[Tensor], count: int) -> None:
        """ValueError unless there are weights of every image and base."""
        (weights,) = others
        if len(parameters) != self.count or weights.shape != (count, self.count):
            raise ValueError(
                f"weights: expected [{count}, {self.count}] for as many labels and bases, got {list(weights.shape)} "
                f"and {len(parameters)} bases"
            )
