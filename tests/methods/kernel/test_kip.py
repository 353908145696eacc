"""Kernels of wide networks, and KIP: against finite networks, numerical derivatives, and the unblocked loss."""

import json
import math
from itertools import pairwise

import pytest
import torch
from torch.nn.functional import one_hot

import ddfast
from ddfast.data import SyntheticSet, load_dataset
from ddfast.methods import KIP, Resources
from ddfast.methods.kernel import conv_kernel, kernels
from ddfast.methods.kernel.conv_kernel import ConvKernel
from ddfast.methods.kernel.kernels import B_VARIANCE, KERNELS, W_VARIANCE, Kernel, predicted, solved
from ddfast.methods.kernel.kip import KIPSettings
from tests.conftest import normal, relative_error


def of_a_finite_network(x, y, depth, width, kind):
    """⟨∇f(x), ∇f(y)⟩, or E f(x) f(y), of a random ReLU network in the NTK parameterisation, by its definition."""
    g = torch.Generator().manual_seed(0)
    sizes = [x.shape[1], *[width] * depth, 1]
    weights = [torch.randn(a, b, generator=g, dtype=torch.float64) for a, b in pairwise(sizes)]
    biases = [torch.randn(b, generator=g, dtype=torch.float64) for b in sizes[1:]]
    layers = [(w.requires_grad_(), b.requires_grad_()) for w, b in zip(weights, biases, strict=True)]

    def hidden(z):
        for w, b in layers[:-1]:
            z = (math.sqrt(W_VARIANCE / len(w)) * z @ w + math.sqrt(B_VARIANCE) * b).relu()
        return z

    if kind == "nngp":
        h = [hidden(z) for z in (x, y)]
        return B_VARIANCE + W_VARIANCE * h[0] @ h[1].T / width
    flat = [p for layer in layers for p in layer]

    def jacobian(z):
        w, b = layers[-1]
        out = math.sqrt(W_VARIANCE / len(w)) * hidden(z) @ w + math.sqrt(B_VARIANCE) * b
        rows = [torch.autograd.grad(value, flat, retain_graph=True) for value in out[:, 0]]
        return torch.stack([torch.cat([slope.flatten() for slope in row]) for row in rows])

    return jacobian(x) @ jacobian(y).T


@pytest.mark.parametrize("kind", KERNELS)
@pytest.mark.parametrize("depth", [1, 2])
def test_a_wide_network_comes_near_its_kernel(kind, depth):
    x, y = normal(3, 5), normal(4, 5, seed=1)
    near = of_a_finite_network(x, y, depth, 3000, kind).detach()
    assert relative_error(Kernel(kind, depth)(x, y), near) < 0.05
    assert relative_error(Kernel(kind, depth)(x, y), of_a_finite_network(x, y, depth, 30, kind).detach()) > 1e-3


@pytest.mark.parametrize("kind", KERNELS)
@pytest.mark.parametrize("depth", [1, 3])
def test_its_derivative_is_right_on_the_diagonal_too(kind, depth):
    x = normal(3, 4).requires_grad_()
    assert torch.autograd.gradcheck(lambda x: Kernel(kind, depth)(x, x), x)
    assert torch.autograd.gradcheck(lambda y: Kernel(kind, depth)(x.detach(), y), normal(2, 4, seed=3).requires_grad_())


def of_a_finite_convnet(x, y, depth, width, kind, seed):
    """As `of_a_finite_network`, of a ConvNet without norms."""
    g, channels = torch.Generator().manual_seed(seed), [x.shape[1], *[width] * depth]

    def drawn(*shape):
        return torch.randn(*shape, generator=g, dtype=torch.float64).requires_grad_()

    layers = [(drawn(b, a, 3, 3), drawn(b)) for a, b in pairwise(channels)]
    last = drawn(width * (x.shape[2] // 2**depth) * (x.shape[3] // 2**depth))

    def features(z):
        for w, b in layers:
            scale = math.sqrt(W_VARIANCE / (9 * w.shape[1]))
            z = torch.nn.functional.conv2d(z, scale * w, math.sqrt(B_VARIANCE) * b, padding=1)
            z = torch.nn.functional.avg_pool2d(z.relu(), 2)
        return z.flatten(1)

    if kind == "nngp":
        h = [features(z) for z in (x, y)]
        return B_VARIANCE + W_VARIANCE * (h[0] @ h[1].T / len(last)).detach()
    flat = [p for layer in layers for p in layer] + [last]

    def jacobian(z):
        out = math.sqrt(W_VARIANCE / len(last)) * features(z) @ last
        rows = [torch.autograd.grad(value, flat, retain_graph=True) for value in out]
        return torch.stack([torch.cat([slope.flatten() for slope in row]) for row in rows])

    return jacobian(x) @ jacobian(y).T + B_VARIANCE  # of the last bias


@pytest.mark.parametrize("kind", KERNELS)
@pytest.mark.parametrize("depth, size", [(1, (4, 4)), (2, (6, 5))])
def test_a_wide_convnet_comes_near_its_kernel(kind, depth, size):
    x, y = normal(3, 2, *size), normal(2, 2, *size, seed=1)
    near = torch.stack([of_a_finite_convnet(x, y, depth, 400, kind, seed) for seed in range(10)]).mean(0)
    exact = ConvKernel(kind, depth)(x, y)
    assert exact.shape == (3, 2) and relative_error(exact, near) < 0.03
    assert relative_error(exact, of_a_finite_convnet(x, y, depth, 5, kind, 0)) > 1e-2


@pytest.mark.parametrize("kind", KERNELS)
def test_the_derivative_of_a_convnets_kernel_is_right_on_the_diagonal_too(kind, monkeypatch):
    x, y = normal(2, 1, 4, 4).requires_grad_(), normal(3, 1, 4, 4, seed=1)
    assert torch.autograd.gradcheck(lambda x: ConvKernel(kind, 2)(x, x), x)
    whole = ConvKernel(kind, 2)(y, y)
    torch.testing.assert_close(whole, whole.T)
    monkeypatch.setattr(conv_kernel, "BLOCK_BYTES", 8 * 3 * 16**2)  # a row at a time
    assert len(list(ConvKernel(kind, 2).blocks(y, 3))) == 3
    torch.testing.assert_close(ConvKernel(kind, 2)(y, y), whole)


def test_a_kernel_of_convolutions_learns_small_images_and_refuses_large_ones(tmp_path):
    how = {
        "method": "kip",
        "kernel_network": "conv",
        "iterations": 5,
        "batch_real": 60,
        "network": "mlp",
        "num_eval": 1,
    }
    done = ddfast.distill("digits", image_size=8, output=tmp_path / "run", ipc=1, eval_epochs=2, **how)
    assert done.history[-1]["loss"] < done.history[0]["loss"]
    accuracy = json.loads((tmp_path / "run" / "summary.json").read_text())["kernel_accuracy"]
    assert accuracy > 40
    pair = [(torch.rand(9, 1, 20, 20), torch.arange(9) % 3)] * 2
    with pytest.raises(
        ValueError, match=r"kernel_network: conv holds all pairs .* at most 16 pixels a side, got 20 × 20"
    ):
        ddfast.distill(pair, output=tmp_path / "large", ipc=1, **how)
    with pytest.raises(ValueError, match="kernel_depth: images of 8 pixels cannot be halved 4 times"):
        ddfast.distill("digits", image_size=8, kernel_depth=4, output=tmp_path / "deep", ipc=1, **how)


def method_on(pair, soft=False, **settings):
    data, generator = load_dataset(pair), torch.Generator().manual_seed(0)
    settings = KIPSettings(
        batch_real=9, init="noise", **settings, **({"labels": "soft", "lr_label": 0.1} if soft else {})
    )
    labels = 5.0 * torch.eye(3).double()[torch.arange(6) % 3] if soft else torch.arange(6) % 3
    synthetic = SyntheticSet(normal(6, 1, 16, 16), labels, None, data.class_names, data.preprocessing)
    return KIP(settings, synthetic, Resources(torch.nn.Linear(1, 1), generator, data=data))


@pytest.mark.parametrize("soft", [False, True])
@pytest.mark.parametrize("block", [8, 10**6])
def test_the_gradient_is_that_of_the_loss_in_one_piece(pair, soft, block, monkeypatch):
    monkeypatch.setattr(kernels, "BLOCK_BYTES", 8 * block)
    method = method_on(pair, soft, kernel_depth=2, kernel_reg=1e-3)
    before, caught, update = method.generator.get_state(), [], method.learned.update
    method.learned.update = lambda taken, loss, gradients: (
        caught.extend([loss, list(gradients)]) or update(taken, loss, gradients)
    )
    taken = method.learned.take()
    leaves = [value.detach().clone().requires_grad_() for value in taken.values]
    record = method.step()
    method.generator.set_state(before)
    x, y = method._real()
    assert x.dtype == torch.float64 and len(x) == 9 and y.sum(1).abs().max() < 1e-12
    s = leaves[0].flatten(1)
    targets = leaves[1] / 5 - 1 / 3 if soft else one_hot(taken.labels, 3).double() - 1 / 3
    kernel = Kernel("ntk", 2)
    k_ss = kernel(s, s)
    ridge = 1e-3 * k_ss.diagonal().sum() / 6
    guess = kernel(x, s) @ torch.linalg.inv(k_ss + ridge * torch.eye(6).double()) @ targets
    loss = (guess - y).square().mean() / 2
    assert relative_error(caught[0], loss.detach()) < 1e-9
    assert abs(record["accuracy"] - 100 * (guess.argmax(1) == y.argmax(1)).double().mean()) < 1e-9
    for got, wanted in zip(caught[1], torch.autograd.grad(loss, leaves), strict=True):
        assert relative_error(got, wanted) < 1e-7


def test_predictions_of_blocks_are_those_of_all_at_once(monkeypatch):
    kernel, support, x = Kernel(), normal(4, 5), normal(9, 5, seed=1)
    weights = solved(kernel, support, normal(4, 3, seed=2), 1e-3)
    whole = predicted(kernel, support, weights, x)
    monkeypatch.setattr(kernels, "BLOCK_BYTES", 8 * 4 * 2)
    assert relative_error(predicted(kernel, support, weights, x), whole) < 1e-12


def test_a_run_falls_and_says_the_accuracy_of_its_kernel(tmp_path):
    options = {"num_eval": 1, "eval_epochs": 2, "device": "cpu", "network": "mlp", "iterations": 15, "ipc": 1}
    run = ddfast.distill("digits", method="kip", output=tmp_path / "run", **options)
    losses = [record["loss"] for record in run.history]
    assert losses[-1] < 0.8 * losses[0]
    summary = (tmp_path / "run" / "summary.json").read_text()
    assert '"kernel_accuracy"' in summary
    soft = ddfast.distill("digits", method="kip", labels="soft", lr_label=0.1, output=tmp_path / "soft", **options)
    assert soft.synthetic.is_soft and soft.history[-1]["loss"] < losses[0]
