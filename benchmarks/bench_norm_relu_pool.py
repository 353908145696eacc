"""norm_relu_pool against its reference and against PyTorch's GroupNorm → ReLU → AvgPool2d, with double backward."""

import sys

import pytest
import torch
from torch.nn.functional import avg_pool2d, group_norm

from benchmarks.measure import DEVICE, relative_error
from ddfast.ops import norm_relu_pool, reference_mode

SIZES = {"10×128×32×32": (10, 128, 32), "100×128×16×16": (100, 128, 16), "10×128×128×128": (10, 128, 128)}
VARIANTS = ("PyTorch, NCHW", "PyTorch, channels-last", "reference", "kernel, NCHW in", "kernel, channels-last")


def layers(z, weight, bias):
    return avg_pool2d(group_norm(z, z.shape[1], weight, bias, 1e-5).relu(), 2)


def make(variant, N, C, side, twice, small=False, dtype="float32"):
    """A call that computes the value, and if `twice` also the gradient with a graph and the gradient of that."""
    generator = torch.Generator().manual_seed(0)
    side = 4 if small else side

    def draw(*shape):
        return torch.randn(shape, generator=generator, dtype=torch.float64).to(DEVICE, getattr(torch, dtype))

    z, dz, g = draw(N, C, side, side), draw(N, C, side, side), draw(N, C, side // 2, side // 2)
    if "NCHW" not in variant:
        z, dz, g = (t.contiguous(memory_format=torch.channels_last) for t in (z, dz, g))
    leaves = [t.requires_grad_() for t in (z, draw(C), draw(C))]
    function = layers if variant.startswith("PyTorch") else norm_relu_pool

    def compute():
        y = function(*leaves)
        if not twice:
            return [y.detach()]
        first = torch.autograd.grad(y, leaves, g, create_graph=True)
        second = torch.autograd.grad((first[0] * dz).sum() + first[1].sum() + first[2].sum(), leaves)
        return [y.detach(), *(t.detach() for t in first), *second]

    def reference():
        with reference_mode():
            return compute()

    return reference if variant == "reference" else compute


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("twice", [False, True], ids=["value", "double backward"])
@pytest.mark.parametrize("variant", VARIANTS)
def test_norm_relu_pool(measured, size, twice, variant):
    case = dict(zip(("N", "C", "side"), SIZES[size], strict=True), twice=twice)
    group = f"norm_relu_pool, {size}, {'with double backward' if twice else 'value'}"
    against = {"variant": VARIANTS[0]}
    info = measured(sys.modules[__name__], group, variant, against=against, rounds=10, variant=variant, **case)
    exact = make("PyTorch, NCHW", **case, dtype="float64")()
    info["error"] = relative_error(make(variant, **case)(), exact)
