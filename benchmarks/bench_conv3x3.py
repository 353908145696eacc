"""conv3x3's three faces, and an eager meta-gradient with it: direct, F(2×2) and F(4×4); times beside errors."""

import statistics
import sys

import pytest
import torch
from torch.nn.utils import parameters_to_vector

from benchmarks.bench_meta_gradient import eager_loss, plain_convnet
from benchmarks.measure import DEVICE, relative_error
from ddfast.networks import ConvNet
from ddfast.networks import convnet as layers
from ddfast.ops import conv3x3

SIZES = {"10×128×32×32": (10, 32), "10×128×16×16": (10, 16), "10×128×8×8": (10, 8), "100×128×16×16": (100, 16)}
FACES = ("forward", "input gradient", "weight gradient")
TILES = {"direct": 0, "F(2×2)": 2, "F(4×4)": 4}
DRAWS = 7


def make(variant, face, images, side, small=False, dtype="float32"):
    """A call that computes one face with 128 channels in and out."""
    generator = torch.Generator().manual_seed(0)
    images = 1 if small else images

    def draw(*shape):
        numbers = torch.randn(shape, generator=generator, dtype=torch.float64).to(DEVICE, getattr(torch, dtype))
        return numbers.contiguous(memory_format=torch.channels_last)

    x, g, w, tile = draw(images, 128, side, side), draw(images, 128, side, side), draw(128, 128, 3, 3), TILES[variant]
    call, given = {
        "forward": (torch.ops.ddfast.conv3x3, (x, w, None, None, None, tile)),
        "input gradient": (torch.ops.ddfast.conv3x3_input, (g, w, None, None, 1, tile)),
        "weight gradient": (torch.ops.ddfast.conv3x3_weight, (g, x, None, None, 1, tile)),
    }[face]
    return lambda: [call(*given)]


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("face", FACES)
@pytest.mark.parametrize("variant", TILES)
def test_conv3x3(measured, size, face, variant):
    case = dict(zip(("images", "side"), SIZES[size], strict=True), face=face)
    group = f"conv3x3, {face}, {size}"
    against = {"variant": "direct"}
    info = measured(sys.modules[__name__], group, variant, against=against, rounds=10, variant=variant, **case)
    info["error"] = relative_error(make(variant, **case)(), make("direct", **case, dtype="float64")())


def meta_gradient(variant, steps, images, seed, dtype="float32"):
    """The image gradient of an eager unroll of networks.ConvNet, its convolutions on tiles of one size."""
    dtype = getattr(torch, dtype)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        start = parameters_to_vector(plain_convnet(32).parameters()).detach().double()
        target = start + 0.003 * torch.randn(len(start), dtype=torch.float64)
        pixels = torch.randn(images, 3, 32, 32, dtype=torch.float64)
    pixels, start, target = (t.to(DEVICE, dtype) for t in (pixels, start, target))
    network, lr = ConvNet(3, 10).to(DEVICE, dtype), torch.tensor(0.01, dtype=dtype, device=DEVICE)
    labels = (torch.arange(images) % 10).to(DEVICE)
    usual = layers.conv3x3
    layers.conv3x3 = lambda *given: conv3x3(*given, tile=TILES[variant])
    try:
        pixels.requires_grad_()
        return list(torch.autograd.grad(eager_loss(network, start, target, pixels, labels, lr, steps), pixels))
    finally:
        layers.conv3x3 = usual


@pytest.mark.parametrize("steps", [1, 3])
@pytest.mark.parametrize("variant", TILES)
def test_meta_gradient(benchmark, steps, variant):
    """The median error over draws: where a ReLU switches, which is in few draws of these, all are alike."""
    benchmark.group = f"meta-gradient by autograd through networks.ConvNet, 4 images × {steps} steps"
    benchmark.pedantic(lambda: meta_gradient(variant, steps, 4, 0), rounds=3, warmup_rounds=1)
    errors = [
        relative_error(meta_gradient(variant, steps, 4, seed), meta_gradient("direct", steps, 4, seed, "float64"))
        for seed in range(DRAWS)
    ]
    benchmark.extra_info |= {"row": variant, "peak_mib": float("nan"), "error": statistics.median(errors)}
