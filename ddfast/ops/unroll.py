"""unroll: the checkpointed unroll of S ConvNets by SGD, and its adjoint, as one op each: the whole loop."""

from typing import NamedTuple

import torch
from torch import Tensor

from ddfast.ops._layout import in_layout, is_channels_last
from ddfast.ops._library import define, define_autograd, forbid_autograd
from ddfast.ops._precision import apart_from_autocast
from ddfast.ops._scatter import add_rows
from ddfast.ops.convnet import SIZES, ConvNetLayout, check_convnet


class Steps(NamedTuple):
    """How the steps of an unroll go, all but the tensors that it is differentiable in."""

    batches: Tensor | None  # int64 [T, B] indices into the images; None: all images in every step
    rows: Tensor | None  # [T, B, 16], what ops.dsa_augment takes; None: no augmentation
    syn_steps: int  # T
    momentum: float  # μ
    weight_decay: float  # w


def unroll(
    start: Tensor,  # θ_0 [S, P]
    images: Tensor,  # [I, C, H, W]
    labels: Tensor,  # int64 [I], or target weights [I, K]
    lr: Tensor,  # [] or [T]
    steps: Steps,
    stored_steps: int,
    layout: ConvNetLayout,
) -> Tensor:  # θ_T [S, P]
    """What ddfast.unroll computes with a CheckpointedUnroll, for the fused ConvNet: made for that adjoint, which
    documents the equations. Differentiable once in start, images, soft labels and lr.

    Errors: those of convnet_grad; steps, lr and batches are checked by ddfast.unroll.
    """
    check_convnet(layout, start, images, labels)
    with apart_from_autocast(layout.precision, start.device):
        return torch.ops.ddfast.unroll(start, images, labels, lr, *steps, stored_steps, *layout.sizes)[0]


class Sweep(NamedTuple):
    """What the forward sweep and the adjoint share."""

    images: Tensor
    labels: Tensor
    lr: Tensor
    batches: Tensor | None
    rows: Tensor | None

    def take(self, values: Tensor, n: int) -> Tensor:
        return values if self.batches is None else values[self.batches[n]]

    def minibatch(self, n: int) -> Tensor:  # [B, C, H, W]
        taken = self.take(self.images, n)
        return taken if self.rows is None else torch.ops.ddfast.dsa_augment(taken, self.rows[n])

    def rate(self, n: int) -> Tensor:  # []
        return self.lr if self.lr.dim() == 0 else self.lr[n]

    def scattered(self, like: Tensor, n: int, values: Tensor) -> Tensor:  # [B, …] -> like `like`, at b_n
        return values if self.batches is None else add_rows(torch.zeros_like(like), self.batches[n], values)


def _reference(start, images, labels, lr, batches, rows, syn_steps, momentum, weight_decay, stored_steps, *sizes):
    sweep = Sweep(images, labels, lr, batches, rows)
    theta, velocity, states, kept = start, 0, [], []
    for n in range(syn_steps):
        states.append(theta)
        keep = n >= syn_steps - stored_steps
        _, g, step = torch.ops.ddfast.convnet_grad(theta, sweep.minibatch(n), sweep.take(labels, n), keep, *sizes)
        kept += step
        velocity = momentum * velocity + g + weight_decay * theta
        theta = theta - sweep.rate(n) * velocity
    return theta, torch.stack(states), kept


def _backward_reference(
    grad, states, images, labels, lr, batches, rows, kept, wanted, T, momentum, weight_decay, *sizes
):
    sweep, empty = Sweep(images, labels, lr, batches, rows), states.new_empty(0)
    _, want_images, want_labels, _ = wanted
    by_images, by_labels, slopes = torch.zeros_like(images), 0, []
    lam, sigma, each = grad, 0, 2 * sizes[1] - 1
    for n in reversed(range(T)):
        sigma, x, y = lam + momentum * sigma, sweep.minibatch(n), sweep.take(labels, n)
        step, kept = (kept[-each:], kept[:-each]) if kept else ([], [])
        slope, h, dx, dy = torch.ops.ddfast.convnet_grad_jvp(
            states[n], x, y, sigma, step, [True, want_images, want_labels], *sizes
        )
        if want_images:
            dx = dx if rows is None else torch.ops.ddfast.dsa_augment_backward(dx, rows[n])
            by_images = by_images - sweep.scattered(images, n, sweep.rate(n) * dx)
        if want_labels:
            by_labels = by_labels - sweep.scattered(labels, n, sweep.rate(n) * dy)
        slopes.insert(0, -slope.sum() - weight_decay * (states[n] * sigma).sum())
        lam = lam - sweep.rate(n) * (h + weight_decay * sigma)
    by_lr = torch.stack(slopes) if lr.dim() else torch.stack(slopes).sum()
    results = (lam, by_images, by_labels, by_lr)
    return tuple(result if want else empty for result, want in zip(results, wanted, strict=True))


def _fake(start, images, labels, lr, batches, rows, syn_steps, momentum, weight_decay, stored_steps, *sizes):
    if not 0 <= stored_steps <= syn_steps:
        raise ValueError(f"stored_steps: expected 0 to {syn_steps}, got {stored_steps}")
    B = len(images) if batches is None else batches.shape[1]
    step = (
        torch.ops.ddfast.convnet_grad(
            start, images[:1].expand(B, *images.shape[1:]), labels[:1].expand(B, *labels.shape[1:]), True, *sizes
        )[2]
        if stored_steps
        else []
    )
    kept = [torch.empty_like(tensor) for _ in range(stored_steps) for tensor in step]
    return torch.empty_like(start), start.new_empty((syn_steps, *start.shape)), kept


def _backward_fake(grad, states, images, labels, lr, batches, rows, kept, wanted, *sizes):
    results = (states[0], images, labels, lr)
    contiguous = torch.contiguous_format
    return tuple(
        torch.empty_like(result, memory_format=contiguous) if want else states.new_empty(0)
        for result, want in zip(results, wanted, strict=True)
    )


def _setup_context(ctx, inputs, output) -> None:
    _, images, labels, lr, batches, rows, *ctx.settings = inputs
    _, states, kept = output
    ctx.mark_non_differentiable(states, *kept)
    ctx.set_materialize_grads(False)  # zeros as large as all that was kept
    ctx.save_for_backward(states, images, labels, lr, batches, rows)
    ctx.kept = kept  # given up by the backward


def _backward(ctx, grad, _states, _kept):
    syn_steps, momentum, weight_decay, _, *sizes = ctx.settings
    wanted, (kept, ctx.kept) = list(ctx.needs_input_grad[:4]), (ctx.kept, [])
    with apart_from_autocast(sizes[-1], grad.device):
        results = torch.ops.ddfast.unroll_backward(
            grad, *ctx.saved_tensors, kept, wanted, syn_steps, momentum, weight_decay, *sizes
        )
    gradients = [result if want else None for result, want in zip(results, wanted, strict=True)]
    if wanted[1] and is_channels_last(ctx.saved_tensors[1]):
        gradients[1] = in_layout(gradients[1], True)
    return *gradients, *[None] * (2 + len(ctx.settings))


_STEPS = "int syn_steps, float momentum, float weight_decay"
define(
    f"unroll(Tensor start, Tensor images, Tensor labels, Tensor lr, Tensor? batches, Tensor? rows, {_STEPS},"
    f" int stored_steps, {SIZES}) -> (Tensor, Tensor, Tensor[])",
    _reference,
    _fake,
)
define(
    f"unroll_backward(Tensor grad, Tensor states, Tensor images, Tensor labels, Tensor lr,"
    f" Tensor? batches, Tensor? rows, Tensor[] kept, bool[4] wanted, {_STEPS}, {SIZES})"
    f" -> (Tensor, Tensor, Tensor, Tensor)",
    _backward_reference,
    _backward_fake,
)
define_autograd("unroll", _backward, _setup_context)
forbid_autograd("unroll_backward", "unroll: second derivatives are not available; use adjoints.FullUnroll")
