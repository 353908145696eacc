"""What is unrolled: networks with flat parameters, behind the two functions that an adjoint needs."""

import torch
from torch import nn

from ddfast.engine.students.base import GradientJvp, Step, StepBytes, Student, Wanted
from ddfast.engine.students.convnet import ConvNetStudent
from ddfast.engine.students.features import Features, expect_features
from ddfast.engine.students.fused import why_not_fused
from ddfast.engine.students.gsam import GSAM
from ddfast.engine.students.micro_batches import MicroBatches
from ddfast.engine.students.module import ModuleStudent
from ddfast.engine.students.rank_batches import RankBatches
from ddfast.engine.students.recognised import RecognisedStudent, recognise
from ddfast.engine.students.training import Training, side_by_side
from ddfast.engine.students.wrappers import unwrapped

__all__ = [
    "GSAM",
    "ConvNetStudent",
    "Features",
    "GradientJvp",
    "MicroBatches",
    "ModuleStudent",
    "RankBatches",
    "RecognisedStudent",
    "Step",
    "StepBytes",
    "Student",
    "Training",
    "Wanted",
    "expect_features",
    "recognise",
    "side_by_side",
    "student_of",
    "unwrapped",
    "why_not_fused",
]


def student_of(
    network: nn.Module,
    precision: str = "default",
    image: torch.Size | tuple[int, int, int] | None = None,  # [C, H, W]
) -> Student:
    """The fastest student of a network: ConvNetStudent where the fused ops can run it, else ModuleStudent.

    That is a networks.ConvNet, and, where the size of the images is given, the field's ConvNet in anybody's code
    (`recognised`). `precision` is "default" (as PyTorch is set), "float32" (without TF32) or "bfloat16" (convolutions
    and maps; of a ModuleStudent what autocast chooses). A wrapped network is that inside (`unwrapped`). ValueError for
    another precision or a wrapper that cannot be taken off, TypeError for what is no module.
    """
    if not isinstance(network, nn.Module):
        raise TypeError(f"network: expected an nn.Module, got {type(network).__name__}")
    network = unwrapped(network)
    if why_not_fused(network) is None:
        return ConvNetStudent(network, precision)
    found = "" if image is None else recognise(network, torch.Size(image))
    return ModuleStudent(network, precision) if isinstance(found, str) else RecognisedStudent(network, found, precision)
