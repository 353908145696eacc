"""The whole meta-gradient against an eager full unroll: the double loop that trajectory-matching code contains."""

import functools
import statistics
import sys

import pytest
import torch
from torch import nn
from torch.func import functional_call, grad
from torch.nn.functional import cross_entropy
from torch.nn.utils import parameters_to_vector

import ddfast
from benchmarks.measure import DEVICE, relative_error
from ddfast.engine.adjoints import CheckpointedUnroll
from ddfast.engine.planner import Plan
from ddfast.engine.students import ModuleStudent, student_of
from ddfast.methods.trajectory.cuda_graph import Replayed
from ddfast.networks import ConvNet

DRAWS = 5
ROWS = {
    "eager": "eager full unroll",
    "eager, channels-last": "eager full unroll, channels-last",
    "module": "ddfast, any module, recomputing all",
    "module, stored": "ddfast, any module, all steps stored",
    "recompute": "ddfast, ConvNet, recomputing all",
    "store": "ddfast, ConvNet, all steps stored",
    "direct": "ddfast, ConvNet, all steps stored, precision float32",
    "eager, ddfast's ConvNet": "eager full unroll of ddfast's ConvNet",
    "foreign": "ddfast, a ConvNet of PyTorch's layers, all steps stored",
    "graph": "ddfast, ConvNet, all steps stored, CUDA graph",
    "compiled": "eager full unroll in torch.func, by torch.compile",
    "eager, bfloat16": "eager full unroll, autocast to bfloat16",
    "bfloat16": "ddfast, ConvNet, bfloat16, recomputing all",
}
SLOW_ON_CPUS = ("eager, bfloat16", "bfloat16") if DEVICE == "cpu" else ()
SETTINGS = {  # images × steps, side; the error is measured with error_steps where float64 would take minutes
    "10 images × 2 steps, 32 px, depth 3": {  # torch.compile takes 45 s a step
        "images": 10,
        "steps": 2,
        "side": 32,
        "error_steps": 1,
        "only": ("eager", "compiled", "store"),
    },
    "10 images × 20 steps, 32 px, depth 3": {"images": 10, "steps": 20, "side": 32, "error_steps": 5},
    "100 images × 10 steps, 32 px, depth 3": {
        "images": 100,
        "steps": 10,
        "side": 32,
        "error_steps": 1,
        "without": SLOW_ON_CPUS,
    },
    "10 images × 10 steps, 128 px, depth 5": {
        "images": 10,
        "steps": 10,
        "side": 128,
        "error_steps": 1,
        "without": ("eager, channels-last", *SLOW_ON_CPUS),  # minutes
    },
}
CUDA_SETTINGS = {
    "CIFAR-10 ipc 1: 10 images × 50 steps, 32 px": {"images": 10, "steps": 50, "side": 32, "error_steps": 5},
    "CIFAR-10 ipc 10: 100 images × 30 steps, 32 px": {"images": 100, "steps": 30, "side": 32, "error_steps": 5},
    "CIFAR-100 ipc 10: 1000 images × 20 steps, 32 px": {"images": 1000, "steps": 20, "side": 32, "error_steps": 5},
    "DATM CIFAR-100 ipc 50: 1000 images × 80 steps, 32 px": {
        "images": 1000,
        "steps": 80,
        "side": 32,
        "error_steps": 5,
        "without": ("eager", "eager, channels-last", "eager, bfloat16"),  # 223 GiB
    },
    "ImageNet subset ipc 10: 20 images × 20 steps, 128 px": {
        "images": 20,
        "steps": 20,
        "side": 128,
        "error_steps": 2,
    },
}
if DEVICE == "cuda":
    SETTINGS |= CUDA_SETTINGS


def plain_convnet(side: int) -> nn.Module:
    """The field's ConvNet of PyTorch's own layers."""
    depth = side.bit_length() - 3
    blocks = []
    for block in range(depth):
        convolution = nn.Conv2d(3 if block == 0 else 128, 128, 3, padding=1)
        blocks += [convolution, nn.GroupNorm(128, 128), nn.ReLU(), nn.AvgPool2d(2)]
    return nn.Sequential(*blocks, nn.Flatten(), nn.Linear(128 * 16, 10))


def eager_loss(network, start, target, images, labels, lr, steps):
    """Matching loss of an unroll through which autograd keeps everything."""
    names, shapes = zip(*((name, p.shape) for name, p in network.named_parameters()), strict=True)
    theta = start.clone().requires_grad_()
    for _ in range(steps):
        pieces = theta.split([shape.numel() for shape in shapes])
        parameters = {n: p.view(s) for n, p, s in zip(names, pieces, shapes, strict=True)}
        loss = cross_entropy(functional_call(network, parameters, (images,)), labels)
        (grad,) = torch.autograd.grad(loss, theta, create_graph=True)
        theta = theta - lr * grad
    return (theta - target).square().sum() / (start - target).square().sum()


def compiled_loss(network, start, target, images, labels, lr, steps):
    """A call for the gradients in images and rate of the same loss, in the form that torch.compile takes."""
    shapes = {name: p.shape for name, p in network.named_parameters()}

    def named(flat):
        pieces = flat.split([shape.numel() for shape in shapes.values()])
        return {name: p.view(shape) for (name, shape), p in zip(shapes.items(), pieces, strict=True)}

    def outer(images, lr):
        theta, goal, begin = named(start), named(target), named(start)
        for _ in range(steps):
            slopes = grad(lambda p: cross_entropy(functional_call(network, p, (images,)), labels))(theta)
            theta = {name: theta[name] - lr * slopes[name] for name in shapes}
        squares = [sum((x[n] - goal[n]).square().sum() for n in shapes) for x in (theta, begin)]
        return squares[0] / squares[1]

    call = torch.compile(grad(outer, argnums=(0, 1)))
    return lambda: call(images.detach(), lr.detach())


def make(variant, images, steps, side, small=False, dtype="float32", seed=0):
    """A call that computes the loss's gradients in images and learning rate. ", bfloat16" may be added to a variant."""
    dtype, steps = getattr(torch, dtype), 1 if small else steps
    torch.manual_seed(seed)
    eager = variant.startswith("eager")
    plain = variant in ("foreign", "compiled") or variant.startswith("module") or (eager and "ddfast" not in variant)
    network = plain_convnet(side) if plain else ConvNet(3, 10, image_size=(side, side))
    start = 0.03 * torch.randn(sum(p.numel() for p in network.parameters()), dtype=torch.float64)
    start += parameters_to_vector(plain_convnet(side).parameters()).detach()
    target = start + 0.003 * torch.randn(len(start), dtype=torch.float64)
    pixels = torch.randn(images, 3, side, side, dtype=torch.float64)
    network, start, target, pixels = (t.to(DEVICE, dtype) for t in (network, start, target, pixels))
    if variant == "eager, channels-last":
        pixels = pixels.contiguous(memory_format=torch.channels_last)
    labels = (torch.arange(images) % 10).to(DEVICE)
    lr = torch.tensor(0.01, dtype=dtype, device=DEVICE)

    if variant == "compiled":
        return compiled_loss(network, start, target, pixels, labels, lr, steps)
    leaves, half = [pixels.requires_grad_(), lr.requires_grad_()], variant.endswith("bfloat16")
    plan = variant.removesuffix(", bfloat16")

    def compute():
        if eager:
            with torch.autocast(DEVICE, torch.bfloat16, enabled=half):
                loss = eager_loss(network, start, target, pixels, labels, lr, steps)
        else:
            student = student_of(network, precision, pixels.shape[1:])
            student = ModuleStudent(network) if variant.startswith("module") else student
            stored = steps if plan in ("store", "module, stored", "direct", "foreign", "graph") else 0
            adjoint = CheckpointedUnroll(plan=Plan(stored_steps=stored))
            loss = ddfast.match_trajectory(student, start, target, pixels, labels, lr, syn_steps=steps, adjoint=adjoint)
        return torch.autograd.grad(loss, leaves)

    precision = "bfloat16" if half else "float32" if variant == "direct" else "default"
    return Replayed(compute) if plan == "graph" else compute


@pytest.mark.parametrize("setting", SETTINGS)
@pytest.mark.parametrize("variant", ROWS)
def test_meta_gradient(measured, setting, variant):
    case = dict(SETTINGS[setting])
    error_steps = case.pop("error_steps")
    if variant == "graph" and DEVICE != "cuda":
        pytest.skip("needs a GPU")
    without, only = case.pop("without", ()), case.pop("only", [row for row in ROWS if row != "compiled"])
    if variant in without or variant not in only:
        pytest.skip("takes too long, or too much memory")
    group = f"meta-gradient, {setting}"
    rounds = 3 if case["side"] == 32 else 1
    against = None if "eager" in without else {"variant": "eager"}
    info = measured(
        sys.modules[__name__], group, ROWS[variant], against=against, rounds=rounds, variant=variant, **case
    )
    few = {**case, "images": 10 if case["side"] == 32 else 2, "steps": error_steps}
    # Of the image gradient, the median over draws: one ReLU that switches between the precisions makes it 1e-3.
    info["error"] = statistics.median(_error(variant, **few, seed=seed) for seed in range(DRAWS))


def _error(variant, **case) -> float:
    return relative_error(make(variant, **case)()[:1], _exact(**case))


@functools.cache
def _exact(**case) -> list[torch.Tensor]:
    """The image gradient in float64, once for all variants."""
    return [make("eager", **case, dtype="float64")()[0].detach()]
