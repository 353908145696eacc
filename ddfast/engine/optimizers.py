"""The optimisers of an unroll's inner steps: a step of one, and that step's adjoint (docs/math.md)."""

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from ddfast.ops import AdamSettings, adam_reverse, adam_step


class OptimizerState(NamedTuple):
    """Where an optimiser is between two steps."""

    moments: tuple[Tensor, ...]  # like θ, [P] or [S, P]: the velocity of SGD with momentum; m and v of Adam
    steps: int  # made since the moments were 0


class Reversed(NamedTuple):
    """Cotangents before a step, all but what passes through its gradient."""

    direction: Tensor  # σ [S, P], the cotangent of g_n: ⟨g_n, σ⟩ is what is still to be differentiated
    parameters: Tensor  # of θ_n [S, P]
    moments: tuple[Tensor, ...]  # of the moments before the step
    lr: Tensor  # [], of the learning rate


class Optimizer(ABC):
    """How an inner step makes θ_{n+1} and the moments after it of θ_n, its gradient g_n and the moments before it."""

    weight_decay: float

    @property
    @abstractmethod
    def num_moments(self) -> int:
        """Tensors like θ that it keeps from step to step."""

    def begin(self, theta: Tensor) -> tuple[Tensor, ...]:  # like θ
        """The moments before the first step."""
        return tuple(torch.zeros_like(theta) for _ in range(self.num_moments))

    @abstractmethod
    def step(
        self,
        theta: Tensor,  # θ_n [S, P]
        moments: tuple[Tensor, ...],  # [S, P] each
        gradient: Tensor,  # g_n [S, P]
        lr: Tensor,  # α []
        k: int,  # steps since the moments were 0, this one included
    ) -> tuple[Tensor, tuple[Tensor, ...]]:  # θ_{n+1}, the moments after the step
        """One step, differentiable in all tensors."""

    @abstractmethod
    def reverse(
        self,
        theta: Tensor,  # θ_n [S, P]
        after: tuple[Tensor, ...],  # the moments after the step
        gradient: Tensor,  # g_n [S, P]
        lr: Tensor,  # α []
        k: int,
        by_theta: Tensor,  # λ [S, P], the cotangent of θ_{n+1}
        by_moments: tuple[Tensor, ...],  # the cotangents of the moments after the step
    ) -> Reversed:
        """The adjoint of `step`."""


@dataclass(frozen=True)
class SGD(Optimizer):
    """v_{n+1} = μ v_n + g_n + w θ_n,  θ_{n+1} = θ_n − α v_{n+1}: torch.optim.SGD without dampening.

    Errors: ValueError for a momentum or weight decay that is negative or not finite.
    """

    momentum: float = 0.0  # μ
    weight_decay: float = 0.0  # w

    def __post_init__(self) -> None:
        _expect_not_negative(momentum=self.momentum, weight_decay=self.weight_decay)

    @property
    def num_moments(self) -> int:
        """Without momentum nothing is kept."""
        return int(self.momentum > 0)

    def step(
        self, theta: Tensor, moments: tuple[Tensor, ...], gradient: Tensor, lr: Tensor, k: int
    ) -> tuple[Tensor, tuple[Tensor, ...]]:
        """One step, rounded as ops.unroll does."""
        if self.weight_decay:
            gradient = torch.add(gradient, theta, alpha=self.weight_decay)
        if self.momentum:
            gradient = torch.add(gradient, moments[0], alpha=self.momentum)
        return torch.addcmul(theta, lr, gradient, value=-1), (gradient,) if self.momentum else ()

    def reverse(
        self,
        theta: Tensor,
        after: tuple[Tensor, ...],
        gradient: Tensor,
        lr: Tensor,
        k: int,
        by_theta: Tensor,
        by_moments: tuple[Tensor, ...],
    ) -> Reversed:
        """Its adjoint, by the velocity's own cotangent."""
        if not self.momentum:
            after, by_moments = (gradient + self.weight_decay * theta,), (0,)
        sigma = by_moments[0] - lr * by_theta
        before = (self.momentum * sigma,) if self.momentum else ()
        return Reversed(sigma, by_theta + self.weight_decay * sigma, before, -(by_theta * after[0]).sum())


@dataclass(frozen=True)
class Adam(Optimizer):
    """m ← β₁ m + (1 − β₁) u,  v ← β₂ v + (1 − β₂) u²,  θ ← θ − α m̂ / (√v̂ + ε): torch.optim.Adam, with u = g + w θ.

    m̂ = m/(1 − β₁^k) and v̂ = v/(1 − β₂^k) after k steps (Kingma & Ba 2015, Algorithm 1). Where v is 0, for no gradient
    ever came, its root has no derivative: 0 is taken, as the step there is 0.

    Errors: ValueError for betas that are not from 0 to below 1, and for ε or a weight decay that is negative.
    """

    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8
    weight_decay: float = 0.0  # w

    decoupled = False  # AdamW's decay

    def __post_init__(self) -> None:
        _expect_not_negative(eps=self.eps, weight_decay=self.weight_decay)
        if not isinstance(self.betas, tuple | list) or len(self.betas) != 2:
            raise ValueError(f"betas: expected two numbers, got {self.betas!r}")
        for beta in self.betas:
            if isinstance(beta, bool) or not isinstance(beta, int | float) or not 0 <= beta < 1:
                raise ValueError(f"betas: expected numbers from 0 to below 1, got {self.betas!r}")

    @property
    def num_moments(self) -> int:
        """m and v."""
        return 2

    @property
    def settings(self) -> AdamSettings:
        """As the ops take them."""
        added, own = (0.0, self.weight_decay) if self.decoupled else (self.weight_decay, 0.0)
        return AdamSettings(float(self.betas[0]), float(self.betas[1]), float(self.eps), float(added), float(own))

    def step(
        self, theta: Tensor, moments: tuple[Tensor, ...], gradient: Tensor, lr: Tensor, k: int
    ) -> tuple[Tensor, tuple[Tensor, ...]]:
        """One step, rounded as ops.unroll_adam does."""
        before_m, before_v = moments
        theta, m, v = adam_step(theta, before_m, before_v, gradient, lr, k, self.settings)
        return theta, (m, v)

    def reverse(
        self,
        theta: Tensor,
        after: tuple[Tensor, ...],
        gradient: Tensor,
        lr: Tensor,
        k: int,
        by_theta: Tensor,
        by_moments: tuple[Tensor, ...],
    ) -> Reversed:
        """Its adjoint: the cotangents of m and v, and through both that of the gradient."""
        (m, v), (by_m, by_v) = after, by_moments
        found = adam_reverse(theta, m, v, gradient, lr, k, self.settings, by_theta, by_m, by_v)
        return Reversed(found.direction, found.parameters, (found.m, found.v), found.lr)


@dataclass(frozen=True)
class AdamW(Adam):
    """Adam whose weight decay acts on θ itself: θ ← θ − α w θ beside the step of u = g (Loshchilov & Hutter 2019)."""

    weight_decay: float = 0.01

    decoupled = True


def _expect_not_negative(**values: float) -> None:
    for name, value in values.items():
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < math.inf:
            raise ValueError(f"{name}: expected at least 0, got {value!r}")
