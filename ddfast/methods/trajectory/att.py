"""ATT: the step of the unroll that is matched is chosen anew in every iteration."""

from typing import Any

import torch
from torch import Tensor

from ddfast.engine.adjoints import Adjoint, CheckpointedUnroll
from ddfast.methods.trajectory.matching import TrajectoryMatching


class ATT(TrajectoryMatching):
    """Automatic training trajectories (Liu et al. 2024): match where the student comes nearest.

    The student is unrolled for syn_steps; of its states after 1 to syn_steps steps that of least L1 distance to the
    target is taken, by each segment for itself, and matched as MTT does. The published
    settings average the images as FTD does (ema_decay).
    """

    compares_states = True

    def adjoint_of(self, plan: Any) -> Adjoint:
        """The backward begins at the chosen step."""
        return CheckpointedUnroll(plan=plan, from_last_used=True)

    def compare(self, student: Tensor, target: Tensor, start: Tensor) -> Tensor:  # [T + 1, S, P], [S, P] twice -> [S]
        """The loss at the nearest state."""
        with torch.no_grad():
            nearest = torch.stack([(state - target).abs().sum(1) for state in student[1:]]).argmin(0) + 1  # [S]
        self._nearest = nearest
        rows = torch.arange(len(target), device=target.device)
        return super().compare(student[nearest, rows], target, start)

    def measured(self) -> list[Tensor]:
        """The chosen steps."""
        return [self._nearest]

    def record(self, measured: list[float]) -> dict[str, Any]:
        """They are in the record, those of all processes."""
        steps = [int(step) for step in measured]
        if self.settings.segments > 1:
            steps = [step for part in self.ranks.gather(steps) for step in part]
        return {"matched_step": steps if len(steps) > 1 else steps[0]}
