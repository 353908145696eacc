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


def make(variant, batch, side, networks=1, small=False, dtype="float32"):
    """A call that draws augmentations, computes the gradients and takes a step of every network; it returns the
    gradients. "ddfast" trains all networks side by side, the others one after another."""
    batch, dtype = 2 if small else batch, getattr(torch, dtype)
    draws, numbers = [generator(n, "draws") for n in range(networks)], generator(0, "numbers")
    images = torch.randn(networks, batch, 3, side, side, generator=numbers).to(DEVICE, dtype)
    labels = torch.randint(10, (networks, batch), generator=numbers).to(DEVICE)
    plain, nets = [], []
    with torch.random.fork_rng():
        for seed in range(networks):
            torch.manual_seed(seed)
            plain.append(plain_convnet(side))
    for start in plain:
        nets.append(ConvNet(3, 10, image_size=(side, side)) if variant.startswith("ddfast") else start)
        for p, q in zip(nets[-1].parameters(), start.parameters(), strict=True):
            p.data.copy_(q.data)
        nets[-1].to(DEVICE, dtype)
    last = torch.channels_last if "channels-last" in variant else torch.contiguous_format
    augment, size = DSA(), images.shape[2:]
    trainings, optimizers = [], []
    if variant == "ddfast":
        trainings = [Training(nets, size, lr=0.01)]
    elif variant == "ddfast, one by one":
        trainings = [Training([net], size, lr=0.01) for net in nets]
    else:
        optimizers = [torch.optim.SGD(net.to(memory_format=last).parameters(), lr=0.01) for net in nets]

    def step():
        if trainings:
            for training, part in zip(trainings, torch.arange(networks).chunk(len(trainings)), strict=True):
                of = slice(int(part[0]), int(part[-1]) + 1)
                training.step(augment.side_by_side(images[of], draws[of]), labels[of])
            return [torch.cat([t.optimizer.param_groups[0]["params"][0].grad.flatten() for t in trainings])]
        for n, (net, optimizer) in enumerate(zip(nets, optimizers, strict=True)):
            x = augment.side_by_side(images[n : n + 1], draws[n : n + 1])[0].contiguous(memory_format=last)
            optimizer.zero_grad()
            cross_entropy(net(x), labels[n]).backward()
            optimizer.step()
        return [torch.cat([p.grad.flatten() for net in nets for p in net.parameters()])]

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
