"""The meta-gradient through other people's networks, 10 images × 20 steps: nobody is slower for using ddfast."""

import sys

import pytest
import torch
from torch import nn
from torch.nn.utils import parameters_to_vector

import ddfast
from benchmarks.bench_meta_gradient import eager_loss
from benchmarks.measure import DEVICE, relative_error
from ddfast.engine.adjoints import CheckpointedUnroll
from ddfast.engine.planner import Plan
from ddfast.engine.students import student_of
from ddfast.networks import Conv3x3, ConvNet, create

IMAGES, STEPS, SIDE = 10, 20, 32
ROWS = {
    "eager": "eager full unroll",
    "store": "ddfast, all steps stored",
    "recompute": "ddfast, recomputing all",
    "own": "ddfast's ConvNet, all steps stored",
}
NETWORKS = {
    "the field's ConvNet, width 16": 16,
    "the field's ConvNet, width 64": 64,
    "the field's ConvNet, width 128": 128,
    "ResNet18, instance norm": "resnet18",
    "VGG11, instance norm": "vgg11",
}


def network_of(name, plain) -> nn.Module:
    """A width: the field's ConvNet of PyTorch's own layers; else a name of networks.NETWORKS, where it is `plain` with
    PyTorch's own convolutions."""
    if isinstance(name, str):
        generator = torch.Generator().manual_seed(0)
        network = create(name, channels=3, num_classes=10, image_size=(SIDE, SIDE), generator=generator)
        for part in network.modules():
            if plain and isinstance(part, Conv3x3):
                part.__class__ = nn.Conv2d
        return network
    blocks = []
    for block in range(3):
        convolution = nn.Conv2d(name if block else 3, name, 3, padding=1)
        blocks += [convolution, nn.GroupNorm(name, name), nn.ReLU(), nn.AvgPool2d(2)]
    return nn.Sequential(*blocks, nn.Flatten(), nn.Linear(name * 16, 10))


def make(variant, network, small=False, dtype="float32"):
    """A call that computes the loss's gradients in images and learning rate."""
    dtype, steps = getattr(torch, dtype), 1 if small else STEPS
    torch.manual_seed(0)
    plain = network_of(network, variant == "eager")
    start = parameters_to_vector(plain.parameters()).detach().double()
    target = start + 0.003 * torch.randn(len(start), dtype=torch.float64)
    pixels = torch.randn(IMAGES, 3, SIDE, SIDE, dtype=torch.float64)
    if variant == "own":
        plain = ConvNet(3, 10, width=network, image_size=(SIDE, SIDE))
    plain, start, target, pixels = (t.to(DEVICE, dtype) for t in (plain, start, target, pixels))
    labels, lr = torch.arange(IMAGES, device=DEVICE), torch.tensor(0.01, dtype=dtype, device=DEVICE)
    leaves = [pixels.requires_grad_(), lr.requires_grad_()]

    def call():
        if variant == "eager":
            loss = eager_loss(plain, start, target, pixels, labels, lr, steps)
        else:
            student, plan = (
                student_of(plain, image=pixels.shape[1:]),
                Plan(stored_steps=0 if variant == "recompute" else steps),
            )
            loss = ddfast.match_trajectory(
                student, start, target, pixels, labels, lr, syn_steps=steps, adjoint=CheckpointedUnroll(plan=plan)
            )
        return torch.autograd.grad(loss, leaves)

    return call


@pytest.mark.parametrize("network", NETWORKS)
@pytest.mark.parametrize("variant", ROWS)
def test_network(measured, network, variant):
    if variant == "own" and isinstance(NETWORKS[network], str):
        pytest.skip("another network")
    case = {"network": NETWORKS[network]}
    group = f"{network}, {IMAGES} images × {STEPS} steps, {SIDE} px"
    rounds = 3 if isinstance(NETWORKS[network], str) else 5
    info = measured(
        sys.modules[__name__],
        group,
        ROWS[variant],
        against={"variant": "eager"},
        rounds=rounds,
        variant=variant,
        **case,
    )
    info["error"] = relative_error(
        make(variant, **case, small=True)()[:1], make("eager", **case, small=True, dtype="float64")()[:1]
    )
