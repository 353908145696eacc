"""How the meta-gradient of an unroll is formed: plainly, exactly in constant memory, or approximately."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from ddfast import ops
from ddfast.engine.planner import Plan, UnrollSize, make_plan, parse_budget
from ddfast.engine.repeatable import Repeatable
from ddfast.engine.students import ConvNetStudent, MicroBatches, Step, Student, Wanted
from ddfast.engine.students.base import check_labels
from ddfast.ops import Steps, add_rows

# One with `rows` [T, B, 16], the parameters of ops.dsa_augment for every step, may run inside ops.unroll.
Augment = Callable[[Tensor, int], Tensor]


@dataclass(frozen=True)
class Unroll:
    """T steps of SGD on a synthetic set, all but the tensors that it is differentiable in.

    x_n = A_n(X[b_n]),  g_n = ∇_θ ℓ(θ_n; x_n, Y[b_n]),  v_{n+1} = μ v_n + g_n + w θ_n,  θ_{n+1} = θ_n − α v_{n+1}
    """

    student: Student
    syn_steps: int  # T
    batches: Tensor | tuple[Tensor, ...] | None  # int64 [T, B], or T of [B_n]; None: all images in every step
    augment: Augment | None  # A(images, n), the same for the same n
    momentum: float  # μ
    weight_decay: float  # w
    return_states: bool

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

    def update(
        self,
        theta: Tensor,  # θ_n [S, P]
        velocity: Tensor | None,  # v_n [S, P], None for the first step
        gradient: Tensor,  # g_n [S, P]
        lr: Tensor,  # []
    ) -> tuple[Tensor, Tensor]:  # θ_{n+1}, v_{n+1} [S, P]
        """One step of SGD, rounded as ops.unroll does."""
        if self.weight_decay:
            gradient = torch.add(gradient, theta, alpha=self.weight_decay)
        if self.momentum and velocity is not None:
            gradient = torch.add(gradient, velocity, alpha=self.momentum)
        return torch.addcmul(theta, lr, gradient, value=-1), gradient

    def step(
        self,
        theta: Tensor,  # θ_n [S, P]
        velocity: Tensor | None,  # v_n [S, P], None for the first step
        images: Tensor,  # [I, C, H, W]
        labels: Tensor,  # int64 [I] or target weights [I, K]
        lr: Tensor,  # []
        n: int,
        step: Step,
    ) -> tuple[Tensor, Tensor | None]:  # θ_{n+1}, v_{n+1} [S, P], None without momentum
        """Step n, without a graph."""
        _, gradient = self.student.grad(theta, self.images(images, n), self.take(labels, n), step=step)
        theta, velocity = self.update(theta, velocity, gradient, lr)
        return theta, velocity if self.momentum else None

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
            self.momentum > 0,
            start.is_cuda,
        )


class FullUnroll:
    """Plain autograd through all steps: the oracle that the other adjoints are tested against.

    Exact, differentiable as often as the student is, and memory grows with every step. Not for real runs.
    """

    def __call__(
        self,
        unroll: Unroll,
        start: Tensor,  # [S, P]
        images: Tensor,  # [I, C, H, W]
        labels: Tensor,  # int64 [I] or target weights [I, K]
        lr: Tensor,  # [] or [T]
    ) -> Tensor:  # θ_T [S, P], or all states [T + 1, S, P]
        """Run the unroll."""
        states, velocity = [start], None
        for n, rate in enumerate(lr.expand(unroll.syn_steps)):
            x, y, graph = unroll.images(images, n), unroll.take(labels, n), torch.is_grad_enabled()
            _, gradient = unroll.student.grad(states[-1], x, y, step=Step(), create_graph=graph)
            theta, velocity = unroll.update(states[-1], velocity, gradient, rate)
            states = [*states, theta] if unroll.return_states else [theta]
        return torch.stack(states) if unroll.return_states else states[-1]


class _Recomputing:
    """What keeps parameters, and activations as far as a plan says."""

    second_order: bool

    def __init__(
        self,
        memory_budget: int | float | str | None = None,
        *,
        plan: Plan | None = None,
        from_last_used: bool = False,
    ) -> None:
        """Recompute everything (no arguments), make a plan for a budget at every call, or follow one that was made.

        memory_budget: bytes, a size like "4GiB", or a fraction of what the device has free. from_last_used: with
        return_states, the backward begins at the last state that the loss depends on (as ATT's does on one of many);
        it looks at the gradient for that, so that a GPU is waited for.
        """
        if memory_budget is not None and plan is not None:
            raise ValueError("memory_budget, plan: expected at most one of them")
        if plan is not None and not isinstance(plan, Plan):
            raise TypeError(f"plan: expected a planner.Plan, got {type(plan).__name__}")
        self.memory_budget, self.plan, self.from_last_used = memory_budget, plan, from_last_used

    def __call__(
        self,
        unroll: Unroll,
        start: Tensor,  # [S, P]
        images: Tensor,  # [I, C, H, W]
        labels: Tensor,  # int64 [I] or target weights [I, K]
        lr: Tensor,  # [] or [T]
    ) -> Tensor:  # θ_T [S, P], or all states [T + 1, S, P]
        """Run the unroll. ValueError where nothing fits the budget, with the smallest that does."""
        if lr.dim() == 1 and unroll.momentum:
            raise ValueError("lr: one learning rate per step, [T], cannot be combined with momentum; expected []")
        plan = self.plan or Plan()
        if self.memory_budget is not None:
            plan = make_plan(
                unroll.student, unroll.size(start, images), parse_budget(self.memory_budget, images.device)
            )
        differentiable = any(tensor.requires_grad for tensor in (start, images, labels, lr))
        recorded = differentiable and torch.is_grad_enabled()
        if recorded and self.second_order and _is_one_op(unroll, plan):
            check_labels(labels, unroll.student.layout.num_classes)
            rows = None if unroll.augment is None else unroll.augment.rows.to(images)
            steps = Steps(unroll.batches, rows, unroll.syn_steps, unroll.momentum, unroll.weight_decay)
            student = unroll.student
            end = ops.unroll(student.to_fused(start), images, labels, lr, steps, plan.stored_steps, student.layout)
            return student.from_fused(end)
        if plan.micro_batch is not None:
            unroll = replace(unroll, student=MicroBatches(unroll.student, plan.micro_batch))
        if not recorded:
            return _without_graph(unroll, start, images, labels, lr)
        if unroll.augment is not None and getattr(unroll.augment, "repeats", False) is not True:
            unroll = replace(unroll, augment=Repeatable(unroll.augment))
        how = _How(unroll, plan, self.second_order, self.from_last_used)
        return _Checkpointed.apply(how, start, images, labels, lr)


@torch.no_grad()
def _without_graph(
    unroll: Unroll,
    start: Tensor,  # [S, P]
    images: Tensor,  # [I, C, H, W]
    labels: Tensor,  # int64 [I] or target weights [I, K]
    lr: Tensor,  # [] or [T]
) -> Tensor:  # θ_T [S, P], or all states [T + 1, S, P]
    """The forward sweep alone, where no gradient can be asked for: memory of one step, and of what is returned."""
    T = unroll.syn_steps
    states = start.new_empty((T + 1, *start.shape)) if unroll.return_states else None
    theta, velocity = start, None
    for n in range(T):
        if states is not None:
            states[n] = theta
        rate = lr if lr.dim() == 0 else lr[n]
        theta, velocity = unroll.step(theta, velocity, images, labels, rate, n, Step())
    if states is None:
        return theta
    states[T] = theta
    return states


def _is_one_op(unroll: Unroll, plan: Plan) -> bool:
    """Whether the whole loop runs as ops.unroll: the fused ConvNet, an augmentation by rows of parameters, and a plan
    without micro-batches, states thinned or elsewhere, or steps stored in part (an op cannot free those as it goes);
    minibatches of one size."""
    return (
        isinstance(unroll.student, ConvNetStudent)
        and (unroll.augment is None or _has_rows(unroll.augment))
        and not isinstance(unroll.batches, tuple)
        and plan.micro_batch is None
        and plan.state_every == 1
        and not plan.host_states
        and plan.stored_steps in (0, unroll.syn_steps)
        and not unroll.return_states
    )


def _has_rows(augment: Augment) -> bool:
    """Whether an augmentation is ops.dsa_augment by rows that were drawn before."""
    return isinstance(getattr(augment, "rows", None), Tensor)


class CheckpointedUnroll(_Recomputing):
    """The exact meta-gradient in memory that does not grow with the steps: the default.

    Keeps the parameters of every step (4 P bytes each in float32) and, without a budget, no activations; the backward
    walks back over the steps and needs, of each, only the directional derivative of its gradient. A memory_budget buys
    speed: as many steps as it allows keep what the backward would compute again. With σ_n = λ_{n+1} + μ σ_{n+1}:

        λ_n = λ_{n+1} − α (H_n + w) σ_n + ∂L/∂θ_n,   dα −= ⟨g_n + w θ_n, σ_n⟩,   dX[b_n] −= α A_nᵀ ∂_x⟨g_n, σ_n⟩

    (the discrete adjoint of momentum SGD; Maclaurin et al. 2015, Franceschi et al. 2017). Costs about 11/9 of the
    convolutions of plain autograd. Differentiable once. One learning rate per step excludes momentum.
    """

    second_order = True


class DetachedUnroll(_Recomputing):
    """An approximation of the meta-gradient: H is dropped from the adjoint above, so that λ passes the steps unchanged.

    TESLA's form (Cui et al. 2023, section 3.2, with the factor 2 that its published code lacks). The gradients in
    images, labels and α are exact for one step only, that in the start never. On a ConvNet of three blocks and CIFAR-10
    the cosine with the exact image gradient is 0.94 after 10 steps and 0.82 to 0.94 after 50, dL/dα 1.8 to 3.2 times
    too large (docs/methods.md).
    Saves about a fifth of the backward. Use it to reproduce results that were made with it; for anything else use
    CheckpointedUnroll.
    """

    second_order = False


Adjoint = FullUnroll | CheckpointedUnroll | DetachedUnroll


class _How(NamedTuple):
    """What a _Checkpointed does, all but tensors."""

    unroll: Unroll
    plan: Plan
    second_order: bool
    from_last_used: bool


class _Checkpointed(torch.autograd.Function):
    """The forward sweep of an unroll and its adjoint, both without a graph that outlives a step."""

    @staticmethod
    def forward(ctx, how: _How, start, images, labels, lr):  # as in _Recomputing
        unroll, plan = how.unroll, how.plan
        start, images, labels = start.detach(), images.detach(), labels.detach()
        T = unroll.syn_steps
        every = 1 if unroll.return_states else plan.state_every
        steps = [Step(keep=n >= T - plan.stored_steps) for n in range(T)]
        # One buffer: states [T + 1, S, P] are what is returned, or what the backward needs, or both.
        count = T + 1 if unroll.return_states else -(-T // every)
        where = {"device": "cpu", "pin_memory": start.is_cuda} if plan.host_states and not unroll.return_states else {}
        states = start.new_empty((count, *start.shape), **where)
        velocities = start.new_empty((count, *start.shape)) if every > 1 and unroll.momentum else None
        theta, velocity = start, None
        for n, rate in enumerate(lr.expand(T)):
            if n % every == 0:
                states[n // every].copy_(theta, non_blocking=True)
                if velocities is not None and n:
                    velocities[n // every] = velocity
            theta, velocity = unroll.step(theta, velocity, images, labels, rate, n, steps[n])
        if unroll.return_states:
            states[T] = theta
        ctx.how, ctx.steps, ctx.every = how, steps, every
        ctx.save_for_backward(states, velocities, images, labels, lr)
        return states if unroll.return_states else theta

    @staticmethod
    def _states(ctx, count: int) -> Iterator[tuple[int, Tensor]]:  # n, θ_n [S, P]
        """The first `count` states, from the last back; between kept ones they are computed again."""
        states, velocities, images, labels, lr = ctx.saved_tensors
        unroll, every = ctx.how.unroll, ctx.every
        rates = lr.expand(unroll.syn_steps)
        for kept in reversed(range(-(-count // every))):
            first = kept * every
            segment = [states[kept].to(images.device, non_blocking=True)]
            velocity = velocities[kept] if velocities is not None and kept else None
            for n in range(first, min(first + every, count) - 1):
                theta, velocity = unroll.step(segment[-1], velocity, images, labels, rates[n], n, ctx.steps[n])
                segment.append(theta)
            while segment:
                yield first + len(segment) - 1, segment.pop()

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):  # [S, P], or [T + 1, S, P] for all states
        _, _, images, labels, lr = ctx.saved_tensors
        unroll, second_order = ctx.how.unroll, ctx.how.second_order
        *_, need_start, need_images, need_labels, need_lr = ctx.needs_input_grad
        grad_images = torch.zeros_like(images) if need_images else None
        grad_labels = torch.zeros_like(labels) if need_labels else None
        grad_lr = torch.zeros_like(lr) if need_lr else None
        count = _last_used(grad) if unroll.return_states and ctx.how.from_last_used else unroll.syn_steps
        for step in ctx.steps[count:]:
            step.memory = None
        lam = grad[count] if unroll.return_states else grad
        sigma = torch.zeros_like(lam)
        for n, theta in _Checkpointed._states(ctx, count):
            rate = lr if lr.dim() == 0 else lr[n]
            sigma = lam + unroll.momentum * sigma if unroll.momentum else lam
            earlier = n > 0 or need_start
            with torch.set_grad_enabled(need_images):
                taken = unroll.take(images.detach(), n).requires_grad_(need_images)
                augmented = unroll.augmented(taken, n)
            if need_images and not augmented.requires_grad:
                raise ValueError(
                    "augment: expected a function differentiable in the images, got a result without a graph"
                )
            derivative = unroll.student.grad_jvp(
                theta,
                augmented.detach(),
                unroll.take(labels, n),
                sigma,
                step=ctx.steps[n],
                wanted=Wanted(second_order and earlier, need_images, need_labels),
            )
            if need_images:
                by_images = derivative.images
                if unroll.augment is not None:
                    (by_images,) = torch.autograd.grad(augmented, taken, by_images)
                add_rows(grad_images, unroll.indices(n), by_images * -rate)
            if need_labels:
                add_rows(grad_labels, unroll.indices(n), derivative.labels * -rate)
            if need_lr:
                slope = derivative.slope.sum() + unroll.weight_decay * (theta * sigma).sum()
                if lr.dim() == 0:
                    grad_lr -= slope
                else:
                    grad_lr[n] = -slope
            if earlier:
                curvature = unroll.weight_decay * sigma if unroll.weight_decay else None
                if second_order:
                    along = derivative.parameters
                    curvature = along if curvature is None else along + curvature
                if curvature is not None:
                    lam = lam - rate * curvature
                if unroll.return_states:
                    lam = lam + grad[n]
        if isinstance(unroll.augment, Repeatable):
            unroll.augment.finish()
        return None, lam if need_start else None, grad_images, grad_labels, grad_lr


def _last_used(
    grad: Tensor,  # [T + 1, S, P], of all states
) -> int:
    """The last state whose gradient is not zero."""
    used = grad.flatten(1).any(1)
    return int((used * torch.arange(len(grad), device=grad.device)).amax())  # one wait
