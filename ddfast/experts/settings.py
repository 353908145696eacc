"""How experts are trained."""

import math
from dataclasses import dataclass

from ddfast.data import augmentation
from ddfast.engine.students import GSAM
from ddfast.experts.curriculum import CURRICULA
from ddfast.runtime.arguments import expect_one_of, expect_whole

OPTIMIZERS = ("sgd", "gsam")
SCHEDULES = ("constant", "cosine")


@dataclass(frozen=True)
class ExpertTraining:
    """How experts are trained."""

    lr_teacher: float
    mom: float
    l2: float
    batch_train: int
    dsa_strategy: str
    optimizer: str = "sgd"
    rho: float = 0.01
    alpha: float = 1.0
    schedule: str = "constant"
    curriculum: str = "none"

    def __post_init__(self) -> None:
        expect_whole(batch_train=self.batch_train)
        if not 0 < self.lr_teacher < float("inf"):
            raise ValueError(f"train_lr: expected a positive number, got {self.lr_teacher}")
        if not 0 <= self.mom < 1:
            raise ValueError(f"mom: expected 0 to below 1, got {self.mom}")
        if not 0 <= self.l2 < float("inf"):
            raise ValueError(f"l2: expected at least 0, got {self.l2}")
        augmentation(self.dsa_strategy)  # refuses an unknown one
        expect_one_of("optimizer", self.optimizer, OPTIMIZERS)
        expect_one_of("schedule", self.schedule, SCHEDULES)
        expect_one_of("curriculum", self.curriculum, CURRICULA)
        GSAM(self.rho, self.alpha)  # refuses impossible ones

    @property
    def sharpness(self) -> GSAM | None:
        """What Training takes."""
        return GSAM(self.rho, self.alpha) if self.optimizer == "gsam" else None

    def lr(self, epoch: int, epochs: int) -> float:
        """The rate in an epoch, counted from 0."""
        if self.schedule == "constant":
            return self.lr_teacher
        return self.lr_teacher / 2 * (1 + math.cos(math.pi * epoch / epochs))

    def settings(self) -> dict[str, str | float | int]:
        """What a store records. Of what plain SGD does not have nothing, so that stores from before it stay valid."""
        unsaid = set() if self.optimizer == "gsam" else {"optimizer", "rho", "alpha"}
        unsaid |= {"schedule"} if self.schedule == "constant" else set()
        unsaid |= {"curriculum"} if self.curriculum == "none" else set()
        return {name: value for name, value in vars(self).items() if name not in unsaid}
