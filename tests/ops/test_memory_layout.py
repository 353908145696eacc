"""Ops and modules give maps back in the memory layout in which they took them, derivatives of both orders as well."""

import pytest
import torch
from torch import nn
from torch.nn.utils import parameters_to_vector

import ddfast
from ddfast.data import DSA, SeededAugment
from ddfast.networks import ConvNet, NormReLUPool
from ddfast.ops import ConvNetLayout, convnet_grad_jvp, dsa_augment, norm_relu_pool
from ddfast.ops.dsa_augment import IDENTITY
from tests.conftest import normal, relative_error
from tests.networks_for_tests import SIDE, K, make

B, C, H, W = 4, 3, 8, 6
STRATEGY = "color+crop+cutout+flip+rotate"
ROWS = torch.tensor([list(IDENTITY.values())] * B, dtype=torch.float64) + 0.125


def generator():
    return torch.Generator().manual_seed(0)


def norm_of(z):
    return norm_relu_pool(z, torch.full((C,), 1.5).to(z), torch.full((C,), 0.1).to(z))


OF_MAPS = {  # [B, C, H, W] -> maps
    "norm_relu_pool": norm_of,
    "NormReLUPool": NormReLUPool(C).double(),
    "dsa_augment": lambda x: dsa_augment(x, ROWS.to(x.device)),
    "a Draw": DSA(STRATEGY).draw(B, (H, W), generator()),
    "no Draw": DSA("none").draw(B, (H, W), generator()),
    "the Draws of steps": lambda x: DSA(STRATEGY).draw_steps(2, B, (H, W), generator())(x, 1),
    "a SeededAugment": lambda x: SeededAugment(lambda x: x * torch.rand(1, dtype=x.dtype).to(x.device), seed=0)(x, 0),
    "blocks of a ConvNet": ConvNet(C, K, 4, 1, (H, W)).double().features,
    "blocks with batch norm": ConvNet(C, K, 4, 1, (H, W), norm="batchnorm").double().features,
    "blocks with max pooling": ConvNet(C, K, 4, 1, (H, W), activation="sigmoid", pooling="maxpooling")
    .double()
    .features,
}
LAYOUTS = {
    "contiguous": lambda x: x.contiguous(),
    "channels-last": lambda x: x.contiguous(memory_format=torch.channels_last),
    "rows of larger images": lambda x: torch.cat([x, x], 2)[:, :, : x.shape[2]],
    "images of a larger set": lambda x: torch.stack([x, x], 1)[:, 0],
}


def expected_layout(layout):
    return torch.channels_last if layout == "channels-last" else torch.contiguous_format


@pytest.mark.parametrize("kind", OF_MAPS)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_maps_and_their_derivatives_come_back_in_the_layout_of_the_maps(kind, layout, device):
    function = OF_MAPS[kind].to(device) if isinstance(OF_MAPS[kind], nn.Module) else OF_MAPS[kind]
    wanted, results = expected_layout(layout), []
    for arranged in (LAYOUTS[layout], LAYOUTS["contiguous"]):
        x = arranged(normal(B, C, H, W, device=device)).requires_grad_()
        y = function(x)
        g = normal(*y.shape, seed=1, device=device).to(memory_format=wanted).requires_grad_()
        (first,) = torch.autograd.grad(y, x, g, create_graph=True)
        (second,) = torch.autograd.grad(first.square().sum(), g)
        results.append([y, first, second])
    for got, expected in zip(*results, strict=True):
        assert relative_error(got.detach(), expected.detach()) < 1e-9
    y, first, second = results[0]
    assert y.is_contiguous(memory_format=wanted) or kind == "no Draw"  # the images themselves
    if not kind.startswith(("blocks", "no ", "a Seeded")):  # of those PyTorch's own layers decide
        assert first.is_contiguous(memory_format=wanted) and second.is_contiguous(memory_format=wanted)


@pytest.mark.parametrize("layout", ["contiguous", "channels-last"])
def test_the_second_derivative_in_the_maps_has_their_layout(layout, device):
    x = LAYOUTS[layout](normal(B, C, H, W, device=device)).requires_grad_()
    (first,) = torch.autograd.grad(norm_of(x).sum(), x, create_graph=True)
    (second,) = torch.autograd.grad(first.square().sum(), x)
    assert second.is_contiguous(memory_format=expected_layout(layout)) and second.abs().max() > 0


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("size", [(8, 6), (3, 2), (2, 2)])
def test_contiguous_maps_can_be_viewed_as_rows_afterwards(channels, size):
    x = normal(B, channels, *size).requires_grad_()
    y = NormReLUPool(channels).double()(x)
    assert y.view(B, -1).shape == (B, channels * (size[0] // 2) * (size[1] // 2))
    (gradient,) = torch.autograd.grad(y.sum(), x)
    assert gradient.view(B, -1).shape == (B, channels * size[0] * size[1])
    rows = torch.tensor([list(IDENTITY.values())] * B).double()
    assert relative_error(dsa_augment(x, rows).view(B, -1).detach(), x.view(B, -1).detach()) < 1e-9


def test_a_network_of_the_field_that_views_its_features_takes_the_fused_layer():
    class Field(nn.Module):
        def __init__(self, fused):
            super().__init__()
            layers = [NormReLUPool(4)] if fused else [nn.GroupNorm(4, 4), nn.ReLU(), nn.AvgPool2d(2)]
            self.features = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), *layers)
            self.classifier = nn.Linear(4 * SIDE * SIDE // 4, K)

        def forward(self, images):
            maps = self.features(images)
            return self.classifier(maps.view(maps.size(0), -1))

    networks = [Field(fused).double() for fused in (True, False)]
    start = parameters_to_vector(networks[0].parameters()).detach()
    gradients = []
    for network in networks:
        images = normal(4, 3, SIDE, SIDE, seed=1).requires_grad_()
        last = ddfast.unroll(network, start, images, torch.arange(4) % K, 0.1, syn_steps=3)
        gradients += torch.autograd.grad(last.square().sum(), images)
    assert relative_error(*gradients) < 1e-9


def test_minibatches_of_several_networks_are_augmented_in_their_layout():
    images = normal(2, B, C, H, W)
    assert DSA(STRATEGY).side_by_side(images, [generator(), generator()]).is_contiguous()


@pytest.mark.parametrize("layout", ["contiguous", "channels-last"])
@pytest.mark.parametrize("name", ["convnet", "dropout"])
@pytest.mark.parametrize("options", [{"syn_steps": 2}, {"batches": [[0, 1], [2]]}], ids=["all", "minibatches"])
@pytest.mark.parametrize("augment", [None, DSA(STRATEGY).draw_steps(2, B, (SIDE, SIDE), generator())])
def test_the_images_gradient_has_their_layout(layout, name, options, augment, device):
    network = make(name).to(device)
    start = parameters_to_vector(network.parameters()).detach()
    images = LAYOUTS[layout](normal(B, 3, SIDE, SIDE, device=device)).requires_grad_()
    labels = torch.arange(B, device=device) % K
    last = ddfast.unroll(network, start, images, labels, 0.1, augment=augment, **options)
    (gradient,) = torch.autograd.grad(last.sum(), images)
    assert gradient.is_contiguous(memory_format=expected_layout(layout))


@pytest.mark.parametrize("layout", ["contiguous", "channels-last"])
def test_directional_derivatives_in_images_have_their_layout(layout, device):
    network, images = make("convnet").to(device), LAYOUTS[layout](normal(B, 3, SIDE, SIDE, device=device))
    start = parameters_to_vector(network.parameters()).detach()[None]
    kind = ConvNetLayout(8, 2, K)
    arguments = start, images, torch.arange(B, device=device) % K, start, kind
    derivative = convnet_grad_jvp(*arguments)[2]
    assert derivative.is_contiguous(memory_format=expected_layout(layout)) and derivative.abs().max() > 0
    assert convnet_grad_jvp(*arguments, wanted=(True, False, False))[2].shape == (0,)


@pytest.mark.parametrize("layout", ["contiguous", "channels-last"])
def test_a_compiled_fused_layer_keeps_the_layout(layout):
    layer = torch.compile(NormReLUPool(C).double(), backend="aot_eager", fullgraph=True)
    x = LAYOUTS[layout](normal(B, C, H, W)).requires_grad_()
    y = layer(x)
    y.sum().backward()
    assert y.is_contiguous(memory_format=expected_layout(layout)) and x.grad is not None
