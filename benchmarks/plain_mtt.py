"""MTT in plain PyTorch, as its paper has it: what benchmarks.equal_minutes runs beside ours.

Experts, draws and outer updates are the same; only the unroll is another one: PyTorch's own layers, a graph that keeps
every step (`create_graph=True`), and one backward through it.
"""

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.functional import cross_entropy

from ddfast.data.augment import Draws
from ddfast.methods import MTT
from ddfast.methods.learned_set import IMAGES

WIDTH = 128


def convnet(channels: int, num_classes: int, size: tuple[int, int]) -> nn.Module:
    """The field's ConvNet: blocks of convolution, instance norm, ReLU and average pooling, and a classifier."""
    blocks: list[nn.Module] = []
    depth = round(math.log2(size[0] / 4))
    for block in range(depth):
        blocks.append(nn.Conv2d(channels if block == 0 else WIDTH, WIDTH, 3, padding=1))
        blocks += [nn.GroupNorm(WIDTH, WIDTH), nn.ReLU(), nn.AvgPool2d(2)]
    return nn.Sequential(*blocks, nn.Flatten(), nn.Linear(WIDTH * (size[0] >> depth) * (size[1] >> depth), num_classes))


class PlainMTT(MTT):
    """Cazenavette et al. 2022, Algorithm 1, lines 6 to 17: θ ← θ − α ∇ℓ(A(D_syn), θ), N times."""

    def unrolled(
        self,
        now: Any,
        labels: Tensor,
        begin: Tensor,  # [1, P]
        target: Tensor,
        batches: Tensor | None,
        rows: Tensor | None,
        rolls: Tensor | None,
    ) -> tuple[Tensor, None]:
        images, rate = now[IMAGES], now[self.learned.lr_at]
        about = self.learned.about
        network = convnet(images.shape[1], len(about.class_names), about.image_size).to(images.device)
        names, shapes = zip(*((name, p.shape) for name, p in network.named_parameters()), strict=True)
        theta = begin[0].clone().requires_grad_()
        for n in range(self.settings.syn_steps):
            x, y = (images, labels) if batches is None else (images[batches[n]], labels[batches[n]])
            x = x if rows is None else Draws(rows)(x, n)
            pieces = theta.split([shape.numel() for shape in shapes])
            parameters = {name: p.view(s) for name, p, s in zip(names, pieces, shapes, strict=True)}
            loss = cross_entropy(functional_call(network, parameters, (x,)), y)
            (gradient,) = torch.autograd.grad(loss, theta, create_graph=True)
            theta = theta - rate * gradient
        return theta[None], None
