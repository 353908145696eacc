"""Frequencies: images of which only the strongest frequencies are kept (FreD)."""

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from ddfast.data.parameterisation.base import Pixels
from ddfast.runtime.arguments import expect_whole


@functools.cache
def dct(side: int) -> Tensor:  # float64 [side, side]
    """The orthonormal discrete cosine transform (DCT-II) of a vector, as a matrix."""
    n = torch.arange(side, dtype=torch.float64)
    matrix = torch.cos(math.pi / side * (n + 0.5) * n[:, None]) * math.sqrt(2 / side)
    matrix[0] /= math.sqrt(2)
    return matrix


def _both(images: Tensor, rows: Tensor, columns: Tensor) -> Tensor:  # [J, C, H, W], [H, H], [W, W] -> [J, C, H, W]
    return rows.to(images) @ images @ columns.to(images).T


@dataclass(frozen=True)
class Frequencies(Pixels):
    """Of the cosine transform of every image `count` coefficients of each channel are learned, the others are 0 (FreD:
    Shin et al. 2023, section 3): those whose variance over the training images is largest, the same for all classes.

    The set's images are the coefficients, [J, C, M]; its frequencies, int32 [C, M], say where they are, as v W + u.
    """

    name: ClassVar[str] = "frequencies"
    others: ClassVar[tuple[str, ...]] = ("frequencies",)
    by_rows: ClassVar[bool] = False
    axes: ClassVar[int] = 3
    factor: int = 2
    count: int = 256  # M
    size: tuple[int, int] = (32, 32)  # (H, W) of the images

    def __post_init__(self) -> None:
        object.__setattr__(self, "size", tuple(self.size))
        expect_whole(factor=self.factor, count=self.count)
        if self.count > math.prod(self.size):
            raise ValueError(f"count: expected up to {math.prod(self.size)} frequencies, got {self.count}")

    @classmethod
    def within(cls, factor: int, size: tuple[int, int, int], stored: int) -> "Frequencies":
        """As many frequencies as take, with their places, the storage of so many images of sizes (C, H, W)."""
        _, H, W = size
        return cls(factor, max(1, stored * H * W // (stored * factor**2 + 1)), (H, W))

    @property
    def images_per_stored(self) -> int:
        """factor²."""
        return self.factor**2

    def decode(self, parameters: Tensor, drawn: Tensor | None = None, others: Sequence[Tensor] = ()) -> Tensor:
        """The images of these coefficients."""
        (frequencies,) = others
        spectrum = parameters.new_zeros(*parameters.shape[:2], math.prod(self.size))
        places = frequencies.long()[None].expand(len(parameters), -1, -1)
        spectrum = spectrum.scatter(2, places, parameters).unflatten(2, self.size)
        return _both(spectrum, *(dct(side).T for side in self.size))

    def encode(self, images: Tensor, data: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """The coefficients of these images, at the frequencies of the largest variance over the training images."""
        matrices = [dct(side) for side in self.size]
        variance = _both(data, *matrices).var(0, correction=0).flatten(1)  # [C, H W]
        chosen = variance.sort(dim=1, descending=True, stable=True).indices[:, : self.count].sort(1).values
        spectrum = _both(images, *matrices).flatten(2)
        coefficients = spectrum.gather(2, chosen[None].expand(len(images), -1, -1))
        return coefficients, {"frequencies": chosen.int()}

    def image_size(self, size: tuple[int, ...]) -> tuple[int, int]:
        """Those of the images."""
        return self.size

    def check(self, parameters: Tensor, others: Sequence[Tensor], count: int) -> None:
        """ValueError unless there is a place for every coefficient."""
        super().check(parameters, others, count)
        (places,) = others
        expected = [parameters.shape[1], self.count]
        if list(parameters.shape[1:]) != expected or list(places.shape) != expected:
            raise ValueError(
                f"frequencies: expected {expected} as the coefficients of an image, got {list(places.shape)} and "
                f"{list(parameters.shape[1:])}"
            )
        if places.is_floating_point() or not 0 <= int(places.min()) <= int(places.max()) < math.prod(self.size):
            raise ValueError(f"frequencies: expected whole numbers from 0 to {math.prod(self.size) - 1}")
