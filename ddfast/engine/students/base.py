"""What an adjoint needs of a student: the gradient of one inner step's loss, and its directional derivative."""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn


@dataclass
class Step:
    """One inner step of one unroll, by identity: its replay must see what its first run saw.

    `memory` is the student's own: what the first call of `grad` leaves there (random states, buffers, modes), later
    calls for the same step start from. With `keep` a student may leave there what saves its replay work.
    """

    memory: Any = None
    keep: bool = False


class Wanted(NamedTuple):
    """Which derivatives of ⟨g, σ⟩ a caller wants; the others may be None."""

    parameters: bool = True
    images: bool = True
    labels: bool = True


class GradientJvp(NamedTuple):
    """Directional derivatives of the gradient g = ∇_θ ℓ along σ."""

    slope: Tensor  # [S], ⟨g, σ⟩
    parameters: Tensor | None  # [S, P], ∂⟨g, σ⟩/∂θ = H σ
    images: Tensor | None  # [B, C, H, W], ∂⟨g, σ⟩/∂x, summed over students
    labels: Tensor | None  # [B, K], ∂⟨g, σ⟩/∂y for soft labels, summed over students


class StepBytes(NamedTuple):
    """Memory of one inner step above its arguments, in bytes: of its three calls at their peak, results included, and
    of what a kept step leaves."""

    grad: int
    grad_jvp: int
    grad_jvp_of_kept: int
    kept: int  # 0: the student keeps nothing


class Student(ABC):
    """A network with flat parameters θ, seen through two functions; ℓ is the mean cross-entropy of a minibatch."""

    num_parameters: int  # P
    layer_sizes: tuple[int, ...] | None = None  # parameters of each layer, in order; None where it cannot say

    @abstractmethod
    def grad(
        self,
        parameters: Tensor,  # [S, P]
        images: Tensor,  # [B, C, H, W], seen by every student
        labels: Tensor,  # int64 [B], or target weights [B, K]
        *,
        step: Step,
        create_graph: bool = False,
    ) -> tuple[Tensor, Tensor]:  # losses [S], g [S, P]
        """Loss and gradient ∇_θ ℓ(θ; x, y) of every student.

        With `create_graph` the gradient is differentiable, for FullUnroll; a student without autograd graphs raises.
        """

    @abstractmethod
    def grad_jvp(
        self,
        parameters: Tensor,  # [S, P]
        images: Tensor,  # [B, C, H, W]
        labels: Tensor,  # int64 [B], or target weights [B, K]
        direction: Tensor,  # σ [S, P]
        *,
        step: Step,
        wanted: Wanted,
    ) -> GradientJvp:
        """Directional derivatives along σ of the gradient that `grad` gave for the same step."""

    def step_bytes(
        self,
        images: torch.Size,  # [B, C, H, W]
        students: int,  # S
        dtype: torch.dtype,
        on_gpu: bool = False,
    ) -> StepBytes | None:
        """What a step needs, for the planner; None where the student cannot say."""
        return None

    def why_no_micro_batches(
        self,
        images: torch.Size | None = None,  # [B, C, H, W]; None: not known yet
    ) -> str | None:
        """Why a minibatch cannot be cut into chunks; None where its images do not see each other."""
        return f"{type(self).__name__} does not say that the images of a minibatch are independent"


def layer_sizes(network: nn.Module) -> tuple[int, ...]:
    """How many parameters each module holds itself, weight and bias together, in the order of the flat parameters."""
    seen: set[nn.Parameter] = set()
    sizes = []
    for module in network.modules():
        own = [p for p in module.parameters(recurse=False) if p not in seen]
        seen.update(own)
        sizes += [sum(p.numel() for p in own)] if own else []
    return tuple(sizes)


def check_labels(
    labels: Tensor,  # int64 [B], or target weights [B, K]; or of S students, [S, B] or [S, B, K]
    K: int,
) -> None:
    """ValueError for labels that are not of K classes."""
    if labels.is_floating_point():
        if labels.shape[-1] != K:
            raise ValueError(
                f"labels: expected target weights [I, {K}] for a network of {K} classes, got {labels.shape[-1]}"
            )
    elif labels.device.type == "cpu" and not 0 <= int(labels.min()) <= int(labels.max()) < K:  # elsewhere: a wait
        raise ValueError(f"labels: expected classes 0 to {K - 1}, got {int(labels.min())} to {int(labels.max())}")
