"""The methods: each says how one outer step changes a SyntheticSet."""

from ddfast.methods.att import ATT
from ddfast.methods.datm import DATM
from ddfast.methods.edf import EDF
from ddfast.methods.ftd import FTD
from ddfast.methods.initial import check_initial, initial_set, ipc_of, load_init
from ddfast.methods.mtt import MTT
from ddfast.methods.pad import PAD
from ddfast.methods.pp import PP
from ddfast.methods.settings import INITS, MatchingSettings
from ddfast.methods.simplified import Simplified
from ddfast.methods.tesla import TESLA
from ddfast.methods.texture import Texture
from ddfast.methods.trajectory import TrajectoryMatching

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
