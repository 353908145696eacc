"""ddfast: dataset distillation by trajectory matching, with exact meta-gradients in constant memory."""

from ddfast import adjoints, compat, data, networks, ops, ranks, students
from ddfast.data import SyntheticSet, load_dataset
from ddfast.distances import distance
from ddfast.distill import DistillResult, distill
from ddfast.distillation import Distillation, DistillationDivergedError
from ddfast.evaluate import Evaluation, evaluate
from ddfast.experts import TrajectoryStore, train_experts
from ddfast.installation import build_info
from ddfast.matching import match_trajectory, unroll

__all__ = [
    "DistillResult",
    "Distillation",
    "DistillationDivergedError",
    "Evaluation",
    "SyntheticSet",
    "TrajectoryStore",
    "adjoints",
    "build_info",
    "compat",
    "data",
    "distance",
    "distill",
    "evaluate",
    "load_dataset",
    "match_trajectory",
    "networks",
    "ops",
    "ranks",
    "students",
    "train_experts",
    "unroll",
]
