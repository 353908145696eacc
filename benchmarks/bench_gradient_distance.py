"""gradient_distance against the loop over layers that the field's code has, in value and with its slope."""

import sys

import pytest
import torch

from benchmarks.measure import DEVICE, relative_error
from ddfast.ops import gradient_distance, reference_mode

# of the ConvNet for CIFAR-10: offset, rows and length of its convolutions and its linear layer
CONVNET = 320_010, [(0, 128, 27), (3840, 128, 1152), (151_680, 128, 1152), (299_520, 10, 2048)]
SMALL = 90, [(0, 3, 9), (30, 4, 15)]
CLASSES = {"one class": 1, "ten classes": 10}


def tensors(S, P, dtype):
    generator = torch.Generator().manual_seed(0)
    drawn = [torch.randn(S, P, generator=generator, dtype=torch.float64) for _ in range(2)]
    return [t.to(DEVICE, dtype) for t in drawn]


def formula(g, h, layers):
    total = g.new_zeros(len(g))
    for offset, rows, length in layers:
        a, b = (x[:, offset : offset + rows * length].unflatten(1, (rows, length)) for x in (g, h))
        total = total + (1 - (a * b).sum(2) / (a.norm(dim=2) * b.norm(dim=2) + 1e-6)).sum(1)
    return total


def make(variant, S, small=False, dtype="float32"):
    """A call that computes the distance and its slope."""
    P, layers = SMALL if small else CONVNET
    g, h = tensors(S, P, getattr(torch, dtype))
    function = formula if variant == "formula" else gradient_distance
    g.requires_grad_()

    def compute():
        value = function(g, h, layers)
        return [value.detach(), *torch.autograd.grad(value.sum(), g)]

    def reference():
        with reference_mode():
            return compute()

    return reference if variant == "reference" else compute


@pytest.mark.parametrize("classes", CLASSES)
@pytest.mark.parametrize("variant", ["formula", "reference", "kernel"])
def test_gradient_distance(measured, classes, variant):
    case = {"S": CLASSES[classes]}
    group, against = f"gradient_distance, {classes}", {"variant": "formula"}
    info = measured(sys.modules[__name__], group, variant, against=against, rounds=20, variant=variant, **case)
    exact = make("formula", **case, dtype="float64")()
    info["error"] = relative_error(make(variant, **case)(), exact)
