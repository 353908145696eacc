"""param_distance against its reference, in value and with the student's gradient."""

import sys

import pytest
import torch

from benchmarks.measure import DEVICE, relative_error
from ddfast.ops import param_distance, reference_mode

SIZES = {"ConvNet-3 (320,010)": (1, 320_010), "ResNet-18 (11,173,962)": (1, 11_173_962), "8 ConvNets": (8, 320_010)}


def tensors(S, P, dtype=torch.float32):
    generator = torch.Generator().manual_seed(0)
    drawn = [torch.randn(S, P, generator=generator, dtype=torch.float64) for _ in range(3)]
    return [t.to(DEVICE, dtype) for t in drawn]


def formula(student, target, start):
    return (student - target).square().sum(1) / (start - target).square().sum(1)


def make(variant, S, P, backward, small=False, dtype="float32"):
    """A call that computes the distance, and its gradient in the student if asked to."""
    student, target, start = tensors(S, 8 if small else P, getattr(torch, dtype))
    function = formula if variant == "formula" else param_distance

    def compute():
        value = function(student.requires_grad_(backward), target, start)
        return [value.detach(), *(torch.autograd.grad(value.sum(), student) if backward else ())]

    def reference():
        with reference_mode():
            return compute()

    return reference if variant == "reference" else compute


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("backward", [False, True], ids=["value", "value and gradient"])
@pytest.mark.parametrize("variant", ["formula", "reference", "kernel"])
def test_param_distance(measured, size, backward, variant):
    case = dict(zip("SP", SIZES[size], strict=True), backward=backward)
    group = f"param_distance, {size}, {'value and gradient' if backward else 'value'}"
    against = {"variant": "formula"}
    info = measured(sys.modules[__name__], group, variant, against=against, rounds=20, variant=variant, **case)
    exact = make("formula", **case, dtype="float64")()
    info["error"] = relative_error(make(variant, **case)(), exact)
