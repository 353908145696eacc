"""The simplified variant of trajectory matching, to show what it lacks."""

from dataclasses import dataclass
from typing import ClassVar

from ddfast.methods.trajectory.matching import TrajectoryMatching
from ddfast.methods.trajectory.settings import TrajectorySettings


@dataclass(frozen=True, kw_only=True)
class SimplifiedSettings(TrajectorySettings):
    """Those of the family, with the variant's choices."""

    init: str = "first"
    img_optimizer: str = "adam"
    syn_momentum: float = 0.5
    starts: str = "in_turn"
    min_start_epoch: int = 1
    distance: str = "unnormalised"
    dsa_strategy: str = "none"

    LABELS: ClassVar[tuple[str, ...]] = ("hard",)


class Simplified(TrajectoryMatching):
    """A student project's trajectory matching, which reported 10.28% on CIFAR-10 with 10 images per class: chance.

    One expert (a batch-norm network, momentum and a cosine schedule) whose snapshots are visited in turn, one epoch
    ahead; 10 full-batch steps at a fixed rate; no augmentation; the plain squared distance; Adam on the images. Not for
    use: docs/simplified.md shows why it fails and what repairs it. Every choice is an option of the family.
    """

    Settings = SimplifiedSettings
