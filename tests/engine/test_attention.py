"""Networks with attention: exact in every adjoint, though PyTorch's fused kernels have no second derivative."""

import pytest
import torch
from torch import nn
from torch.func import functional_call
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import cross_entropy, scaled_dot_product_attention
from torchvision.models import VisionTransformer

import ddfast
from ddfast.engine.adjoints import CheckpointedUnroll, FullUnroll

T, RATE = 3, 0.05


class Tokens(nn.Module):
    """Images [B, 3, 8, 8] as 16 tokens [B, 16, 12], a layer that mixes them, and a classifier."""

    def __init__(self, layer: nn.Module):
        super().__init__()
        self.layer, self.head = layer, nn.Linear(12, 3)

    def forward(self, images):
        tokens = images.unfold(2, 2, 2).unfold(3, 2, 2).permute(0, 2, 3, 1, 4, 5).reshape(len(images), 16, 12)
        return self.head(self.layer(tokens).mean(1))


class SelfAttention(nn.Module):
    def __init__(self, **options):
        super().__init__()
        self.attention = nn.MultiheadAttention(12, 2, batch_first=True)
        self.options = options

    def forward(self, tokens):
        return tokens + self.attention(tokens, tokens, tokens, **self.options)[0]


class Plain(nn.Module):
    def __init__(self):
        super().__init__()
        self.queries = nn.Linear(12, 36)

    def forward(self, tokens):
        q, k, v = self.queries(tokens).unflatten(2, (3, 2, 6)).permute(2, 0, 3, 1, 4)
        return tokens + scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).flatten(2)


NETWORKS = {
    "MultiheadAttention": lambda: Tokens(SelfAttention(need_weights=False)),
    "MultiheadAttention with weights": lambda: Tokens(SelfAttention()),
    "TransformerEncoderLayer": lambda: Tokens(nn.TransformerEncoderLayer(12, 2, 16, dropout=0.0, batch_first=True)),
    "TransformerEncoderLayer, eval": lambda: Tokens(nn.TransformerEncoderLayer(12, 2, 16, batch_first=True)).eval(),
    "scaled_dot_product_attention": lambda: Tokens(Plain()),
    "torchvision's ViT": lambda: VisionTransformer(8, 4, 1, 2, 12, 16, num_classes=3),
}


@pytest.fixture(params=NETWORKS)
def network(request):
    torch.manual_seed(0)
    return NETWORKS[request.param]()


def inputs(network, dtype):
    generator = torch.Generator().manual_seed(1)
    P = sum(p.numel() for p in network.parameters())
    start, target = (0.2 * torch.randn(P, generator=generator, dtype=dtype) for _ in range(2))
    images = torch.randn(4, 3, 8, 8, generator=generator, dtype=dtype).requires_grad_()
    return start.requires_grad_(), target, images, torch.tensor([0, 1, 2, 0])


def plainly(network, start, target, images, labels, rate):
    """The loop as it is written in the papers, on the backend that can be differentiated twice."""
    names, shapes = zip(*((name, p.shape) for name, p in network.named_parameters()), strict=True)
    theta = start
    with sdpa_kernel(SDPBackend.MATH):
        for _ in range(T):
            pieces = theta.split([shape.numel() for shape in shapes])
            parameters = {name: piece.view(shape) for name, piece, shape in zip(names, pieces, shapes, strict=True)}
            loss = cross_entropy(functional_call(network, parameters, (images,)), labels)
            (gradient,) = torch.autograd.grad(loss, theta, create_graph=True)
            theta = theta - rate * gradient
    return (theta - target).square().sum() / (start - target).square().sum()


@pytest.mark.parametrize("adjoint", [CheckpointedUnroll(), FullUnroll()], ids=["checkpointed", "full"])
def test_attention_is_exact_in_every_adjoint(network, adjoint):
    network = network.double()
    start, target, images, labels = inputs(network, torch.float64)
    rate = torch.tensor(RATE, dtype=torch.float64, requires_grad=True)
    expected = torch.autograd.grad(plainly(network, start, target, images, labels, rate), (images, rate, start))
    loss = ddfast.match_trajectory(network, start, target, images, labels, rate, syn_steps=T, adjoint=adjoint)
    for got, wanted in zip(torch.autograd.grad(loss, (images, rate, start)), expected, strict=True):
        assert wanted.abs().max() > 0 and torch.allclose(got, wanted, rtol=1e-9, atol=1e-12)


def test_in_float32_too_and_the_backend_that_was_chosen_stays(network):
    """float32 is what PyTorch's fused kernels are for; one step, in which rounding stays small."""
    start, target, images, labels = inputs(network, torch.float32)
    chosen = torch.backends.cuda.flash_sdp_enabled(), torch.backends.cuda.mem_efficient_sdp_enabled()
    loss = ddfast.match_trajectory(network, start, target, images, labels, RATE, syn_steps=1)
    (got,) = torch.autograd.grad(loss, images)
    assert chosen == (torch.backends.cuda.flash_sdp_enabled(), torch.backends.cuda.mem_efficient_sdp_enabled())
    network = network.double()
    start, target = start.detach().double(), target.double()
    double = images.detach().double().requires_grad_()
    loss = ddfast.match_trajectory(network, start, target, double, labels, RATE, syn_steps=1)
    (wanted,) = torch.autograd.grad(loss, double)
    assert (got - wanted).abs().max() < 1e-3 * wanted.abs().max()


def test_a_replay_draws_the_dropout_of_attention_again():
    torch.manual_seed(0)
    network = Tokens(nn.TransformerEncoderLayer(12, 2, 16, dropout=0.3, batch_first=True)).double()
    start, target, images, labels = inputs(network, torch.float64)
    gradients = []
    for adjoint in (CheckpointedUnroll(), FullUnroll()):
        torch.manual_seed(3)
        loss = ddfast.match_trajectory(network, start, target, images, labels, RATE, syn_steps=T, adjoint=adjoint)
        gradients.append(torch.autograd.grad(loss, images)[0])
    assert torch.allclose(*gradients, rtol=1e-9, atol=1e-12)
