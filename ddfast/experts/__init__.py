"""Experts: networks trained on real data, and the trajectories that they leave."""

from ddfast.experts.train import SGD, train_experts
from ddfast.experts.trajectories import TrajectoryStore

__all__ = ["SGD", "TrajectoryStore", "train_experts"]
