"""unroll_adam: the checkpointed unroll of S ConvNets by Adam, and its adjoint, as one op each: the whole loop."""

import math
from typing import NamedTuple

import torch
from torch import Tensor

from ddfast.ops._adam import AdamSettings, adam_reverse, adam_step
from ddfast.ops._layout import in_layout, is_channels_last
from ddfast.ops._library import define, define_autograd, forbid_autograd
from ddfast.ops._precision import apart_from_autocast
from ddfast.ops.convnet import SIZES, ConvNetLayout, check_convnet
from ddfast.ops.unroll import Sweep


class AdamSteps(NamedTuple):
    """How the steps go, all but the tensors that the unroll is differentiable in."""

    batches: Tensor | None  # int64 [T, B] indices into the images; None: all images in every step
    rows: Tensor | None  # [T, B, 16], what ops.dsa_augment takes; None: no augmentation
    syn_steps: int  # T
    first: int  # steps since the moments were 0
    every: int  # so many steps' parameters and moments are made again from gradients
    adam: AdamSettings


def unroll_adam(
    start: Tensor,  # θ_0 [S, P]
    m: Tensor,  # [S, P]
    v: Tensor,  # [S, P]
    images: Tensor,  # [I, C, H, W]
    labels: Tensor,  # int64 [I], or target weights [I, K]
    lr: Tensor,  # [] or [T]
    steps: AdamSteps,
    stored_steps: int,
    layout: ConvNetLayout,
) -> tuple[Tensor, Tensor, Tensor]:  # θ_T, m and v after it, [S, P] each
    """What ddfast.unroll computes with a CheckpointedUnroll by Adam, for the fused ConvNet: made for that adjoint.
    Differentiable once in start, m, v, images, soft labels and lr.

    Errors: those of convnet_grad; steps, lr, moments and batches are checked by ddfast.unroll.
    """
    check_convnet(layout, start, images, labels)
    batches, rows, syn_steps, first, every, adam = steps
    settings = (syn_steps, first, every, *adam)
    with apart_from_autocast(layout.precision, start.device):
        return torch.ops.ddfast.unroll_adam(
            start, m, v, images, labels, lr, batches, rows, *settings, stored_steps, *layout.sizes
        )[:3]


def _reference(
    start, m, v, images, labels, lr, batches, rows, T, first, every, b1, b2, eps, added, own, stored, *sizes
):
    sweep, adam = Sweep(images, labels, lr, batches, rows), AdamSettings(b1, b2, eps, added, own)
    theta, gradients, begins, kept = start, [], [], []
    for n in range(T):
        if n % every == 0:
            begins.append(torch.stack([theta, m, v]))
        keep = n >= T - stored
        _, g, step = torch.ops.ddfast.convnet_grad(theta, sweep.minibatch(n), sweep.take(labels, n), keep, *sizes)
        gradients.append(g)
        kept += step
        theta, m, v = adam_step(theta, m, v, g, sweep.rate(n), first + n + 1, adam)
    return theta, m, v, torch.stack(gradients), torch.stack(begins), kept


def _backward_reference(
    grad, by_m, by_v, gradients, begins, images, labels, lr, batches, rows, kept, wanted,
    T, first, every, b1, b2, eps, added, own, *sizes,
):  # fmt: skip
    sweep, adam = Sweep(images, labels, lr, batches, rows), AdamSettings(b1, b2, eps, added, own)
    *_, want_images, want_labels, _ = wanted
    by_images, by_labels, slopes = torch.zeros_like(images), 0, []
    lam, each, empty = grad, 2 * sizes[1] - 1, grad.new_empty(0)
    for place in reversed(range(len(begins))):
        theta, m, v = begins[place]
        segment = []
        for n in range(place * every, min((place + 1) * every, T)):
            before = theta
            theta, m, v = adam_step(theta, m, v, gradients[n], sweep.rate(n), first + n + 1, adam)
            segment.append((n, before, m, v))
        for n, theta, m, v in reversed(segment):
            back = adam_reverse(theta, m, v, gradients[n], sweep.rate(n), first + n + 1, adam, lam, by_m, by_v)
            x, y = sweep.minibatch(n), sweep.take(labels, n)
            step, kept = (kept[-each:], kept[:-each]) if kept else ([], [])
            _, h, dx, dy = torch.ops.ddfast.convnet_grad_jvp(
                theta, x, y, back.direction, step, [True, want_images, want_labels], *sizes
            )
            if want_images:
                dx = dx if rows is None else torch.ops.ddfast.dsa_augment_backward(dx, rows[n])
                by_images = by_images + sweep.scattered(images, n, dx)
            if want_labels:
                by_labels = by_labels + sweep.scattered(labels, n, dy)
            slopes.insert(0, back.lr)
            lam, by_m, by_v = back.parameters + h, back.m, back.v
    by_lr = torch.stack(slopes) if lr.dim() else torch.stack(slopes).sum()
    results = (lam, by_m, by_v, by_images, by_labels, by_lr)
    return tuple(result if want else empty for result, want in zip(results, wanted, strict=True))


def _fake(start, m, v, images, labels, lr, batches, rows, T, first, every, b1, b2, eps, added, own, stored, *sizes):
    if not 0 <= stored <= T:
        raise ValueError(f"stored_steps: expected 0 to {T}, got {stored}")
    if not 1 <= every <= T:
        raise ValueError(f"every: expected 1 to {T}, got {every}")
    B = len(images) if batches is None else batches.shape[1]
    step = []
    if stored:
        one = images[:1].expand(B, *images.shape[1:]), labels[:1].expand(B, *labels.shape[1:])
        step = torch.ops.ddfast.convnet_grad(start, *one, True, *sizes)[2]
    kept = [torch.empty_like(tensor) for _ in range(stored) for tensor in step]
    gradients, begins = (
        start.new_empty((T, *start.shape)),
        start.new_empty((math.ceil(T / every), 3, *start.shape)),
    )
    return torch.empty_like(start), torch.empty_like(m), torch.empty_like(v), gradients, begins, kept


def _backward_fake(grad, by_m, by_v, gradients, begins, images, labels, lr, batches, rows, kept, wanted, *settings):
    results = (gradients[0], gradients[0], gradients[0], images, labels, lr)
    contiguous = torch.contiguous_format
    return tuple(
        torch.empty_like(result, memory_format=contiguous) if want else grad.new_empty(0)
        for result, want in zip(results, wanted, strict=True)
    )


def _setup_context(ctx, inputs, output) -> None:
    *_, images, labels, lr, batches, rows = inputs[:8]
    ctx.settings = inputs[8:]
    _, _, _, gradients, begins, kept = output
    ctx.mark_non_differentiable(gradients, begins, *kept)
    ctx.set_materialize_grads(False)  # zeros as large as all that was kept
    ctx.save_for_backward(gradients, begins, images, labels, lr, batches, rows)
    ctx.kept = kept  # given up by the backward


def _backward(ctx, grad, by_m, by_v, _gradients, _begins, _kept):
    *settings, _ = ctx.settings[:9]
    sizes = ctx.settings[9:]
    wanted, (kept, ctx.kept) = list(ctx.needs_input_grad[:6]), (ctx.kept, [])
    gradients = ctx.saved_tensors[0]
    given = [gradients.new_zeros(gradients.shape[1:]) if g is None else g for g in (grad, by_m, by_v)]
    with apart_from_autocast(sizes[-1], gradients.device):
        results = torch.ops.ddfast.unroll_adam_backward(*given, *ctx.saved_tensors, kept, wanted, *settings, *sizes)
    found = [result if want else None for result, want in zip(results, wanted, strict=True)]
    if wanted[3] and is_channels_last(ctx.saved_tensors[2]):
        found[3] = in_layout(found[3], True)
    return *found, *[None] * (2 + len(ctx.settings))


_STEPS = "int syn_steps, int first, int every, float beta1, float beta2, float adam_eps, float added, float own"
_DATA = "Tensor images, Tensor labels, Tensor lr, Tensor? batches, Tensor? rows"
define(
    f"unroll_adam(Tensor start, Tensor m, Tensor v, {_DATA}, {_STEPS}, int stored_steps, {SIZES})"
    f" -> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor[])",
    _reference,
    _fake,
)
define(
    f"unroll_adam_backward(Tensor grad, Tensor by_m, Tensor by_v, Tensor gradients, Tensor begins, {_DATA},"
    f" Tensor[] kept, bool[6] wanted, {_STEPS}, {SIZES}) -> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)",
    _backward_reference,
    _backward_fake,
)
define_autograd("unroll_adam", _backward, _setup_context)
forbid_autograd("unroll_adam_backward", "unroll_adam: second derivatives are not available; use adjoints.FullUnroll")
