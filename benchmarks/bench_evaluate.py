"""Epochs of five evaluation networks on a synthetic set, DSA included: PyTorch's layers, one by one, side by side."""

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

OPTIONS = {"lr": 0.01, "momentum": 0.9, "weight_decay": 5e-4}
ROWS = {"eager": "eager, one by one", "alone": "ddfast, one by one", "together": "ddfast, side by side"}
SETTINGS = {
    "5 networks, 10 images, 32 px, 20 epochs": {"networks": 5, "images": 10, "side": 32, "epochs": 20},
    "5 networks, 100 images, 32 px, 4 epochs": {"networks": 5, "images": 100, "side": 32, "epochs": 4},
}


def make(variant, networks, images, side, epochs, small=False, dtype="float32"):
    """A call that trains all networks for some epochs of one minibatch; it returns the parameters' change."""
    epochs, dtype, numbers = 1 if small else epochs, getattr(torch, dtype), generator(0, "numbers")
    pixels = torch.randn(images, 3, side, side, generator=numbers).to(DEVICE, dtype)
    labels, size, augment = (torch.arange(images) % 10).to(DEVICE), (side, side), DSA()
    starts = []
    with torch.random.fork_rng():
        for seed in range(networks):
            torch.manual_seed(seed)
            starts.append(torch.nn.utils.parameters_to_vector(plain_convnet(side).parameters()).detach())

    def build(start):
        net = plain_convnet(side) if variant == "eager" else ConvNet(3, 10, image_size=size)
        torch.nn.utils.vector_to_parameters(start.clone(), net.parameters())
        return net.to(DEVICE, dtype)

    def train(nets, draws):
        training = None if variant == "eager" else Training(nets, torch.Size((3, *size)), **OPTIONS)
        optimizer = torch.optim.SGD(nets[0].parameters(), **OPTIONS) if training is None else None
        for _ in range(epochs):
            x = augment.side_by_side(pixels.expand(len(nets), *pixels.shape), draws)
            if training is not None:
                training.step(x, labels.expand(len(nets), images))
            else:
                optimizer.zero_grad()
                cross_entropy(nets[0](x[0]), labels).backward()
                optimizer.step()
        nets = nets if training is None else training.write()
        return [torch.nn.utils.parameters_to_vector(net.parameters()).detach() for net in nets]

    def call():
        groups = [range(networks)] if variant == "together" else [[n] for n in range(networks)]
        ends = []
        for group in groups:
            ends += train([build(starts[n]) for n in group], [generator(n, "draws") for n in group])
        return [end.double().cpu() - start.double() for start, end in zip(starts, ends, strict=True)]

    return call


@pytest.mark.parametrize("setting", SETTINGS)
@pytest.mark.parametrize("variant", ROWS)
def test_evaluation(measured, setting, variant):
    case = SETTINGS[setting]
    group = f"evaluation, {setting}"
    info = measured(sys.modules[__name__], group, ROWS[variant], against={"variant": "eager"}, variant=variant, **case)
    few = case | {"networks": 2, "images": 10, "small": True}
    info["error"] = relative_error(make(variant, **few)(), make("eager", **few, dtype="float64")())
