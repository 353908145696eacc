"""Experts: networks trained on real data, and the trajectories that they leave."""

from ddfast.experts.curriculum import CURRICULA, Curriculum
from ddfast.experts.fitting import expect_preprocessed_alike, expect_trained_with
from ddfast.experts.judges import NEVER_LEARNT, SCORES, Judges
from ddfast.experts.segments import SegmentReader, Segments
from ddfast.experts.settings import OPTIMIZERS, SCHEDULES, ExpertTraining
from ddfast.experts.snapshots import FORMATS, kept_epochs, predicted_bytes, words
from ddfast.experts.train import train_experts
from ddfast.experts.trajectories import TrajectoryStore

__all__ = [
    "CURRICULA",
    "FORMATS",
    "NEVER_LEARNT",
    "OPTIMIZERS",
    "SCHEDULES",
    "SCORES",
    "Curriculum",
    "ExpertTraining",
    "Judges",
    "SegmentReader",
    "Segments",
    "TrajectoryStore",
    "expect_preprocessed_alike",
    "expect_trained_with",
    "kept_epochs",
    "predicted_bytes",
    "train_experts",
    "words",
]
