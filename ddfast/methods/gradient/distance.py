"""How far the gradients of two minibatches are apart, and the slope of that in the first."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

EPS = 1e-6


class GradientDistance:
    """D(g, h) of flat gradients of one network, and ∂D/∂g.

    kind "layerwise": of every output unit's row of weights 1 − cos, summed over units and layers (DC: Zhao et al. 2021,
    eq. 9); a filter is a row, and parameters of one axis (biases, norms) count nothing. "mse": the sum of squared
    differences. "cosine": 1 − cos of the whole gradients. Products of norms get 1e-6 added.
    """

    def __init__(self, network: nn.Module, kind: str) -> None:
        self._distance = DISTANCES[kind]
        self._shapes = [p.shape for p in network.parameters()]

    def __call__(self, g: Tensor, h: Tensor) -> tuple[Tensor, Tensor]:  # [P] each -> [], ∂D/∂g [P]
        with torch.enable_grad():
            g = g.detach().requires_grad_()
            distance = self._distance(self._split(g), self._split(h.detach()))
            (slope,) = torch.autograd.grad(distance, g)
        return distance.detach(), slope

    def _split(self, flat: Tensor) -> list[Tensor]:
        pieces = flat.split([shape.numel() for shape in self._shapes])
        return [piece.view(shape) for piece, shape in zip(pieces, self._shapes, strict=True)]


def _layerwise(g: list[Tensor], h: list[Tensor]) -> Tensor:
    total = g[0].new_zeros(())
    for a, b in zip(g, h, strict=True):
        if a.dim() > 1:
            total = total + _from_cosine(a.flatten(1), b.flatten(1)).sum()
    return total


def _from_cosine(a: Tensor, b: Tensor) -> Tensor:  # [R, n] each -> [R]
    return 1 - (a * b).sum(1) / (a.norm(dim=1) * b.norm(dim=1) + EPS)


def _mse(g: list[Tensor], h: list[Tensor]) -> Tensor:
    return torch.stack([(a - b).square().sum() for a, b in zip(g, h, strict=True)]).sum()


def _cosine(g: list[Tensor], h: list[Tensor]) -> Tensor:
    a, b = (torch.cat([piece.flatten() for piece in pieces])[None] for pieces in (g, h))
    return _from_cosine(a, b)[0]


DISTANCES: dict[str, Callable[[list[Tensor], list[Tensor]], Tensor]] = {
    "layerwise": _layerwise,
    "mse": _mse,
    "cosine": _cosine,
}
