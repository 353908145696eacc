"""A step of Adam on flat parameters, and its adjoint (docs/math.md)."""

from typing import NamedTuple

import torch
from torch import Tensor


class AdamSettings(NamedTuple):
    """What a step of Adam needs beside tensors."""

    beta1: float
    beta2: float
    eps: float
    added: float  # weight decay that is added to the gradient
    own: float  # weight decay of the parameters themselves, AdamW's


def adam_step(
    theta: Tensor,  # θ_n [S, P]
    m: Tensor,
    v: Tensor,
    gradient: Tensor,  # g_n
    lr: Tensor,  # []
    k: int,  # steps since the moments were 0, this one included
    settings: AdamSettings,
) -> tuple[Tensor, Tensor, Tensor]:  # θ_{n+1}, the moments after the step
    """m ← β₁ m + (1 − β₁) u,  v ← β₂ v + (1 − β₂) u²,  θ ← θ − α m̂ / (√v̂ + ε) − α own θ, with u = g + added θ."""
    beta1, beta2, eps, added, own = settings
    if added:
        gradient = torch.add(gradient, theta, alpha=added)
    m = torch.add(m * beta1, gradient, alpha=1 - beta1)
    v = torch.addcmul(v * beta2, gradient, gradient, value=1 - beta2)
    if own:
        theta = torch.addcmul(theta, lr, theta, value=-own)
    corrected = v / (1 - beta2**k)
    if corrected.requires_grad:  # where v is 0 its root has no derivative, and 0 is taken
        used = corrected > 0
        root = torch.where(used, torch.where(used, corrected, 1.0).sqrt(), 0.0)
    else:
        root = corrected.sqrt()
    return torch.addcmul(theta, lr, m / (1 - beta1**k) / (root + eps), value=-1), m, v


class AdamReversed(NamedTuple):
    """Cotangents before a step of Adam, all but what passes through its gradient."""

    direction: Tensor  # of g_n, [S, P]
    parameters: Tensor
    m: Tensor
    v: Tensor
    lr: Tensor  # []


def adam_reverse(
    theta: Tensor,  # θ_n [S, P]
    m: Tensor,  # after the step
    v: Tensor,  # after the step
    gradient: Tensor,  # g_n
    lr: Tensor,  # []
    k: int,
    settings: AdamSettings,
    by_theta: Tensor,  # the cotangent of θ_{n+1}
    by_m: Tensor,  # of the moments after the step
    by_v: Tensor,
) -> AdamReversed:
    """The adjoint of `adam_step`."""
    beta1, beta2, eps, added, own = settings
    if added:
        gradient = torch.add(gradient, theta, alpha=added)
    correction1, correction2 = 1 - beta1**k, 1 - beta2**k
    root = (v / correction2).sqrt()
    denominator = root + eps
    moved = m / correction1 / denominator  # what α multiplies
    by_lr = -(by_theta * moved).sum()
    by_mean = by_theta * -lr / denominator
    # moved falls by moved / denominator · d√v̂, and d√v̂ = dv / (2 √v̂ (1 − β₂^k))
    by_root = torch.where(v > 0, -by_mean * moved / (2 * correction2 * root), 0.0)
    by_m, by_v = by_m + by_mean / correction1, by_v + by_root
    direction = torch.addcmul((1 - beta1) * by_m, gradient, by_v, value=2 * (1 - beta2))
    before = by_theta
    if own:
        by_lr = by_lr - own * (by_theta * theta).sum()
        before = torch.addcmul(before, lr, by_theta, value=-own)
    if added:
        before = torch.add(before, direction, alpha=added)
    return AdamReversed(direction, before, beta1 * by_m, beta2 * by_v, by_lr)
