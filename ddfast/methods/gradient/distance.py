"""How far the gradients of two minibatches are apart, and the slope of that in the first."""

import torch
from torch import Tensor, nn

from ddfast.ops import gradient_distance

DISTANCES = {"layerwise": "cosine", "cosine": "cosine", "mse": "squared", "l1": "absolute"}  # what the op calls them
WEIGHTS_OF = ("all", "convolutions")


class GradientDistance:
    """D(g, h) of flat gradients of one network, and ∂D/∂g.

    kind "layerwise": of every output unit's row of weights 1 − cos, summed over units and layers (DC: Zhao et al. 2021,
    eq. 9); a filter is a row, and parameters of one axis (biases, norms) count nothing. "cosine": 1 − cos of the whole
    gradients. Products of norms get 1e-6 added. "mse", "l1": the sum of squared or absolute differences.

    of: "all" parameters, or the weights of "convolutions" alone (IDC: Kim et al. 2022).
    """

    def __init__(self, network: nn.Module, kind: str, of: str = "all") -> None:
        self._kind, self._layers = DISTANCES[kind], _layers(network, whole=kind != "layerwise", of=of)
        if not self._layers:
            raise ValueError("network: it has no convolution whose gradients could be matched; take another")

    def __call__(self, g: Tensor, h: Tensor) -> tuple[Tensor, Tensor]:  # [S, P] each -> [S], ∂D/∂g [S, P]
        with torch.enable_grad():
            g = g.detach().requires_grad_()
            distance = gradient_distance(g, h.detach(), self._layers, self._kind)
            (slope,) = torch.autograd.grad(distance.sum(), g)
        return distance.detach(), slope


def _layers(network: nn.Module, *, whole: bool, of: str) -> list[tuple[int, int, int]]:
    """Offset, rows and length of what is compared; `whole`: all in one row, where it is in one piece."""
    convolutions = {m.weight for m in network.modules() if isinstance(m, nn.modules.conv._ConvNd)}
    layers, offset = [], 0
    for parameter in network.parameters():
        size = parameter.numel()
        if (parameter in convolutions if of == "convolutions" else whole or parameter.dim() > 1) and size:
            layers.append((offset, 1, size) if whole else (offset, len(parameter), size // len(parameter)))
        offset += size
    return [(0, 1, offset)] if whole and of == "all" else layers
