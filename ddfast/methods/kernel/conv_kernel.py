"""The kernel of an infinitely wide ConvNet, for images of a few pixels: it holds covariances of all pairs of pixels."""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import pad
from torch.utils.checkpoint import checkpoint

from ddfast.methods.kernel.kernels import B_VARIANCE, BLOCK_BYTES, W_VARIANCE, of_relu

LARGEST = 16  # pixels a side: a pair of images takes side⁴ numbers


@dataclass(frozen=True)
class ConvKernel:
    """That of `depth` blocks of 3×3 convolution (zeros around), ReLU and 2×2 average pool, and a linear layer on the
    last map, in the NTK parameterisation.

    With K[p, p'] the covariance of pixels p of x and p' of x', K⁰ that of the images' channels: a convolution is
    σ_b² + σ_w²/9 Σ_δ K[p+δ, p'+δ], a ReLU as in `Kernel` pixel by pixel, a pool the mean over both pixels, the linear
    layer σ_b² + σ_w² mean_p K[p, p]; Θ likewise without σ_b², plus K (Arora et al. 2019, "On exact computation with an
    infinitely wide neural net", section 4; Novak et al. 2019). Of n and m images n m side⁴ numbers are held, block by
    block, and computed again in a backward.
    """

    kind: str = "ntk"
    depth: int = 1

    def points(self, images: Tensor) -> Tensor:  # [I, C, H, W] -> float64, the same
        """Images as the kernel takes them."""
        return images.double()

    def __call__(self, x: Tensor, y: Tensor) -> Tensor:  # [n, C, H, W], [m, C, H, W] -> [n, m]
        """The matrix of all pairs, differentiable in both."""
        own = self._diagonals(y)
        rows = self.blocks(x, len(y))
        return torch.cat([checkpoint(self._rows, part, y, *own, use_reentrant=False) for part in rows])

    def blocks(self, x: Tensor, support: int) -> Iterator[Tensor]:  # [n, C, H, W] -> [b, C, H, W] each
        """Rows of x, as many as a matrix with `support` columns may have."""
        return iter(x.split(max(1, BLOCK_BYTES // (8 * support * x[0, 0].numel() ** 2))))

    def _rows(self, x: Tensor, y: Tensor, *of_y: Tensor) -> Tensor:  # [b, C, H, W], [m, C, H, W] -> [b, m]
        k, of_x = torch.einsum("nchw,mcij->nmhwij", x, y) / x.shape[1], self._diagonals(x)
        theta = torch.zeros_like(k)
        for vx, vy in zip(of_x, of_y, strict=True):
            k = _convolved(k)
            theta = k + B_VARIANCE + _convolved(theta)
            k, slope = of_relu(k + B_VARIANCE, vx[:, None, :, :, None, None], vy[None, :, None, None])
            k, theta = _pooled(k), _pooled(theta * slope)
        k, theta = (W_VARIANCE * torch.einsum("nmhwhw->nm", one) / k[0, 0, :, :, 0, 0].numel() for one in (k, theta))
        k = k + B_VARIANCE
        return k + theta if self.kind == "ntk" else k

    def _diagonals(self, x: Tensor) -> list[Tensor]:  # [n, C, H, W] -> depth × [n, H, W], of smaller and smaller maps
        """The variance of every pixel before each ReLU."""
        k, found = torch.einsum("nchw,ncij->nhwij", x, x) / x.shape[1], []
        for _ in range(self.depth):
            k = _convolved(k) + B_VARIANCE
            found.append(torch.einsum("nhwhw->nhw", k))
            k = _pooled(of_relu(k, found[-1][:, :, :, None, None], found[-1][:, None, None])[0])
        return found


def _convolved(k: Tensor) -> Tensor:  # [..., H, W, H, W] -> the same
    """σ_w²/9 Σ_δ K[p+δ, p'+δ]: the shifts of rows, then those of columns."""
    for a, b, around in ((-4, -2, (0, 0, 1, 1, 0, 0, 1, 1)), (-3, -1, (1, 1, 0, 0, 1, 1))):
        size, wide = k.shape[a], pad(k, around)
        k = sum(wide.narrow(a, shift, size).narrow(b, shift, size) for shift in range(3))
    return W_VARIANCE / 9 * k


def _pooled(k: Tensor) -> Tensor:  # [..., H, W, H, W] -> [..., H/2, W/2, H/2, W/2]
    """The mean over 2×2 pixels of both; what is left of an odd side goes."""
    first = k.dim() - 4
    for axis in range(first, first + 4):
        half = k.shape[axis] // 2
        k = k.narrow(axis, 0, 2 * half).unflatten(axis, (half, 2)).mean(axis + 1)
    return k
