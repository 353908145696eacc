"""EDF: PAD's filtered distance, and stronger updates where a judge sees the class."""

import copy
from dataclasses import dataclass
from typing import Annotated, Any

import torch
from torch import Tensor, nn

from ddfast.data import Dataset
from ddfast.experts import Judges
from ddfast.experts.grad_cam import grad_cam
from ddfast.methods.base import Resources
from ddfast.methods.learned_set import IMAGES
from ddfast.methods.settings import SetSettings
from ddfast.methods.trajectory.pad import PAD, PADSettings
from ddfast.runtime.options import AtLeast1, NotNegative, Option


@dataclass(frozen=True, kw_only=True)
class EDFSettings(PADSettings):
    """Those of PAD, and of the masks."""

    drop_ratio: float = 0.25
    cam_interval: Annotated[AtLeast1, Option("Outer step", "Iterations between two looks of the judge.")] = 50
    cam_strength: Annotated[
        NotNegative, Option("Outer step", "By how much discriminative areas are updated more; 0: no masks.")
    ] = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.cam_strength and (self.canvas > 1 or self.parameterisation != "pixels"):
            raise ValueError("cam_strength: areas are those of pixels; expected 0 with canvases or a parameterisation")

    def on_device(self, count: int) -> int:
        """All: each has its mask."""
        return count


class EDF(PAD):
    """Emphasizing discriminative features (Wang et al. 2025).

    Every `cam_interval` iterations an expert's last snapshot judges the images: Smooth Grad-CAM++ of their classes. The
    images' gradient is multiplied by 1 where a map is below its own mean, elsewhere by the map plus `cam_strength`.
    (The paper's judge is a ResNet-18 trained on ImageNet; here it is the first expert, so that any data have one.)
    What is nearest already is left out of the distance as in PAD ("common pattern dropout").
    """

    Settings, masks = EDFSettings, True

    def __init__(self, settings: EDFSettings, synthetic: Any, resources: Resources) -> None:
        super().__init__(settings, synthetic, resources)
        self._done = 0
        self._judges: Judges | None = None

    @classmethod
    def check(cls, settings: SetSettings, data: Dataset, network: nn.Module) -> None:
        """ValueError for a network that shows no maps."""
        if settings.cam_strength:
            image = torch.zeros(1, data.channels, *data.image_size)
            grad_cam(network, image, torch.zeros(1, dtype=torch.int64), torch.Generator())

    def own_state(self) -> dict[str, Any]:
        """The masks, and how many iterations there were."""
        return super().own_state() | {"done": self._done, "mask": self.mask}

    def load_own_state(self, state: dict[str, Any]) -> None:
        """Go on from there."""
        super().load_own_state(state)
        self._done = state["done"]
        self.mask = None if state["mask"] is None else state["mask"].to(self.device)

    def _step(self) -> dict[str, Any]:
        if self.settings.cam_strength and self._done % self.settings.cam_interval == 0:
            self.mask = self.ranks.first(self._masks)
        self._done += 1
        return super()._step()

    def _masks(self) -> Tensor:  # [I, 1, H, W]
        """By the judge, of the images as they are."""
        values, labels = self.learned.values()
        labels = self.learned.labels_of(values, labels)
        classes = labels.argmax(1) if labels.is_floating_point() else labels
        if self._judges is None:
            net = copy.deepcopy(self.resources.network).to(self.device)
            self._judges = Judges(net, self.resources.experts, 1, self.resources.data)
        noise = torch.Generator().manual_seed(self._done)
        cam = grad_cam(self._judges.network(0), values[IMAGES], classes, noise)
        stronger = cam + self.settings.cam_strength
        return torch.where(cam < cam.mean((1, 2), keepdim=True), torch.ones_like(cam), stronger)[:, None]
