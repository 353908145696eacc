"""DATM: trajectories of the difficulty that the number of images can bear, and learned soft labels."""

from dataclasses import dataclass

from ddfast.methods.trajectory.matching import TrajectoryMatching
from ddfast.methods.trajectory.settings import TrajectorySettings


@dataclass(frozen=True, kw_only=True)
class DATMSettings(TrajectorySettings):
    """Those of the family; min_start_epoch, current_max_start_epoch, max_start_epoch and expansion_end are T⁻, T,
    T⁺ and the iteration at which T has grown to T⁺; threshold is the gate."""

    init: str = "correct"
    labels: str = "soft"
    lr_label: float = 2.0


class DATM(TrajectoryMatching):
    """Difficulty-aligned trajectory matching (Guo et al. 2024, sections 3.3 and 3.4).

    Starts are drawn from [T⁻, T), where T grows to T⁺; images begin as real ones that an expert classifies correctly,
    labels as the experts' logits, learned beside them by SGD with momentum 0.9; the loss is the cross-entropy with
    their softmax, in the unroll and in the evaluation. An iteration whose loss is above the threshold updates nothing,
    and is counted. Experts: GSAM, as FTD's.
    """

    Settings = DATMSettings
