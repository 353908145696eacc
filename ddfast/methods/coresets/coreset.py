"""Coresets: real images that are selected, with nothing learned; what distilled images are compared with."""

from dataclasses import dataclass

from ddfast.methods.base import Method, Needs
from ddfast.methods.settings import SetSettings

PRESETS = """
[inherit]
method = "dsa"

[inherit.settings]
iterations = 0
lr_img = 0.0
init = "{}"
"""  # the networks and the augmentation of each data set


@dataclass(frozen=True, kw_only=True)
class CoresetSettings(SetSettings):
    """Options of a selection: `init` says which."""

    lr_img: float = 0.0

    LABELS = ("hard",)

    def __post_init__(self) -> None:
        super().__post_init__()
        selection = type(self).init
        if self.init != selection:
            raise ValueError(f"init: expected {selection}, which is what this method selects, got {self.init!r}")
        if self.lr_img:
            raise ValueError(f"lr_img: a selection learns nothing; expected 0, got {self.lr_img}")


@dataclass(frozen=True, kw_only=True)
class RandomSettings(CoresetSettings):
    """Those of random."""

    init: str = "real"


@dataclass(frozen=True, kw_only=True)
class HerdingSettings(CoresetSettings):
    """Those of herding."""

    init: str = "herding"


@dataclass(frozen=True, kw_only=True)
class KCenterSettings(CoresetSettings):
    """Those of k_center."""

    init: str = "k_center"


@dataclass(frozen=True, kw_only=True)
class ForgettingSettings(CoresetSettings):
    """Those of forgetting."""

    init: str = "forgetting"


@dataclass(frozen=True, kw_only=True)
class GraNdSettings(CoresetSettings):
    """Those of grand."""

    init: str = "grand"


@dataclass(frozen=True, kw_only=True)
class EL2NSettings(CoresetSettings):
    """Those of el2n."""

    init: str = "el2n"


class Coreset(Method):
    """Real images, selected class by class. What a method here selects is the `init` of that name of any other one."""

    Settings, needs = CoresetSettings, Needs(steps=False)

    def __init_subclass__(cls) -> None:
        cls.presets = PRESETS.format(cls.Settings.init)


class Random(Coreset):
    """Random real images of every class."""

    Settings = RandomSettings


class Herding(Coreset):
    """Herding (Welling 2009; as iCaRL, Rebuffi et al. 2017, selects): images whose mean features follow their class's.

    Features are those of an expert (`select_on`), or pixels. Some published code takes the farthest image in each step;
    this takes the nearest, which is the definition.
    """

    Settings = HerdingSettings


class KCenter(Coreset):
    """Greedy k-centre (Sener & Savarese 2018) in the features of an expert, or pixels: of a class, the image farthest
    from those chosen is next; the first is drawn."""

    Settings = KCenterSettings


class Forgetting(Coreset):
    """The images that experts forget most often while they are trained (Toneva et al. 2019), counted at the ends of
    epochs; `never_learnt` says where images come that are never classified correctly."""

    Settings = ForgettingSettings


class GraNd(Coreset):
    """The images with the largest gradient norm of the last layer (Paul et al. 2021), a mean over experts' snapshots of
    `select_epoch`."""

    Settings = GraNdSettings


class EL2N(Coreset):
    """The images with the largest error, the norm of softmax − onehot (Paul et al. 2021), a mean over experts'
    snapshots of `select_epoch`."""

    Settings = EL2NSettings
