"""SelMatch: begin with real images of a difficulty that the number of images can bear, and distil a part of them."""

from dataclasses import dataclass
from typing import Annotated, Any

import torch

from ddfast.methods.base import Resources
from ddfast.methods.trajectory.matching import TrajectoryMatching
from ddfast.methods.trajectory.settings import TrajectorySettings
from ddfast.runtime.options import Gt, Le, Option


@dataclass(frozen=True, kw_only=True)
class SelMatchSettings(TrajectorySettings):
    """Those of the family, and what is learned of the set."""

    init: str = "window"
    distilled_share: Annotated[
        float, Gt(0), Le(1), Option("Outer step", "The share of each class's images that is learned; others stay real.")
    ] = 0.6

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.distilled_share < 1 and self.parameterisation == "bases":
            raise ValueError("distilled_share: all images share their bases; expected 1 with bases")

    def on_device(self, count: int) -> int:
        """All: each is learned, or is not."""
        return count


class SelMatch(TrajectoryMatching):
    """Selection-based initialisation and partial updates (SelMatch: Lee & Chung 2024), for many images per class.

    The set begins as a window of each class's real images in the order of their difficulty (EL2N), hardest first, after
    the `window_start` hardest. Of these, `distilled_share` are learned as in MTT, the first of each class in an order
    that is drawn; the others stay as they are, and take part in every unroll.
    """

    Settings, masks = SelMatchSettings, True

    def __init__(self, settings: SelMatchSettings, synthetic: Any, resources: Resources) -> None:
        super().__init__(settings, synthetic, resources)
        classes = synthetic.classes
        learned = torch.zeros(len(classes))
        for k in classes.unique():
            members = (classes == k).nonzero()[:, 0]
            learned[members[: max(1, round(settings.distilled_share * len(members)))]] = 1
        stored = len(synthetic.images)
        if stored != len(learned):  # a stored image is learned where any of its own is
            learned = learned.view(stored, -1).amax(1)
        self.mask = learned.view(-1, *[1] * (synthetic.images.dim() - 1)).to(self.device)
