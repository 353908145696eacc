"""One training step of an expert, DSA included, against the same step of a ConvNet of PyTorch's own layers."""

import sys

import pytest
import torch
from torch.nn.functional import cross_entropy

from benchmarks.bench_meta_gradient import plain_convnet
from benchmarks.measure import DEVICE, relative_error
from ddfast.data import DSA
from ddfast.engine.students import Training
from ddfast.networks import ConvNet
from ddfast.runtime.seeds import generator

ROWS = {"eager": "eager", "eager, channels-last": "eager, channels-last", "ddfast": "ddfast"}
SETTINGS = {
    "batch of 256, 32 px, depth 3": {"batch": 256, "side": 32},
    "batch of 64, 128 px, depth 5": {"batch": 64, "side": 128},
}


def make(variant, batch, side, small=False, dtype="float32"):
    """A call that draws an augmentation, computes the gradient and takes the step; it returns the gradients."""
    batch, dtype = 2 if small else batch, getattr(torch, dtype)
    draws, numbers = generator(0, "draws"), generator(0, "numbers")
    images = torch.randn(batch, 3, side, side, generator=numbers).to(DEVICE, dtype)
    labels = torch.randint(10, (batch,), generator=numbers).to(DEVICE)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        plain = plain_convnet(side)
    network = ConvNet(3, 10, image_size=(side, side)) if variant == "ddfast" else plain
    for p, q in zip(network.parameters(), plain.parameters(), strict=True):
        p.data.copy_(q.data)
    network.to(DEVICE, dtype)
    if variant == "eager, channels-last":
        network.to(memory_format=torch.channels_last)
    augment = DSA()
    optimizer = torch.optim.SGD(network.parameters(), lr=0.01)
    training = Training([network], images.shape[1:], lr=0.01) if variant == "ddfast" else None

    def step():
        x = augment.side_by_side(images[None], [draws])
        if training is not None:
            training.step(x, labels[None])
            return [training.optimizer.param_groups[0]["params"][0].grad[0]]
        x = x[0].contiguous(
            memory_format=torch.channels_last if "channels-last" in variant else torch.contiguous_format
        )
        optimizer.zero_grad()
        cross_entropy(network(x), labels).backward()
        optimizer.step()
        return [torch.cat([p.grad.flatten() for p in network.parameters()])]

    return step


@pytest.mark.parametrize("setting", SETTINGS)
@pytest.mark.parametrize("variant", ROWS)
def test_expert_training_step(measured, setting, variant):
    case = SETTINGS[setting]
    info = measured(
        sys.modules[__name__],
        f"expert training, {setting}",
        ROWS[variant],
        against={"variant": "eager"},
        variant=variant,
        **case,
    )
    few = case | {"batch": 8}
    info["error"] = relative_error(make(variant, **few)(), make("eager", **few, dtype="float64")())
