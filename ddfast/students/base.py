"""What an adjoint needs of a student: the gradient of one inner step's loss, and its directional derivative."""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, NamedTuple

from torch import Tensor


@dataclass
class Step:
    """One inner step of one unroll, by identity: its replay must see what its first run saw.

    `memory` is the student's own: what the first call of `grad` leaves there (random states, buffers, modes), later
    calls for the same step start from.
    """

    memory: Any = None


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


class Student(ABC):
    """A network with flat parameters θ, seen through two functions; ℓ is the mean cross-entropy of a minibatch."""

    num_parameters: int  # P

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
