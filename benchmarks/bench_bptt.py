"""An outer step of truncated BPTT through Adam (RaT-BPTT) at CIFAR-10's size, against a loop with create_graph."""

import sys

import pytest
import torch
from ddfast.optimizers import Adam
from torch.func import functional_call
from torch.nn.functional import cross_entropy
from torch.nn.utils import parameters_to_vector

from benchmarks.bench_meta_gradient import plain_convnet
from benchmarks.measure import DEVICE, relative_error
from ddfast import data_loss, unroll
from ddfast.networks import ConvNet

K, SIDE, RATE = 10, 32, 1e-3
ROWS = {"eager": "create_graph through Adam", "ddfast": "ddfast"}
SIZES = {  # images, steps, window, real images
    "ipc1": (10, 200, 60, 1000),
    "ipc10": (100, 200, 60, 5000),
}


def make(variant, size="ipc1", window=None, small=False, dtype="float32"):
    """A call that computes the gradient in the images of one outer step with one network."""
    dtype = getattr(torch, dtype)
    count, all_steps, length, of_real = SIZES[size]
    steps, window, real = (6, 3, 20) if small else (all_steps, window or length, of_real)
    numbers = torch.Generator().manual_seed(0)

    def drawn(n):
        return torch.randn(n, 3, SIDE, SIDE, generator=numbers, dtype=torch.float64).to(DEVICE, dtype)

    images, labels = drawn(count), (torch.arange(count) % K).to(DEVICE)
    others, classes = drawn(real), (torch.arange(real) % K).to(DEVICE)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        plain_net = plain_convnet(SIDE).to(DEVICE, dtype)
    fused = ConvNet(3, K, image_size=(SIDE, SIDE)).to(DEVICE, dtype)
    start = parameters_to_vector(plain_net.parameters()).detach()

    def ours():
        leaf = images.clone().requires_grad_()
        rate = torch.tensor(RATE, dtype=dtype, device=DEVICE)
        options = {"syn_steps": steps, "optimizer": Adam(), "detached_steps": steps - window}
        end = unroll(fused, start, leaf, labels, rate, **options)
        return list(torch.autograd.grad(data_loss(fused, end, (others, classes)), leaf))

    def loss(theta, x, y):
        return cross_entropy(functional_call(plain_net, theta, (x,)), y)

    def plain():
        leaf = images.clone().requires_grad_()
        theta = {name: p.detach().clone().requires_grad_() for name, p in plain_net.named_parameters()}
        m, v = ({name: torch.zeros_like(p) for name, p in theta.items()} for _ in range(2))
        for k in range(1, steps + 1):
            inside = k > steps - window
            if not inside or k == steps - window + 1:
                theta = {name: p.detach().requires_grad_() for name, p in theta.items()}
            slopes = torch.autograd.grad(loss(theta, leaf, labels), list(theta.values()), create_graph=inside)
            for (name, p), g in zip(list(theta.items()), slopes, strict=True):
                m[name], v[name] = 0.9 * m[name] + 0.1 * g, 0.999 * v[name] + 0.001 * g * g
                used = v[name] > 0
                root = torch.where(used, torch.where(used, v[name], 1.0).sqrt(), 0.0) / (1 - 0.999**k) ** 0.5
                theta[name] = p - RATE * m[name] / (1 - 0.9**k) / (root + 1e-8)
        with torch.no_grad():
            total = {name: torch.zeros_like(p) for name, p in theta.items()}
        at = {name: p.detach().requires_grad_() for name, p in theta.items()}
        for x, y in zip(others.split(256), classes.split(256), strict=True):
            slopes = torch.autograd.grad(loss(at, x, y) * (len(x) / real), list(at.values()))
            for name, slope in zip(total, slopes, strict=True):
                total[name] += slope
        return list(torch.autograd.grad(list(theta.values()), leaf, list(total.values())))

    return ours if variant == "ddfast" else plain


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("variant", ROWS)
def test_outer_step(measured, size, variant):
    count, steps, window, real = SIZES[size]
    group = f"an outer step of RaT-BPTT, {count} images, window {window} of {steps} steps of Adam, {real} real images"
    against, rounds = {"variant": "eager"}, 3 if size == "ipc1" else 1
    info = measured(
        sys.modules[__name__], group, ROWS[variant], against=against, rounds=rounds, variant=variant, size=size
    )
    small = {"size": "ipc1", "small": True}
    info["error"] = relative_error(make(variant, **small)(), make("eager", **small, dtype="float64")())


@pytest.mark.parametrize("window", [15, 30, 60, 120])
def test_memory_of_windows(measured, window):
    group = "an outer step of RaT-BPTT by ddfast, 10 images, 200 steps, 1000 real images, by window"
    measured(sys.modules[__name__], group, str(window), variant="ddfast", size="ipc1", window=window, rounds=1)
