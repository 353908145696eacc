"""PP: parameters that are hard to match are left out of the distance."""

from dataclasses import dataclass
from typing import Annotated

import torch
from torch import Tensor

from ddfast.methods.trajectory.matching import TrajectoryMatching
from ddfast.methods.trajectory.settings import TrajectorySettings
from ddfast.runtime.options import Ge, Lt, Option


@dataclass(frozen=True, kw_only=True)
class PPSettings(TrajectorySettings):
    """Those of the family; pruning_threshold: ε."""

    pruning_threshold: Annotated[
        float, Ge(0), Lt(1), Option("Unroll", "Parameters with smaller ratios are left out of the distance.")
    ] = 0.1


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
