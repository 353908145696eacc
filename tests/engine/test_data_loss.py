"""The loss on real images: value and gradient are those of plain PyTorch, whatever comes at once."""

import pytest
import torch
from ddfast.optimizers import Adam
from torch.func import functional_call
from torch.nn.functional import cross_entropy
from torch.nn.utils import parameters_to_vector

import ddfast
from ddfast.engine.students import ConvNetStudent
from tests.conftest import normal, relative_error, uniform
from tests.engine.test_adjoints import EXACT, setting
from tests.networks_for_tests import SIDE, K, make


def real(count=7, soft=False):
    labels = uniform(count, K, seed=4) if soft else torch.arange(count) % K
    return normal(count, 3, SIDE, SIDE, seed=5), labels


def plain(network, theta, images, labels):
    """The same by torch.func."""
    pieces, parameters = theta.split([p.numel() for p in network.parameters()]), {}
    for (name, parameter), piece in zip(network.named_parameters(), pieces, strict=True):
        parameters[name] = piece.view(parameter.shape)
    return cross_entropy(functional_call(network, parameters, (images,)), labels)


@pytest.mark.parametrize("name", ["convnet", "convnet-sigmoid-groupnorm-maxpooling"])
@pytest.mark.parametrize("soft", [False, True])
@pytest.mark.parametrize("at_once", [2, 100])
def test_it_is_the_mean_cross_entropy_and_its_gradient(name, soft, at_once):
    network = make(name)
    theta = parameters_to_vector(network.parameters()).detach().requires_grad_()
    images, labels = real(soft=soft)
    got = ddfast.data_loss(network, theta, (images, labels), at_once=at_once)
    expected = plain(network, theta, images, labels)
    assert relative_error(got, expected) < EXACT
    (gradient,) = torch.autograd.grad(3 * got, theta)
    assert relative_error(gradient, torch.autograd.grad(3 * expected, theta)[0]) < EXACT


def test_pairs_of_a_loader_are_one_mean_however_they_are_cut():
    network = make("convnet")
    theta = torch.stack([parameters_to_vector(network.parameters()).detach(), normal(*_size(network), seed=3)])
    images, labels = real()
    whole = ddfast.data_loss(ConvNetStudent(network), theta, (images, labels))
    pieces = ((images[a:b], labels[a:b]) for a, b in ((0, 1), (1, 5), (5, 7)))
    assert whole.shape == (2,) and relative_error(ddfast.data_loss(network, theta, pieces), whole) < EXACT


def _size(network):
    return parameters_to_vector(network.parameters()).shape


def test_the_gradient_of_training_by_adam_in_the_images_is_that_of_a_plain_loop():
    """Bilevel: real images are classified by what training on the synthetic ones gives."""
    network = make("convnet-sigmoid-groupnorm-maxpooling")
    start, images, labels, lr = setting(network)
    end = ddfast.unroll(network, start, images, labels, lr, syn_steps=3, optimizer=Adam())
    loss = ddfast.data_loss(network, end, real())
    theta, m, v = start, 0, 0
    for k in range(1, 4):
        (g,) = torch.autograd.grad(plain(network, theta, images, labels), theta, create_graph=True)
        m, v = 0.9 * m + 0.1 * g, 0.999 * v + 0.001 * g * g
        root = torch.where(v > 0, torch.where(v > 0, v, 1.0).sqrt(), 0.0) / (1 - 0.999**k) ** 0.5
        theta = theta - lr * m / (1 - 0.9**k) / (root + 1e-8)
    expected = plain(network, theta, *real())
    wanted = [images, lr]
    assert relative_error(loss, expected) < EXACT
    for one, other in zip(torch.autograd.grad(loss, wanted), torch.autograd.grad(expected, wanted), strict=True):
        assert relative_error(one, other) < EXACT


@pytest.mark.parametrize(
    "batches, error, sentence",
    [
        (None, TypeError, r"batches: expected \(images, labels\), or many of them, got NoneType"),
        ([], ValueError, "batches: expected at least one image, got none"),
        ([3], TypeError, "batches: expected pairs of images and labels, got int"),
        ((normal(2, 3), torch.zeros(2).long()), ValueError, r"batches: expected images \[B, C, H, W\]"),
        ((normal(2, 3, 8, 8), torch.zeros(3).long()), ValueError, "batches: expected 2 labels for 2 images"),
        ((normal(2, 3, 8, 8), torch.zeros(2).int()), TypeError, "batches: expected int64 labels"),
        ((normal(2, 3, 8, 8), torch.tensor([0, 9])), ValueError, "labels: expected classes 0 to"),
    ],
)
def test_bad_input_is_refused_in_one_sentence(batches, error, sentence):
    network = make("convnet")
    theta = parameters_to_vector(network.parameters()).detach()
    with pytest.raises(error, match=sentence):
        ddfast.data_loss(network, theta, batches)
    with pytest.raises(ValueError, match=r"parameters: expected \[P\] or \[S, P\]"):
        ddfast.data_loss(network, theta[:5], batches)
    with pytest.raises(TypeError, match=r"student: expected an nn.Module or a Student, got str"):
        ddfast.data_loss("convnet", theta, batches)
