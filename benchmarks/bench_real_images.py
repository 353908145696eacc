"""An image step of DC, DSA and DM at the sizes of CIFAR-10, 10 images per class, against the loop of their code."""

import sys

import pytest
import torch
from torch.nn.functional import cross_entropy
from torch.utils.data import TensorDataset

from benchmarks.bench_meta_gradient import plain_convnet
from benchmarks.measure import DEVICE, relative_error
from ddfast.data import SyntheticSet, load_dataset
from ddfast.methods import METHODS, Resources
from ddfast.methods.gradient.distance import GradientDistance
from ddfast.methods.siamese import siamese
from ddfast.networks import ConvNet

K, IPC, SIDE, REAL = 10, 10, 32, 256
ROWS = {"eager": "the plain loop", "ddfast": "ddfast"}


def make(variant, method, small=False, dtype="float32"):
    """A call that computes the image gradient of one step with one network."""
    dtype, side = getattr(torch, dtype), SIDE
    numbers = torch.Generator().manual_seed(0)
    labels = torch.arange(K).repeat_interleave(300)
    train = TensorDataset(torch.rand(len(labels), 3, side, side, generator=numbers), labels)
    data, device = load_dataset((train, TensorDataset(*train[:K]))), torch.device(DEVICE)
    images = torch.randn(K * IPC, 3, side, side, generator=numbers, dtype=torch.float64).to(device, dtype)
    classes = torch.arange(K).repeat_interleave(IPC).to(device)
    settings = METHODS[method].Settings(batch_real=16 if small else REAL)
    synthetic = SyntheticSet(images.float().cpu(), classes.cpu(), None, data.class_names, data.preprocessing)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        state = plain_convnet(side).state_dict()
        for name, value in state.items():
            state[name] = value + 0.1 * torch.randn_like(value)

    def create(generator):
        network = ConvNet(3, K, image_size=(side, side))
        for p, value in zip(network.parameters(), state.values(), strict=True):
            p.data.copy_(value)
        return network.to(dtype)

    resources = Resources(create(None), torch.Generator(), create, device=device, data=data)
    of = METHODS[method](settings, synthetic, resources)
    take = of.real._batches.take
    of.real._batches.take = lambda indices: (take(indices)[0].to(dtype), take(indices)[1])

    members = [(k, (classes == k).nonzero()[:, 0]) for k in range(K)]

    def ours():
        of.generator.manual_seed(0)
        leaf = images.clone().requires_grad_()
        if method == "dm":
            return torch.autograd.grad(of.loss(leaf, classes), leaf)
        net = of.new_network()
        return [of.matched(net, GradientDistance(net, "layerwise"), leaf, members)[1]]

    def plain():
        of.generator.manual_seed(0)
        leaf, total = images.clone().requires_grad_(), 0
        net = plain_convnet(side)
        net.load_state_dict(state)
        net.to(device, dtype)
        for k in range(K):
            real = of.real.of_class(k, settings.batch_real)
            real, synthetic = siamese(of.augment, real, leaf[classes == k], of.generator)
            if method == "dm":
                with torch.no_grad():
                    target = net[:-1](real).mean(0)
                total = total + (net[:-1](synthetic).mean(0) - target).square().sum()
                continue
            g, h = (
                torch.autograd.grad(
                    cross_entropy(net(x), torch.full((len(x),), k, device=device)),
                    list(net.parameters()),
                    create_graph=x is synthetic,
                )
                for x in (synthetic, real)
            )
            for a, b in zip(g, h, strict=True):
                if a.dim() > 1:
                    a, b = a.flatten(1), b.flatten(1)
                    total = total + (1 - (a * b).sum(1) / (a.norm(dim=1) * b.norm(dim=1) + 1e-6)).sum()
        return torch.autograd.grad(total, leaf)

    return ours if variant == "ddfast" else plain


@pytest.mark.parametrize("method", ["dc", "dsa", "dm"])
@pytest.mark.parametrize("variant", ROWS)
def test_image_step(measured, method, variant):
    group = f"an image step of {method}, {K} classes, {IPC} images per class, {REAL} real ones"
    against = {"variant": "eager"}
    info = measured(
        sys.modules[__name__], group, ROWS[variant], against=against, rounds=5, variant=variant, method=method
    )
    small = {"method": method, "small": True}
    info["error"] = relative_error(make(variant, **small)(), make("eager", **small, dtype="float64")())
