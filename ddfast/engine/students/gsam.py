"""GSAM: a direction of descent that looks for flat minima, from two gradients."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from ddfast.runtime.arguments import expect_positive, is_number

LARGEST_RHO = 1e3  # of parameters of the size of 1; far beyond it they overflow the norms
EPS = 1e-12  # beside the norm that the ascent divides by


@dataclass(frozen=True)
class GSAM:
    """Gap-guided sharpness-aware minimisation (Zhuang et al. 2022), its ascent adaptive as FTD has it (Du et al. 2023).

    rho: length of the ascent. alpha: how much of what lowers the loss at w alone is taken out; 0 is (adaptive) SAM.

    Errors: ValueError unless rho is positive, up to 1000, and alpha at least 0.
    """

    rho: float
    alpha: float

    def __post_init__(self) -> None:
        expect_positive("rho", self.rho)
        if self.rho > LARGEST_RHO:
            raise ValueError(f"rho: expected a positive number up to {LARGEST_RHO:g}, got {self.rho!r}")
        if not (is_number(self.alpha) and 0 <= self.alpha < float("inf")):
            raise ValueError(f"alpha: expected at least 0, got {self.alpha!r}")

    def direction(
        self,
        gradient: Callable[[Tensor], tuple[Tensor, Tensor]],  # at [S, P]: losses [S] and g [S, P]
        parameters: Tensor,  # w [S, P]
    ) -> tuple[Tensor, Tensor]:  # losses at w [S], direction [S, P]
        """What SGD at w steps along, row by row, by two calls of `gradient`: at w, then at w + e.

            e = ρ w² ⊙ g / (‖|w| ⊙ g‖ + 1e-12),   g' = ∇L(w + e),   v = g − (⟨g, g'⟩ / ‖g'‖²) g',   g' − α v

        Where g' is 0 there is no part of g beside it, and v is 0.
        """
        losses, g = gradient(parameters)
        length = (parameters.abs() * g).norm(dim=1, keepdim=True) + EPS
        _, ascended = gradient(parameters + self.rho * parameters.square() * g / length)
        square = ascended.square().sum(1, keepdim=True)
        along = (g * ascended).sum(1, keepdim=True) / square
        return losses, ascended - self.alpha * torch.where(square > 0, g - along * ascended, 0)
