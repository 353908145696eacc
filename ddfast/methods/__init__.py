"""The methods: each says how one outer step changes a SyntheticSet."""

import warnings

from ddfast.methods.base import METHODS, Method, Needs, RealImages, Resources, method_class, register
from ddfast.methods.bptt.at import ATBPTT, ATBPTTPlus
from ddfast.methods.bptt.bptt import BPTT, Remember
from ddfast.methods.bptt.dd import DD
from ddfast.methods.bptt.ld import LD
from ddfast.methods.bptt.rat import RaTBPTT
from ddfast.methods.coresets.coreset import EL2N, Coreset, Forgetting, GraNd, Herding, KCenter, Random
from ddfast.methods.distribution.cafe import CAFE
from ddfast.methods.distribution.dm import DM
from ddfast.methods.distribution.ncfm import NCFM
from ddfast.methods.gradient.dc import DC, DSA
from ddfast.methods.gradient.idc import IDC
from ddfast.methods.initial import check_initial, initial_set, ipc_of, load_init
from ddfast.methods.kernel.kip import KIP
from ddfast.methods.learned_set import LearnedSet
from ddfast.methods.settings import INITS, SetSettings
from ddfast.methods.trajectory.att import ATT
from ddfast.methods.trajectory.datm import DATM
from ddfast.methods.trajectory.edf import EDF
from ddfast.methods.trajectory.ftd import FTD
from ddfast.methods.trajectory.matching import TrajectoryMatching
from ddfast.methods.trajectory.mct import MCT
from ddfast.methods.trajectory.mtt import MTT
from ddfast.methods.trajectory.pad import PAD
from ddfast.methods.trajectory.pp import PP
from ddfast.methods.trajectory.selmatch import SelMatch
from ddfast.methods.trajectory.settings import TrajectorySettings
from ddfast.methods.trajectory.simplified import Simplified
from ddfast.methods.trajectory.tesla import TESLA
from ddfast.methods.trajectory.texture import Texture

for method in (
    MTT,
    FTD,
    DATM,
    TESLA,
    ATT,
    PP,
    PAD,
    EDF,
    Texture,
    Simplified,
    MCT,
    SelMatch,
    DC,
    DSA,
    IDC,
    DM,
    CAFE,
    NCFM,
    DD,
    LD,
    KIP,
):
    register(method)
for method in (Random, Herding, Forgetting, GraNd, EL2N):
    register(method)
register(KCenter, name="k_center")
for method, name in (
    (BPTT, "bptt"),
    (RaTBPTT, "rat_bptt"),
    (ATBPTT, "at_bptt"),
    (ATBPTTPlus, "at_bptt_pp"),
    (Remember, "remember"),
):
    register(method, name=name)

__all__ = [
    "ATBPTT",
    "ATT",
    "BPTT",
    "CAFE",
    "DATM",
    "DC",
    "DD",
    "DM",
    "DSA",
    "EDF",
    "EL2N",
    "FTD",
    "IDC",
    "INITS",
    "KIP",
    "LD",
    "MCT",
    "METHODS",
    "MTT",
    "NCFM",
    "PAD",
    "PP",
    "TESLA",
    "ATBPTTPlus",
    "Coreset",
    "Forgetting",
    "GraNd",
    "Herding",
    "KCenter",
    "LearnedSet",
    "Method",
    "Needs",
    "RaTBPTT",
    "Random",
    "RealImages",
    "Remember",
    "Resources",
    "SelMatch",
    "SetSettings",
    "Simplified",
    "Texture",
    "TrajectoryMatching",
    "TrajectorySettings",
    "check_initial",
    "initial_set",
    "ipc_of",
    "load_init",
    "method_class",
    "register",
]


def __getattr__(name: str) -> type[TrajectorySettings]:
    if name == "MatchingSettings":
        warnings.warn("MatchingSettings is called TrajectorySettings now", FutureWarning, stacklevel=2)
        return TrajectorySettings
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
