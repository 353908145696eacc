"""How the meta-gradient of an unroll is formed: plainly, exactly in constant memory, or approximately."""

from dataclasses import replace

import torch
from torch import Tensor

from ddfast import ops
from ddfast.engine.inner_loop import Augment, How, Moments, Unroll, without_graph
from ddfast.engine.optimizers import SGD, Adam
from ddfast.engine.planner import Plan, make_plan, moments_every, parse_budget
from ddfast.engine.repeatable import Repeatable
from ddfast.engine.reverse import CheckpointedMoments, CheckpointedSGD
from ddfast.engine.students import ConvNetStudent, MicroBatches, Step
from ddfast.engine.students.base import check_labels
from ddfast.ops import AdamSteps, Steps


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
        moments: Moments,
        with_moments: bool = False,
    ) -> tuple[Tensor, Moments]:  # θ_T [S, P], or all states [T + 1, S, P]; the moments after the last step
        """Run the unroll."""
        states = [start]
        for n, rate in enumerate(lr.expand(unroll.syn_steps)):
            x, y, graph = unroll.images(images, n), unroll.take(labels, n), torch.is_grad_enabled()
            _, gradient = unroll.student.grad(states[-1], x, y, step=Step(), create_graph=graph)
            theta, moments = unroll.optimizer.step(states[-1], moments, gradient, rate, unroll.first + n + 1)
            states = [*states, theta] if unroll.return_states else [theta]
        return torch.stack(states) if unroll.return_states else states[-1], moments


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
        moments: Moments,
        with_moments: bool = False,  # whether moments come from elsewhere, or a loss depends on the last ones
    ) -> tuple[Tensor, Moments]:  # θ_T [S, P], or all states [T + 1, S, P]; those moments
        """Run the unroll. ValueError where nothing fits the budget, with the smallest that does."""
        if isinstance(unroll.optimizer, SGD) and (not moments or (not with_moments and lr.dim() == 0)):
            by_sgd = True
        else:
            by_sgd, unroll = False, replace(unroll, keeps_moments=True)
        differentiable = any(tensor.requires_grad for tensor in (start, images, labels, lr, *moments))
        recorded = differentiable and torch.is_grad_enabled()
        plan = self.plan or Plan()
        if self.memory_budget is not None:
            size = unroll.size(start, images)
            size = size if recorded else replace(size, syn_steps=1)  # else no step is kept
            plan = make_plan(unroll.student, size, parse_budget(self.memory_budget, images.device))
        if recorded and by_sgd and self.second_order and _is_one_op(unroll, plan):
            check_labels(labels, unroll.student.layout.num_classes)
            rows = None if unroll.augment is None else unroll.augment.rows.to(images)
            settings = unroll.optimizer.momentum, unroll.optimizer.weight_decay
            steps = Steps(unroll.batches, rows, unroll.syn_steps, *settings)
            student = unroll.student
            end = ops.unroll(student.to_fused(start), images, labels, lr, steps, plan.stored_steps, student.layout)
            return student.from_fused(end), ()
        if recorded and isinstance(unroll.optimizer, Adam) and self.second_order and _is_one_op(unroll, plan):
            return _by_adam(unroll, plan, start, images, labels, lr, moments)
        if plan.micro_batch is not None:
            unroll = replace(unroll, student=MicroBatches(unroll.student, plan.micro_batch))
        if not recorded:
            return without_graph(unroll, start, images, labels, lr, moments)
        if unroll.augment is not None and getattr(unroll.augment, "repeats", False) is not True:
            unroll = replace(unroll, augment=Repeatable(unroll.augment))
        how = How(unroll, plan, self.second_order, self.from_last_used)
        if by_sgd:
            return CheckpointedSGD.apply(how, start, images, labels, lr), ()
        states, *moments = CheckpointedMoments.apply(how, start, images, labels, lr, *moments)
        return states, tuple(moments)


def _by_adam(
    unroll: Unroll, plan: Plan, start: Tensor, images: Tensor, labels: Tensor, lr: Tensor, moments: Moments
) -> tuple[Tensor, Moments]:
    """The whole loop as ops.unroll_adam."""
    student = unroll.student
    check_labels(labels, student.layout.num_classes)
    rows, every = None if unroll.augment is None else unroll.augment.rows.to(images), moments_every(unroll.syn_steps)
    steps = AdamSteps(unroll.batches, rows, unroll.syn_steps, unroll.first, every, unroll.optimizer.settings)
    theta, m, v = map(student.to_fused, (start, *moments))
    end, *after = ops.unroll_adam(theta, m, v, images, labels, lr, steps, plan.stored_steps, student.layout)
    return student.from_fused(end), tuple(map(student.from_fused, after))


def _is_one_op(unroll: Unroll, plan: Plan) -> bool:
    """Whether the whole loop runs as ops.unroll, or unroll_adam: the fused ConvNet, an augmentation by rows of
    parameters, and a plan without micro-batches, states thinned or elsewhere, or steps stored in part (an op cannot
    free those as it goes); minibatches of one size."""
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
    convolutions of plain autograd. Differentiable once. Adam, and velocities that come from elsewhere or go there, take
    about 4 P bytes a step more, for gradients (docs/math.md).
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
