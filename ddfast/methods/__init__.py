"""The methods: each says how one outer step changes a SyntheticSet."""

from ddfast.methods.trajectory.att import ATT
from ddfast.methods.trajectory.datm import DATM
from ddfast.methods.trajectory.edf import EDF
from ddfast.methods.trajectory.ftd import FTD
from ddfast.methods.trajectory.initial import check_initial, initial_set, ipc_of, load_init
from ddfast.methods.trajectory.matching import TrajectoryMatching
from ddfast.methods.trajectory.mtt import MTT
from ddfast.methods.trajectory.pad import PAD
from ddfast.methods.trajectory.pp import PP
from ddfast.methods.trajectory.settings import INITS, MatchingSettings
from ddfast.methods.trajectory.simplified import Simplified
from ddfast.methods.trajectory.tesla import TESLA
from ddfast.methods.trajectory.texture import Texture

METHODS: dict[str, type[TrajectoryMatching]] = {
    method.__name__.lower(): method for method in (MTT, FTD, DATM, TESLA, ATT, PP, PAD, EDF, Texture, Simplified)
}

__all__ = [
    "ATT",
    "DATM",
    "EDF",
    "FTD",
    "INITS",
    "METHODS",
    "MTT",
    "PAD",
    "PP",
    "TESLA",
    "MatchingSettings",
    "Simplified",
    "Texture",
    "TrajectoryMatching",
    "check_initial",
    "initial_set",
    "ipc_of",
    "load_init",
]
