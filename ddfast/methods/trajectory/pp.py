"""PP: parameters that are hard to match are left out of the distance."""

from dataclasses import dataclass

import torch
from torch import Tensor

from ddfast.methods.trajectory.matching import TrajectoryMatching
from ddfast.methods.trajectory.settings import MatchingSettings


@dataclass(frozen=True)
class PPSettings(MatchingSettings):
    """Those of the family; pruning_threshold: ε."""

    pruning_threshold: float = 0.1

    def __post_init__(self):
        super().__post_init__()
        if not 0 <= self.pruning_threshold < 1:
            raise ValueError(f"pruning_threshold: expected 0 to below 1, got {self.pruning_threshold}")


class PP(TrajectoryMatching):
    """Distillation with parameter pruning (Li et al. 2023, "Dataset distillation using parameter pruning").

    Of student θ and target θ*, elements with min(θ / θ*, θ* / θ) ≤ ε count neither in the distance nor in its
    normalisation.
    """

    Settings = PPSettings

    def compare(self, student: Tensor, target: Tensor, start: Tensor) -> Tensor:  # [S, P] each -> [S]
        """The losses over what is not pruned."""
        with torch.no_grad():
            a, b = student.abs(), target.abs()
            kept = (student * target > 0) & (
                torch.minimum(a, b) > self.settings.pruning_threshold * torch.maximum(a, b)
            )
        return self.distance(student, target, start, kept.to(student.dtype))
