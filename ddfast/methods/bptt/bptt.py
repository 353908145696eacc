"""Full BPTT, and RememberThePast's setting of it."""

from dataclasses import dataclass
from typing import Literal

from ddfast.methods.bptt.settings import Norms, ThroughTimeSettings
from ddfast.methods.bptt.through_time import ThroughTime
from ddfast.methods.settings import Parameterised


class BPTT(ThroughTime):
    """Through all inner steps (full BPTT, which Feng et al. 2024 compare with), or through the last `window`."""


@dataclass(frozen=True, kw_only=True)
class RememberSettings(ThroughTimeSettings):
    """Options of RememberThePast."""

    parameterisation: Parameterised = "bases"
    image_norm: Norms = "none"
    inner_optimizer: Literal["adam", "sgd"] = "sgd"
    syn_momentum: float = 0.9
    lr_teacher: float = 0.01
    total_steps: int = 150
    img_optimizer: Literal["sgd", "adam"] = "sgd"
    lr_img: float = 0.1
    clip: float | None = None
    dsa_strategy: str = "none"


class Remember(ThroughTime):
    """RememberThePast (Deng & Russakovsky 2022, arXiv:2206.02916): 150 steps of SGD with momentum 0.9 and rate 0.01,
    differentiated through in full, and images made of shared bases. Its addressing is here one weight of each base for
    each image; lr_img and momentum 0.5 are those of the bases."""

    Settings = RememberSettings
