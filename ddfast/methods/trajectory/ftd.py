"""FTD: flat trajectories, and an average of the images."""

from dataclasses import dataclass

from ddfast.methods.trajectory.matching import TrajectoryMatching
from ddfast.methods.trajectory.settings import TrajectorySettings


@dataclass(frozen=True, kw_only=True)
class FTDSettings(TrajectorySettings):
    """Those of the family; ema_decay is β of the average."""

    ema_decay: float | None = 0.999


class FTD(TrajectoryMatching):
    """Flat trajectory distillation (Du et al. 2023, "Minimizing the accumulated trajectory error").

    MTT with experts of flat minima, which students stray from less (train_experts(optimizer="gsam", rho, alpha), which
    the presets ask for), and with ema ← β ema + (1 − β) images after every iteration. Both sets are kept, and each is
    evaluated on networks trained from scratch (the published code evaluates the average on networks that were trained
    on the images).

    Its two comparisons: "MTT + robust learning" is method="mtt" with start_noise, "MTT + flat minimum" sam_rho of the
    evaluation.
    """

    Settings = FTDSettings
