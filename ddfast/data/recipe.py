"""A recipe: the very steps that a synthetic set was learned for, where training on it otherwise is not meant."""

from dataclasses import dataclass

import torch
from torch import Tensor

PREFIX = "recipe."


@dataclass(frozen=True)
class Recipe:
    """Steps of plain gradient descent (DD: Wang et al. 2018)."""

    steps: Tensor  # int64 [T, B]: the images of each
    rates: Tensor  # [T]
    start: Tensor | None = None  # [P], the parameters that they begin with; None: any network's own first ones

    def check(self, count: int) -> None:
        """ValueError for what cannot be followed on so many images."""
        if self.steps.dtype != torch.int64 or self.steps.dim() != 2 or self.steps.numel() == 0:
            raise ValueError(f"recipe: expected steps int64 [T, B], got {self.steps.dtype} {list(self.steps.shape)}")
        if not 0 <= int(self.steps.min()) <= int(self.steps.max()) < count:
            raise ValueError(f"recipe: expected steps with images 0 to {count - 1}, got {int(self.steps.max())}")
        if self.rates.shape != self.steps.shape[:1] or not self.rates.isfinite().all():
            raise ValueError(f"recipe: expected a finite rate for each of {len(self.steps)} steps")
        if self.start is not None and (self.start.dim() != 1 or not self.start.isfinite().all()):
            raise ValueError(f"recipe: expected a start [P] of finite numbers, got {list(self.start.shape)}")

    def tensors(self) -> dict[str, Tensor]:
        """What a file holds."""
        held = {"steps": self.steps, "rates": self.rates} | ({} if self.start is None else {"start": self.start})
        return {PREFIX + name: tensor for name, tensor in held.items()}

    @classmethod
    def of(cls, tensors: dict[str, Tensor]) -> "Recipe | None":
        """That of a file's tensors; None where it has none."""
        held = {name.removeprefix(PREFIX): value for name, value in tensors.items() if name.startswith(PREFIX)}
        return cls(held["steps"], held["rates"], held.get("start")) if held else None
