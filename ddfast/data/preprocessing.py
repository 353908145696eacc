"""What is done to images before a network sees them, recorded with every synthetic set."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ddfast.data.images import to_unit
from ddfast.data.pixels import as_value_range
from ddfast.data.zca import ZCA
from ddfast.runtime.arguments import is_number

RESIZES = ("stretch", "crop")
LEAST_STD, LARGEST_STATISTIC = 1e-6, 1e6  # of images in [0, 1]


@dataclass(frozen=True)
class Preprocessing:
    """Images in [0, 1] become (image − mean) / std per channel; or, with zca, whitened instead.

    `resize` says how images of another size were brought to theirs: stretch (aspect not kept) or crop (the short side
    resized, the middle kept); `value_range` which values of deep pictures were read as black and white.
    """

    mean: tuple[float, ...]  # [C]
    std: tuple[float, ...]  # [C]
    zca: ZCA | None = None
    resize: str = "stretch"
    value_range: tuple[float, float] | None = None  # what was read as 0 and 1, of pixels deeper than 8 bits

    def __post_init__(self) -> None:
        if self.resize not in RESIZES:
            raise ValueError(f"resize: expected one of {', '.join(RESIZES)}, got {self.resize!r}")
        if not all(abs(value) <= LARGEST_STATISTIC for value in self.mean):
            raise ValueError(f"mean: expected numbers up to {LARGEST_STATISTIC:g} in size, got {list(self.mean)}")
        if not all(LEAST_STD <= abs(value) <= LARGEST_STATISTIC for value in self.std):
            expected = f"numbers from {LEAST_STD:g} to {LARGEST_STATISTIC:g} in size"
            raise ValueError(f"std: expected {expected}, got {list(self.std)}")

    def apply(self, images: Tensor) -> Tensor:  # [N, C, H, W] in [0, 1], or uint8 of 0 to 255 -> preprocessed float32
        """Preprocess."""
        images = to_unit(images)
        if self.zca is not None:
            return self.zca.whiten(images)
        return (images - self._column(self.mean, images)) / self._column(self.std, images)

    def invert(self, images: Tensor) -> Tensor:  # [N, C, H, W] preprocessed -> in [0, 1], for viewing
        """Undo `apply`."""
        if self.zca is not None:
            return self.zca.unwhiten(images)
        return images * self._column(self.std, images) + self._column(self.mean, images)

    def pixels(self, images: Tensor) -> Tensor:  # [N, C, H, W] preprocessed -> uint8
        """`invert` as a picture file holds it: cut off at black and white, in 256 steps."""
        return (self.invert(images).clamp(0, 1) * 255).round().to(torch.uint8)

    @staticmethod
    def _column(values: tuple[float, ...], like: Tensor) -> Tensor:
        return like.new_tensor(values).view(1, -1, 1, 1)

    def matches(self, other: "Preprocessing") -> bool:
        """Whether both do the same, but for the rounding of a whitening that was fitted twice."""
        if self.zca is None or other.zca is None:
            return self == other
        same = (self.resize, self.value_range) == (other.resize, other.value_range)
        return same and self.zca.matches(other.zca)

    def difference(self, other: "Preprocessing") -> str:
        """What differs, in words: of this one first."""
        said = [preprocessing.describe() for preprocessing in (self, other)]
        pairs = {name: [_words(about.get(name)) for about in said] for name in (*said[0], "value_range")}
        if self.zca is not None and other.zca is not None:
            pairs["zca"] = [f"fitted on {zca.data} with eps {zca.eps:g}" for zca in (self.zca, other.zca)]
        return "; ".join(f"{name} {a} and {b}" for name, (a, b) in pairs.items() if a != b) or "zca"

    def describe(self) -> dict[str, Any]:
        """As JSON has it."""
        about = {
            "mean": list(self.mean),
            "std": list(self.std),
            "zca": None if self.zca is None else self.zca.describe(),
            "resize": self.resize,
        }
        return about if self.value_range is None else about | {"value_range": list(self.value_range)}

    @classmethod
    def described(cls, about: Mapping[str, Any]) -> "Preprocessing":
        """From `describe`. Errors: ValueError, KeyError or TypeError where it is something else."""
        zca = about.get("zca")
        if zca is not None:
            zca = ZCA(str(zca["data"]), _numbers([zca["eps"]])[0], str(zca["checksum"]), _numbers(zca["probe"]))
        mean, std = _numbers(about["mean"]), _numbers(about["std"])
        if len(mean) != len(std):
            raise ValueError(f"preprocessing: expected a mean and a std per channel, got {mean} and {std}")
        value_range = as_value_range(about.get("value_range"))
        return cls(mean, std, zca, about.get("resize", "stretch"), value_range)

    @classmethod
    def fitted(cls, images: Tensor, resize: str = "stretch") -> "Preprocessing":
        """The statistics per channel of training images [N, C, H, W], in [0, 1] or uint8."""
        sums, squares, count = 0, 0, 0
        for part in images.split(4096):
            part = to_unit(part).double()
            sums, squares = sums + part.sum((0, 2, 3)), squares + part.square().sum((0, 2, 3))
            count += part[:, 0].numel()
        mean = sums / count
        std = ((squares - count * mean.square()) / max(1, count - 1)).clamp_min(0).sqrt()
        if not (std >= LEAST_STD).all():
            raise ValueError(
                f"images: expected pixels that differ in every channel, got standard deviations {std.tolist()}"
            )
        return cls(tuple(mean.tolist()), tuple(std.tolist()), resize=resize)


def _words(value: Any) -> str:
    """A value of `describe`, in a sentence."""
    if isinstance(value, list):
        return f"({', '.join(f'{number:.6g}' for number in value)})"
    return "off" if value is None else "on" if isinstance(value, dict) else str(value)


def _numbers(values: Any) -> tuple[float, ...]:
    if not isinstance(values, list | tuple) or not all(is_number(v) and math.isfinite(v) for v in values):
        raise ValueError(f"preprocessing: expected finite numbers, got {str(values)[:100]}")
    return tuple(values)
