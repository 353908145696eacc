"""The loss of parameters on real images: what back-propagation through time descends on."""

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from ddfast.engine.students import Step, Student, student_of
from ddfast.ops import expect_tensors
from ddfast.runtime.arguments import expect_whole, takes_plain_values
from ddfast.runtime.devices import to_device

AT_ONCE = 256

Pair = tuple[Tensor, Tensor]  # images [B, C, H, W], labels: int64 [B], or target weights [B, K]


@takes_plain_values
def data_loss(
    student: Student | nn.Module,
    parameters: Tensor,  # [P] or [S, P]
    batches: Pair | Iterable[Pair],
    *,
    at_once: int = AT_ONCE,
) -> Tensor:  # [] or [S]
    """The mean cross-entropy of a network with these parameters over real images; differentiable in the parameters.

    What `ddfast.unroll` returned goes in, and the gradient comes out in images, labels and learning rates:
    min_X ℓ(θ_T(X); real images), the bilevel problem of dataset distillation (Wang et al. 2018, eq. 3).

    Args:
        student: as in `unroll`. A module is used in the mode, train or eval, that it is in.
        batches: images and labels, or many such pairs, which may come one after another from a loader: none is kept.
        at_once: images of one pass, on the parameters' device; it bounds memory and changes the last bits only, where
            images do not see each other.

    The gradient is formed together with the loss, where one is wanted, and is differentiable once.

    Errors: ValueError or TypeError naming the argument, what was expected and what came.
    """
    expect_tensors(parameters=parameters)
    expect_whole(at_once=at_once)
    if isinstance(student, nn.Module):
        student = student_of(student)
    elif not isinstance(student, Student):
        raise TypeError(f"student: expected an nn.Module or a Student, got {type(student).__name__}")
    P = student.num_parameters
    if parameters.dim() not in (1, 2) or parameters.shape[-1] != P or parameters.numel() == 0:
        raise ValueError(f"parameters: expected [P] or [S, P] with P = {P}, got {list(parameters.shape)}")
    losses = _DataLoss.apply(parameters.reshape(-1, P), student, _pairs(batches), at_once)
    return losses if parameters.dim() == 2 else losses[0]


def _pairs(batches: Any) -> Iterable[Pair]:
    """The pairs, one after another."""
    if isinstance(batches, tuple | list) and len(batches) == 2 and isinstance(batches[0], Tensor):
        return [tuple(batches)]
    if isinstance(batches, Tensor | str | dict) or not isinstance(batches, Iterable):
        raise TypeError(f"batches: expected (images, labels), or many of them, got {type(batches).__name__}")
    return batches


class _DataLoss(torch.autograd.Function):
    @staticmethod
    def forward(ctx, parameters, student, pairs, at_once):
        total, count, gradient = 0, 0, torch.zeros_like(parameters)
        for pair in pairs:
            images, labels = _checked(pair, parameters)
            for first in range(0, len(images), at_once):
                x, y = (to_device(part[first : first + at_once], parameters.device) for part in (images, labels))
                losses, slopes = student.grad(parameters.detach(), x.to(parameters.dtype), y, step=Step())
                total, count = total + losses.double() * len(x), count + len(x)
                gradient.add_(slopes, alpha=len(x))
        if not count:
            raise ValueError("batches: expected at least one image, got none")
        ctx.save_for_backward(gradient.div_(count))
        return (total / count).to(parameters.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):  # [S]
        return grad[:, None] * ctx.saved_tensors[0], None, None, None


def _checked(pair: Any, parameters: Tensor) -> Pair:
    if not isinstance(pair, tuple | list) or len(pair) != 2:
        raise TypeError(f"batches: expected pairs of images and labels, got {type(pair).__name__}")
    images, labels = pair
    if not isinstance(images, Tensor) or not images.is_floating_point() or images.dim() != 4:
        got = f"{images.dtype} {list(images.shape)}" if isinstance(images, Tensor) else type(images).__name__
        raise ValueError(f"batches: expected images [B, C, H, W] of floating-point numbers, got {got}")
    if not isinstance(labels, Tensor) or len(labels) != len(images) or not labels.dim():
        got = list(labels.shape) if isinstance(labels, Tensor) else type(labels).__name__
        raise ValueError(f"batches: expected {len(images)} labels for {len(images)} images, got {got}")
    if labels.is_floating_point():
        labels = labels.to(parameters.dtype)
    elif labels.dtype != torch.int64:
        raise TypeError(f"batches: expected int64 labels or target weights, got {labels.dtype}")
    return images, labels
