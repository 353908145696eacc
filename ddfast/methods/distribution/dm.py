"""DM: match the mean features of each class, seen by random networks."""

from dataclasses import dataclass

from torch import Tensor

from ddfast.methods.distribution.matching import FeatureMatching, FeatureSettings


@dataclass(frozen=True, kw_only=True)
class DMSettings(FeatureSettings):
    """Options of DM."""

    lr_img: float = 1.0


class DM(FeatureMatching):
    """Distribution matching (Zhao & Bilen 2023, arXiv:2110.04181, eq. 5 and Algorithm 1).

    A step draws random networks ψ and minimises Σ_c ‖mean ψ(A(T_c)) − mean ψ(A(S_c))‖² over classes c, with the same
    augmentation A for the real minibatch T_c and the synthetic images S_c.
    """

    Settings = DMSettings

    def compared(self, real: Tensor, synthetic: Tensor) -> Tensor:
        """‖mean − mean‖²."""
        return (synthetic.mean(1) - real.mean(1)).square().sum(1)
