"""Experts: networks trained on real data, and the trajectories that they leave."""

from ddfast.experts.train import train_experts
from ddfast.experts.trajectories import TrajectoryStore

__all__ = ["TrajectoryStore", "train_experts"]
