"""TESLA: an approximate meta-gradient, and labels from the target network."""

import copy
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn.utils import vector_to_parameters

from ddfast.engine.adjoints import Adjoint, DetachedUnroll
from ddfast.methods.base import Resources
from ddfast.methods.trajectory.matching import TrajectoryMatching
from ddfast.methods.trajectory.settings import TrajectorySettings

CHUNK = 256  # images that the target network sees at a time


@dataclass(frozen=True, kw_only=True)
class TESLASettings(TrajectorySettings):
    """Those of the family; labels may also be "target"."""

    LABELS: ClassVar[tuple[str, ...]] = ("hard", "soft", "target")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.labels == "target" and (self.segments > 1 or self.canvas > 1):
            got = f"segments {self.segments}, canvas {self.canvas}"
            raise ValueError(f"labels: those of the target network need segments 1 and canvas 1, got {got}")


class TESLA(TrajectoryMatching):
    """TESLA (Cui et al. 2023, section 3.2, eq. 6), which drops the Hessians from the meta-gradient: approximate.

    Against the exact gradient of the images on CIFAR-10, ConvNet 128×3: cosine 0.94 after 10 steps and 0.82 to 0.94
    after 50, and the gradient of the learning rate 1.8 to 3.2 times too large (docs/methods.md). It is exact for one
    step. ddfast's exact gradient needs no more memory and a fifth more time: this method is for
    reproducing its results. The published code halves the image gradient by mistake; here the factor is right, and the
    presets halve its lr_img instead.

    labels="target": the target network's own outputs on the images, computed anew in every iteration (section 3.3); the
    set keeps the last ones as label logits.
    """

    Settings = TESLASettings
    gradient = (
        "approximate: cosine with the exact one 0.94 after 10 steps, 0.82 to 0.94 after 50; "
        "twice that of the published code, so lr_img is half of the published one"
    )

    def __init__(self, settings: Any, synthetic: Any, resources: Resources) -> None:
        super().__init__(settings, synthetic, resources)
        self._teacher = copy.deepcopy(resources.network).eval()
        for module in self._teacher.modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm):
                module.train()  # by the statistics of the images, as the student's

    def adjoint_of(self, plan: Any) -> Adjoint:
        """TESLA's, without Hessians."""
        return DetachedUnroll(plan=plan)

    def relabelled(self, labels: Tensor, images: Tensor, target: Tensor) -> Tensor | None:  # like labels
        """The logits of the target network."""
        if self.settings.labels != "target":
            return None
        with torch.no_grad():
            vector_to_parameters(target[0], self._teacher.parameters())
            return torch.cat([self._teacher(part) for part in images.split(CHUNK)]).to(labels.dtype)
