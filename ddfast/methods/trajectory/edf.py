"""EDF: PAD's filtered distance in the settings of larger images."""

from dataclasses import dataclass

from ddfast.methods.trajectory.pad import PAD, PADSettings


@dataclass(frozen=True, kw_only=True)
class EDFSettings(PADSettings):
    """Those of DATM; drop_ratio: the share of parameters that is left out."""

    drop_ratio: float = 0.25


class EDF(PAD):
    """Emphasizing discriminative features (Wang et al. 2025), its common pattern dropout.

    The parameters with the smallest squared distances carry the patterns that classes share, and are left out as in
    PAD. The paper also strengthens the updates of discriminative areas by Grad-CAM: that is not here.
    """

    Settings = EDFSettings
