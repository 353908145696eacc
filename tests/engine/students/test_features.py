"""Features of any network: fused or by autograd, what they are, and what they leave alone."""

import pytest
import torch
from torch import nn

from ddfast.engine.students import Features
from ddfast.networks import NETWORKS, ConvNet, create
from tests.conftest import normal, relative_error

SIZE = {"channels": 3, "num_classes": 4, "image_size": (32, 32)}


def made(name, seed=0):
    return create(name, **SIZE, generator=torch.Generator().manual_seed(seed)).double()


@pytest.mark.parametrize("name", ["convnet:width=8", "convnet:width=8:norm=batchnorm", "mlp", "resnet18", "vgg11"])
def test_features_times_the_last_layer_are_the_logits(name):
    net, images = made(name), normal(3, 3, 32, 32)
    features = Features([net], images.shape[1:])
    assert features.mixes == ("batchnorm" in name)
    buffers = [b.clone() for b in net.buffers()]
    got = features(images)
    assert all(torch.equal(a, b) for a, b in zip(buffers, net.buffers(), strict=True))
    last = [module for module in net.modules() if isinstance(module, nn.Linear)][-1]
    assert got.shape == (1, 3, last.in_features)
    assert relative_error(last(got[0]), net(images)) < 1e-9


def test_several_networks_are_stacked_and_fused_where_they_can_be():
    nets, images = [made("convnet:width=8", seed) for seed in range(3)], normal(2, 3, 32, 32)
    together = Features(nets, images.shape[1:])
    assert together._student is not None
    alone = torch.cat([Features([net], images.shape[1:])(images) for net in nets])
    assert relative_error(together(images), alone) < 1e-12
    images.requires_grad_()
    (gradient,) = torch.autograd.grad(together(images).square().sum(), images)
    plain = torch.stack([net.features(images).flatten(1) for net in nets])
    (expected,) = torch.autograd.grad(plain.square().sum(), images)
    assert relative_error(gradient, expected) < 1e-9
    assert all(p.grad is None for net in nets for p in net.parameters())


def test_a_network_without_a_last_linear_layer_is_refused():
    class Without(nn.Module):
        def __init__(self):
            super().__init__()
            self.convolution = nn.Conv2d(3, 4, 3)

        def forward(self, x):
            return self.convolution(x).mean((2, 3))

    with pytest.raises(ValueError, match="network: Without has no linear layer at its end"):
        Features([Without()], torch.Size((3, 8, 8)))(torch.zeros(1, 3, 8, 8))
    assert "lenet" in NETWORKS and ConvNet(width=8).features is not None
