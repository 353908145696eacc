"""PAD: the parameters that are nearest already are left out of the distance."""

from dataclasses import dataclass
from typing import Annotated

import torch
from torch import Tensor

from ddfast.methods.trajectory.datm import DATM, DATMSettings
from ddfast.runtime.options import Ge, Lt, Option


@dataclass(frozen=True, kw_only=True)
class PADSettings(DATMSettings):
    """Those of DATM; drop_ratio: the share of parameters that is left out."""

    drop_ratio: Annotated[
        float, Ge(0), Lt(1), Option("Unroll", "The share of near parameters that is left out of the distance.")
    ] = 0.5


class PAD(DATM):
    """Prioritize alignment in dataset distillation (Li et al. 2024), its matching: DATM with a filtered distance.

    The drop_ratio of parameters with the smallest squared distances between student and target is left out of the
    distance and of its normalisation. The paper also chooses the experts' training images by difficulty as they train:
    that is not here.
    """

    Settings = PADSettings

    def compare(self, student: Tensor, target: Tensor, start: Tensor) -> Tensor:  # [S, P] each -> [S]
        """The losses over the parameters that are farthest apart."""
        dropped = int(self.settings.drop_ratio * student.shape[1])
        if dropped == 0:
            return super().compare(student, target, start)
        with torch.no_grad():
            squares = (student - target).square()
            kept = squares >= squares.sort(1).values[:, dropped, None]  # the smallest that stays
        return self.distance(student, target, start, kept.to(student.dtype))
