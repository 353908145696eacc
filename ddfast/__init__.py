"""ddfast: dataset distillation, on an engine with exact gradients in little memory."""

import sys

from ddfast import compat, data, methods, networks, ops, studies
from ddfast.data import SyntheticSet, load_dataset, register_dataset
from ddfast.engine import adjoints, optimizers, students
from ddfast.engine.data_loss import data_loss
from ddfast.engine.distances import distance
from ddfast.engine.unroll import match_trajectory, unroll
from ddfast.evaluation import Evaluation, evaluate
from ddfast.experts import TrajectoryStore, train_experts
from ddfast.networks import register_network
from ddfast.ops.installation import build_info
from ddfast.pages import compare, report
from ddfast.run.distill import DistillResult, distill
from ddfast.run.loop import Distillation, DistillationDivergedError
from ddfast.run.progress import progress, verbose
from ddfast.run.transfer import transfer_table
from ddfast.runtime import ranks
from ddfast.tuning import TuneResult, tune

__all__ = [
    "DistillResult",
    "Distillation",
    "DistillationDivergedError",
    "Evaluation",
    "SyntheticSet",
    "TrajectoryStore",
    "TuneResult",
    "adjoints",
    "build_info",
    "compare",
    "compat",
    "data",
    "data_loss",
    "distance",
    "distill",
    "evaluate",
    "load_dataset",
    "match_trajectory",
    "methods",
    "networks",
    "ops",
    "optimizers",
    "progress",
    "ranks",
    "register_dataset",
    "register_network",
    "report",
    "students",
    "studies",
    "train_experts",
    "transfer_table",
    "tune",
    "unroll",
    "verbose",
]

# public modules that lie in a room: `from ddfast.adjoints import FullUnroll` works as `ddfast.adjoints.FullUnroll` does
sys.modules |= {
    f"{__name__}.{module.__name__.rpartition('.')[2]}": module for module in (adjoints, optimizers, students, ranks)
}
