"""NCFM: match the characteristic functions of each class's features, in amplitude and phase."""

from dataclasses import dataclass
from typing import Annotated, Literal

import torch
from torch import Tensor
from torch.nn.functional import normalize

from ddfast.methods.distribution.matching import FeatureMatching, FeatureSettings, Looking
from ddfast.methods.settings import OUTER, Parameterised
from ddfast.runtime.options import AtLeast1, NotNegative, Option, Positive

TINY = 1e-12  # under the root, whose slope at 0 is infinite


@dataclass(frozen=True, kw_only=True)
class NCFMSettings(FeatureSettings):
    """Options of NCFM."""

    lr_img: float = 0.01
    img_optimizer: Literal["sgd", "adam"] = "adam"
    batch_real: int = 1024
    networks_from: Looking = "between"
    ce_weight: float = 1.0
    parameterisation: Parameterised = "tiles"
    num_frequencies: Annotated[AtLeast1, Option(OUTER, "At which characteristic functions are compared.")] = 4096
    phase_weight: Annotated[NotNegative, Option(OUTER, "Of differences in phase; those in amplitude have 0.5.")] = 0.5
    distance_weight: Annotated[Positive, Option(OUTER, "Of the distance beside the cross-entropy.")] = 300.0


class NCFM(FeatureMatching):
    """Neural characteristic function matching (Wang et al. 2025, arXiv:2502.20653), with frequencies t ~ N(0, I).

    Features are scaled to unit length; Φ(t) = mean exp(i ⟨t, f⟩) of a class's real and synthetic ones, Φ_r and Φ_s.
    The distance is the mean over t of √(½ (|Φ_r| − |Φ_s|)² + w · 2 (|Φ_r| |Φ_s| − Re Φ_r Φ̄_s)). A learned sampler of t,
    which the paper also has, is not here: its CIFAR settings switch it off.
    """

    Settings = NCFMSettings

    def compared(self, real: Tensor, synthetic: Tensor) -> Tensor:
        """At frequencies that are drawn anew for every class."""
        settings: NCFMSettings = self.settings
        t = torch.randn(settings.num_frequencies, real.shape[2], generator=self.generator).to(real)
        (re_r, im_r), (re_s, im_s) = (_characteristic(features, t) for features in (real, synthetic))  # [S, M] each
        size_r, size_s = ((re.square() + im.square()).clamp_min(TINY).sqrt() for re, im in ((re_r, im_r), (re_s, im_s)))
        phase = 2 * (size_r * size_s - re_r * re_s - im_r * im_s)
        squared = 0.5 * (size_r - size_s).square() + settings.phase_weight * phase
        return settings.distance_weight * squared.clamp_min(TINY).sqrt().mean(1)


def _characteristic(features: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:  # [S, B, F], [M, F] -> [S, M], [S, M]
    """Real and imaginary part."""
    angles = normalize(features, dim=2) @ t.T  # [S, B, M]
    return angles.cos().mean(1), angles.sin().mean(1)
