"""Experts: networks trained on real data, and the trajectories that they leave."""

from ddfast.experts.segments import SegmentReader, Segments
from ddfast.experts.train import ExpertTraining, train_experts
from ddfast.experts.trajectories import TrajectoryStore

__all__ = ["ExpertTraining", "SegmentReader", "Segments", "TrajectoryStore", "train_experts"]
