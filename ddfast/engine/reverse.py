"""The forward sweep of an unroll and its adjoint, without a graph that outlives a step (docs/math.md)."""

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from ddfast.engine.inner_loop import How, Moments, Unroll
from ddfast.engine.planner import moments_every
from ddfast.engine.repeatable import Repeatable
from ddfast.engine.students import GradientJvp, Step, Wanted
from ddfast.ops import add_rows


class _Slopes:
    """Gradients in images, labels and learning rates, as the adjoint adds them up from step to step."""

    def __init__(self, unroll: Unroll, images: Tensor, labels: Tensor, lr: Tensor, wanted: tuple[bool, bool, bool]):
        self.unroll, self._images, self._labels, self._lr = unroll, images, labels, lr
        self.images, self.labels, self.lr = (
            torch.zeros_like(tensor) if want else None
            for tensor, want in zip((images, labels, lr), wanted, strict=True)
        )

    def rate(self, n: int) -> Tensor:  # []
        """The learning rate of step n."""
        return self._lr if self._lr.dim() == 0 else self._lr[n]

    def derivative(
        self,
        n: int,
        theta: Tensor,  # θ_n [S, P]
        direction: Tensor,  # σ [S, P]
        step: Step,
        parameters: bool,  # whether Hσ is wanted
        factor: Tensor | float,  # of ∂⟨g, σ⟩ in the gradients of images and labels
    ) -> GradientJvp:
        """∂⟨g_n, σ⟩; that in images and labels is added."""
        wants_images = self.images is not None
        with torch.set_grad_enabled(wants_images):
            taken = self.unroll.take(self._images.detach(), n).requires_grad_(wants_images)
            augmented = self.unroll.augmented(taken, n)
        if wants_images and not augmented.requires_grad:
            raise ValueError("augment: expected a function differentiable in the images, got a result without a graph")
        wanted = Wanted(parameters, wants_images, self.labels is not None)
        labels = self.unroll.take(self._labels, n)
        student = self.unroll.student
        derivative = student.grad_jvp(theta, augmented.detach(), labels, direction, step=step, wanted=wanted)
        if wants_images:
            by_images = derivative.images
            if self.unroll.augment is not None:
                (by_images,) = torch.autograd.grad(augmented, taken, by_images)
            add_rows(self.images, self.unroll.indices(n), by_images * factor)
        if self.labels is not None:
            add_rows(self.labels, self.unroll.indices(n), derivative.labels * factor)
        return derivative

    def add_to_lr(self, n: int, slope: Tensor) -> None:  # []
        """Add to the gradient in the learning rate of step n."""
        if self.lr is not None:
            if self.lr.dim() == 0:
                self.lr += slope
            else:
                self.lr[n] = slope

    def finish(self) -> None:
        """Nothing will be replayed any more."""
        if isinstance(self.unroll.augment, Repeatable):
            self.unroll.augment.finish()


class CheckpointedSGD(torch.autograd.Function):
    """The forward sweep of an unroll by SGD and its adjoint, both without a graph that outlives a step.

    The velocity's cotangent is −α σ_n, so that neither velocities nor gradients are kept; it excludes momentum with one
    learning rate per step, and velocities from and to elsewhere (reverse_moments.py has those).
    """

    @staticmethod
    def forward(ctx, how: How, start, images, labels, lr):
        unroll, plan = how.unroll, how.plan
        start, images, labels = start.detach(), images.detach(), labels.detach()
        T = unroll.syn_steps
        every = 1 if unroll.return_states else plan.state_every
        steps = [Step(keep=n >= T - plan.stored_steps) for n in range(T)]
        # One buffer: states [T + 1, S, P] are what is returned, or what the backward needs, or both.
        count = T + 1 if unroll.return_states else -(-T // every)
        where = {"device": "cpu", "pin_memory": start.is_cuda} if plan.host_states and not unroll.return_states else {}
        states = start.new_empty((count, *start.shape), **where)
        velocities = start.new_empty((count, *start.shape)) if every > 1 and unroll.optimizer.num_moments else None
        theta, velocity = start, unroll.optimizer.begin(start)
        for n, rate in enumerate(lr.expand(T)):
            if n % every == 0:
                states[n // every].copy_(theta, non_blocking=True)
                if velocities is not None:
                    velocities[n // every] = velocity[0]
            theta, velocity, _ = unroll.step(theta, velocity, images, labels, rate, n, steps[n])
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
            velocity = () if velocities is None else (velocities[kept],)
            for n in range(first, min(first + every, count) - 1):
                theta, velocity, _ = unroll.step(segment[-1], velocity, images, labels, rates[n], n, ctx.steps[n])
                segment.append(theta)
            while segment:
                yield first + len(segment) - 1, segment.pop()

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):  # [S, P], or [T + 1, S, P] for all states
        _, _, images, labels, lr = ctx.saved_tensors
        unroll, second_order = ctx.how.unroll, ctx.how.second_order
        momentum, weight_decay = unroll.optimizer.momentum, unroll.optimizer.weight_decay
        _, need_start, *wanted = ctx.needs_input_grad
        slopes = _Slopes(unroll, images, labels, lr, wanted)
        count = last_used(grad) if unroll.return_states and ctx.how.from_last_used else unroll.syn_steps
        for step in ctx.steps[count:]:
            step.memory = None
        lam = grad[count] if unroll.return_states else grad
        sigma = torch.zeros_like(lam)
        for n, theta in CheckpointedSGD._states(ctx, count):
            rate = slopes.rate(n)
            sigma = lam + momentum * sigma if momentum else lam
            earlier = n > 0 or need_start
            derivative = slopes.derivative(n, theta, sigma, ctx.steps[n], second_order and earlier, -rate)
            slopes.add_to_lr(n, -(derivative.slope.sum() + weight_decay * (theta * sigma).sum()))
            if earlier:
                curvature = weight_decay * sigma if weight_decay else None
                if second_order:
                    along = derivative.parameters
                    curvature = along if curvature is None else along + curvature
                if curvature is not None:
                    lam = lam - rate * curvature
                if unroll.return_states:
                    lam = lam + grad[n]
        slopes.finish()
        return None, lam if need_start else None, slopes.images, slopes.labels, slopes.lr


class _Replayed(NamedTuple):
    """A step of the forward sweep, as the adjoint of any optimiser needs it."""

    n: int
    theta: Tensor  # θ_n [S, P]
    gradient: Tensor  # g_n [S, P]
    after: Moments  # the moments after the step


class CheckpointedMoments(torch.autograd.Function):
    """The same for any optimiser, moments that come from elsewhere and go there.

    Gradients are kept, and of parameters and moments what every √T-th step begins with: those between are made again
    from the gradients, without a pass through the network. A plan that keeps every k-th state keeps no gradients.
    """

    @staticmethod
    def forward(ctx, how: How, start, images, labels, lr, *moments):
        unroll, plan = how.unroll, how.plan
        T, S_P = unroll.syn_steps, start.shape
        theta, images, labels = start.detach().clone(), images.detach(), labels.detach()
        moments = tuple(moment.detach().clone() for moment in moments)
        every = plan.state_every if plan.state_every > 1 else moments_every(T)
        steps = [Step(keep=n >= T - plan.stored_steps) for n in range(T)]
        host = plan.host_states

        def kept(tensor: Tensor) -> Tensor:
            if not host:
                return tensor
            return torch.empty(S_P, dtype=tensor.dtype, pin_memory=tensor.is_cuda).copy_(tensor, non_blocking=True)

        states = start.new_empty((T + 1, *S_P)) if unroll.return_states else None
        begins, gradients = [], []
        for n, rate in enumerate(lr.expand(T)):
            if n % every == 0:
                begins.append((kept(theta), tuple(map(kept, moments))))
            if states is not None:
                states[n] = theta
            theta, moments, gradient = unroll.step(theta, moments, images, labels, rate, n, steps[n])
            if plan.state_every == 1:
                gradients.append(kept(gradient))
        if states is not None:
            states[T] = theta
        ctx.how, ctx.steps, ctx.every, ctx.begins, ctx.gradients = how, steps, every, begins, gradients
        ctx.save_for_backward(images, labels, lr)
        ctx.set_materialize_grads(False)
        return states if states is not None else theta, *moments

    @staticmethod
    def _replayed(ctx, count: int) -> Iterator[_Replayed]:
        """The first `count` steps, from the last back."""
        images, labels, lr = ctx.saved_tensors
        unroll, every, device = ctx.how.unroll, ctx.every, images.device
        rates = lr.expand(unroll.syn_steps)
        for place in reversed(range(-(-count // every))):
            theta, moments = ctx.begins[place]
            theta = theta.to(device, non_blocking=True)
            moments = tuple(moment.to(device, non_blocking=True) for moment in moments)
            segment = []
            for n in range(place * every, min((place + 1) * every, count)):
                before = theta
                if ctx.gradients:
                    gradient = ctx.gradients[n].to(device, non_blocking=True)
                    k = unroll.first + n + 1
                    theta, moments = unroll.optimizer.step(before, moments, gradient, rates[n], k)
                else:
                    step = ctx.steps[n]
                    theta, moments, gradient = unroll.step(before, moments, images, labels, rates[n], n, step)
                segment.append(_Replayed(n, before, gradient, moments))
            while segment:
                yield segment.pop()

    @staticmethod
    @once_differentiable
    def backward(ctx, grad, *by_moments):  # [S, P], or [T + 1, S, P] for all states; [S, P] each; None: no gradient
        images, labels, lr = ctx.saved_tensors
        unroll, second_order = ctx.how.unroll, ctx.how.second_order
        _, need_start, *wanted = ctx.needs_input_grad[:5]
        theta, moments = ctx.begins[0]
        slopes = _Slopes(unroll, images, labels, lr, wanted)
        count = unroll.syn_steps
        unused = all(given is None for given in by_moments)
        if unroll.return_states and ctx.how.from_last_used and grad is not None and unused:
            count = last_used(grad)
        for step in ctx.steps[count:]:
            step.memory = None
        by_states = grad if unroll.return_states else None
        lam = by_states[count] if by_states is not None else grad if not unroll.return_states else None
        lam, *by_moments = (
            torch.zeros_like(like, device=images.device) if given is None else given
            for given, like in zip((lam, *by_moments), (theta, *moments), strict=True)
        )
        needs_moments = any(ctx.needs_input_grad[5:])
        for n, theta, gradient, after in CheckpointedMoments._replayed(ctx, count):
            rate, k = slopes.rate(n), unroll.first + n + 1
            before = unroll.optimizer.reverse(theta, after, gradient, rate, k, lam, tuple(by_moments))
            earlier = n > 0 or need_start
            derivative = slopes.derivative(n, theta, before.direction, ctx.steps[n], second_order and earlier, 1.0)
            slopes.add_to_lr(n, before.lr)
            lam, by_moments = before.parameters, before.moments
            if earlier and second_order:
                lam = lam + derivative.parameters
            if by_states is not None:
                lam = lam + by_states[n]
        slopes.finish()
        by_moments = by_moments if needs_moments else [None] * len(by_moments)
        return None, lam if need_start else None, slopes.images, slopes.labels, slopes.lr, *by_moments


def last_used(
    grad: Tensor,  # [T + 1, S, P], of all states
) -> int:
    """The last state whose gradient is not zero."""
    used = grad.flatten(1).any(1)
    return int((used * torch.arange(len(grad), device=grad.device)).amax())  # one wait
