"""Texture distillation: canvases of which every use takes a random part."""

from dataclasses import dataclass

from ddfast.methods.trajectory.matching import TrajectoryMatching
from ddfast.methods.trajectory.settings import TrajectorySettings


@dataclass(frozen=True, kw_only=True)
class TextureSettings(TrajectorySettings):
    """Those of the family; canvas: its side over an image's."""

    canvas: int = 2

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.canvas < 2:
            raise ValueError(f"canvas: expected at least 2 for textures, got {self.canvas}")


class Texture(TrajectoryMatching):
    """Class textures that tile without a seam (Cazenavette et al. 2022, "Wearable ImageNet", beside MTT).

    An image is a canvas of twice the side; every use, in matching and in evaluation, rolls it around both edges by
    random distances and takes the top-left part of the network's size; DSA follows.
    """

    Settings = TextureSettings
