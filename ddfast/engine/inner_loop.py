"""The inner loop of an unroll: its steps, and a sweep over them without a graph."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor

from ddfast.engine.optimizers import Optimizer
from ddfast.engine.planner import Plan, UnrollSize
from ddfast.engine.students import Step, Student

# One with `rows` [T, B, 16], the parameters of ops.dsa_augment for every step, may run inside ops.unroll.
Augment = Callable[[Tensor, int], Tensor]
Moments = tuple[Tensor, ...]  # [S, P] each, of an optimiser


@dataclass(frozen=True)
class Unroll:
    """T steps of an optimiser on a synthetic set, all but the tensors that it is differentiable in.

    x_n = A_n(X[b_n]),  g_n = ∇_θ ℓ(θ_n; x_n, Y[b_n]),  θ_{n+1}, moments after it = step(θ_n, moments, g_n, α)
    """

    student: Student
    syn_steps: int  # T
    batches: Tensor | tuple[Tensor, ...] | None  # int64 [T, B], or T of [B_n]; None: all images in every step
    augment: Augment | None  # A(images, n), the same for the same n
    optimizer: Optimizer
    return_states: bool
    first: int = 0  # steps of the optimiser before step 0
    keeps_moments: bool = False  # whether the adjoint needs them, and gradients

    def indices(self, n: int) -> Tensor | None:  # int64 [B]
        """The images of step n; None for all."""
        return None if self.batches is None else self.batches[n]

    def take(
        self,
        values: Tensor,  # [I, …]
        n: int,
    ) -> Tensor:  # [B, …]
        """The minibatch of step n."""
        return values if self.batches is None else values[self.batches[n]]

    def images(
        self,
        images: Tensor,  # [I, C, H, W]
        n: int,
    ) -> Tensor:  # [B, C, H, W]
        """The augmented minibatch of step n."""
        return self.augmented(self.take(images, n), n)

    def augmented(
        self,
        taken: Tensor,  # [B, C, H, W]
        n: int,
    ) -> Tensor:  # [B, C, H, W]
        """A_n of a minibatch."""
        if self.augment is None:
            return taken
        result = self.augment(taken.clone(), n)  # it may work in place
        if not isinstance(result, Tensor) or len(result) != len(taken):
            got = list(result.shape) if isinstance(result, Tensor) else type(result).__name__
            raise ValueError(f"augment: expected {len(taken)} images like those it was given, got {got}")
        return result

    def step(
        self,
        theta: Tensor,  # θ_n [S, P]
        moments: Moments,
        images: Tensor,  # [I, C, H, W]
        labels: Tensor,  # int64 [I] or target weights [I, K]
        lr: Tensor,  # []
        n: int,
        step: Step,
    ) -> tuple[Tensor, Moments, Tensor]:  # θ_{n+1} [S, P], the moments after the step, g_n [S, P]
        """Step n, without a graph."""
        _, gradient = self.student.grad(theta, self.images(images, n), self.take(labels, n), step=step)
        return *self.optimizer.step(theta, moments, gradient, lr, self.first + n + 1), gradient

    def size(
        self,
        start: Tensor,  # [S, P]
        images: Tensor,  # [I, C, H, W]
    ) -> UnrollSize:
        """What the planner needs to know."""
        B = len(images) if self.batches is None else max(map(len, self.batches))
        return UnrollSize(
            self.syn_steps,
            torch.Size((B, *images.shape[1:])),
            len(images),
            len(start),
            start.dtype,
            self.return_states,
            self.optimizer.num_moments > 0,
            start.is_cuda,
            self.optimizer.num_moments if self.keeps_moments else None,
        )

    def part(self, begin: int, end: int) -> "Unroll":
        """The steps from `begin` to before `end`."""
        batches = None if self.batches is None else self.batches[begin:end]
        augment = self.augment if self.augment is None or begin == 0 else Later(self.augment, begin)
        return replace(self, syn_steps=end - begin, batches=batches, augment=augment, first=self.first + begin)


class Later:
    """An augmentation from one of its steps on."""

    def __init__(self, augment: Augment, first: int) -> None:
        self.augment, self.first = augment, first
        self.repeats = getattr(augment, "repeats", False) is True
        rows = getattr(augment, "rows", None)
        self.rows = rows[first:] if isinstance(rows, Tensor) else None

    def __call__(self, images: Tensor, n: int) -> Tensor:  # [B, C, H, W] -> [B, C, H, W]
        """That of the step so much later."""
        return self.augment(images, self.first + n)


@torch.no_grad()
def without_graph(
    unroll: Unroll,
    start: Tensor,  # [S, P]
    images: Tensor,  # [I, C, H, W]
    labels: Tensor,  # int64 [I] or target weights [I, K]
    lr: Tensor,  # [] or [T]
    moments: Moments,
) -> tuple[Tensor, Moments]:  # θ_T [S, P], or all states [T + 1, S, P]; the moments after the last step
    """The forward sweep alone, where no gradient can be asked for: memory of one step, and of what is returned."""
    T = unroll.syn_steps
    states = start.new_empty((T + 1, *start.shape)) if unroll.return_states else None
    theta = start
    for n in range(T):
        if states is not None:
            states[n] = theta
        rate = lr if lr.dim() == 0 else lr[n]
        theta, moments, _ = unroll.step(theta, moments, images, labels, rate, n, Step())
    if states is None:
        return theta, moments
    states[T] = theta
    return states, moments


class How(NamedTuple):
    """How an unroll is made and differentiated, all but tensors."""

    unroll: Unroll
    plan: Plan
    second_order: bool  # whether the adjoint passes through the gradients' dependence on the parameters
    from_last_used: bool
