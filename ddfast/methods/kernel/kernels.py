"""Kernels of infinitely wide fully connected ReLU networks, in closed form, and regression with them."""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

KERNELS = ("ntk", "nngp")
BLOCK_BYTES = 64 * 2**20  # of one [n, m] matrix of a block
W_VARIANCE, B_VARIANCE = 2.0, 0.01  # σ_w², σ_b²: W_std √2, b_std 0.1


def of_relu(k: Tensor, of_x: Tensor, of_y: Tensor) -> tuple[Tensor, Tensor]:
    """E[relu(u) relu(v)] and E[relu'(u) relu'(v)] of Gaussian u, v of covariance k, variances broadcast to it:
    √(σ_u² σ_v²) (sin φ + (π − φ) cos φ) / 2π and (π − φ) / 2π, with φ the angle of their correlation (Cho & Saul 2009).
    """
    scale = (of_x * of_y).sqrt()
    # where it is 1, on the diagonal, it stays 1 whatever x is: no gradient is right, that of the angle infinite
    cosine = (k / scale).clamp(-1 + 1e-14, 1 - 1e-14)
    angle = torch.arccos(cosine)
    moment = scale * (angle.sin() + (math.pi - angle) * cosine) / (2 * math.pi)
    return moment, (math.pi - angle) / (2 * math.pi)


class AnyKernel(Protocol):
    """What KIP takes: points [n, …] of images, the matrix of all pairs, and blocks of rows for it."""

    def points(self, images: Tensor) -> Tensor: ...

    def __call__(self, x: Tensor, y: Tensor) -> Tensor: ...

    def blocks(self, x: Tensor, support: int) -> Iterator[Tensor]: ...


@dataclass(frozen=True)
class Kernel:
    """That of a network of `depth` hidden ReLU layers and a linear one, in the NTK parameterisation.

    NNGP: K⁰ = σ_b² + σ_w² ⟨x, x'⟩/d,  Kˡ⁺¹ = σ_b² + σ_w²/(2π) √(Kˡ(x,x) Kˡ(x',x')) (sin φ + (π − φ) cos φ), with φ the
    angle whose cosine is Kˡ(x,x') / √(Kˡ(x,x) Kˡ(x',x')) (Cho & Saul 2009; Lee et al. 2018). NTK: Θ⁰ = K⁰,
    Θˡ⁺¹ = Kˡ⁺¹ + σ_w² Θˡ (π − φ)/(2π) (Jacot et al. 2018).
    """

    kind: str = "ntk"
    depth: int = 1

    def points(self, images: Tensor) -> Tensor:  # [I, C, H, W] -> float64 [I, C H W]
        """Images as the kernel takes them."""
        return images.flatten(1).double()

    def __call__(self, x: Tensor, y: Tensor) -> Tensor:  # [n, d], [m, d] -> [n, m]
        """The matrix of all pairs, differentiable in both."""
        d = x.shape[1]
        k = B_VARIANCE + W_VARIANCE * (x @ y.T) / d
        of_x, of_y = (B_VARIANCE + W_VARIANCE * z.square().sum(1) / d for z in (x, y))
        theta = k
        for _ in range(self.depth):
            moment, slope = of_relu(k, of_x[:, None], of_y)
            k = B_VARIANCE + W_VARIANCE * moment
            of_x, of_y = (B_VARIANCE + W_VARIANCE * diagonal / 2 for diagonal in (of_x, of_y))
            theta = k + W_VARIANCE * theta * slope
        return theta if self.kind == "ntk" else k

    def blocks(self, x: Tensor, support: int) -> Iterator[Tensor]:  # [n, d] -> [b, d] each
        """Rows of x, as many as a matrix with `support` columns may have."""
        return iter(x.split(max(1, BLOCK_BYTES // (8 * support))))


def solved(
    kernel: AnyKernel,
    support: Tensor,  # [s, …]
    targets: Tensor,  # [s, K]
    reg: float,
) -> Tensor:  # [s, K]
    """(K_ss + reg · tr(K_ss)/s · I)⁻¹ y_s, with which K_ts predicts (KIP: Nguyen et al. 2021, eq. 2)."""
    k = kernel(support, support)
    n = len(support)
    return torch.linalg.solve(k + reg * k.diagonal().mean() * torch.eye(n, dtype=k.dtype, device=k.device), targets)


@torch.no_grad()
def predicted(kernel: AnyKernel, support: Tensor, weights: Tensor, x: Tensor) -> Tensor:  # [n, K]
    """K_xs · weights, block by block."""
    return torch.cat([kernel(rows, support) @ weights for rows in kernel.blocks(x, len(support))])
