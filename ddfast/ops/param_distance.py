"""param_distance: the normalised squared distance of trajectory matching, both sums in one pass over memory."""

import torch
from torch import Tensor

from ddfast.ops._checks import expect_shape, expect_tensors, refuse_transforms
from ddfast.ops._library import define, define_autograd


def param_distance(
    student: Tensor,  # [S, P] or [P]
    target: Tensor,  # like student
    start: Tensor,  # like student
    weight: Tensor | None = None,  # [P]
) -> Tensor:  # [S], or [] for [P]
    """Squared distance of student and target parameters, as a share of the distance that the expert went.

        Σ_p w (student − target)² / Σ_p w (start − target)²           (MTT, Cazenavette et al. 2022, eq. 2)

    `weight` (1 where None) enters both sums and is a constant. One pass over the inputs computes the value, one more
    all gradients asked for. Differentiable in student, target and start, in every order. A start that equals its
    target, or a weight of zeros, gives inf or nan: that is for the reader of the segment to refuse, for this op never
    waits for the device.

    Errors: TypeError for other dtypes than one of float32 and float64; ValueError for shapes or devices that differ, or
    a weight that requires grad.
    """
    expect_tensors(student=student, target=target, start=start, weight=weight)
    if student.dim() not in (1, 2):
        raise ValueError(f"student: expected [S, P] or [P], got {list(student.shape)}")
    if student.numel() == 0:
        raise ValueError(f"student: expected at least one student and one parameter, got {list(student.shape)}")
    letters = "[S, P]" if student.dim() == 2 else "[P]"
    expect_shape("target", target, student.shape, f"{letters} like student")
    expect_shape("start", start, student.shape, f"{letters} like student")
    if weight is not None:
        expect_shape("weight", weight, student.shape[-1:], "[P]")
        if weight.requires_grad:
            raise ValueError("weight: expected a constant, got a tensor that requires grad")
    refuse_transforms("param_distance", student, target, start, weight)
    rows = [tensor.reshape(-1, student.shape[-1]) for tensor in (student, target, start)]
    distance, _ = torch.ops.ddfast.param_distance(*rows, weight)
    return distance.reshape(student.shape[:-1])


def _reference(
    student: Tensor,  # [S, P]
    target: Tensor,  # [S, P]
    start: Tensor,  # [S, P]
    weight: Tensor | None,  # [P]
) -> tuple[Tensor, Tensor]:  # distance [S], denominator [S]
    w = 1.0 if weight is None else weight
    numerator = (w * (student - target).square()).sum(1)
    denominator = (w * (start - target).square()).sum(1)
    return numerator / denominator, denominator


def _backward_reference(
    grad: Tensor,  # [S]
    student: Tensor,  # [S, P]
    target: Tensor,  # [S, P]
    start: Tensor,  # [S, P]
    weight: Tensor | None,  # [P]
    distance: Tensor,  # [S]
    denominator: Tensor,  # [S]
    wanted: list[bool],  # gradients in student, target, start
) -> tuple[Tensor, Tensor, Tensor]:  # each [S, P], or [0] where not wanted
    w = 1.0 if weight is None else weight
    scale = (2 * grad / denominator)[:, None]
    grad_student = scale * w * (student - target)
    grad_start = -scale * distance[:, None] * w * (start - target)
    gradients = (grad_student, -grad_student - grad_start, grad_start)
    return tuple(g if want else g.new_empty(0) for g, want in zip(gradients, wanted, strict=True))


def _fake(student, target, start, weight):
    return student.new_empty(student.shape[0]), student.new_empty(student.shape[0])


def _backward_fake(grad, student, target, start, weight, distance, denominator, wanted):
    return tuple(student.new_empty(student.shape if want else 0) for want in wanted)


def _setup_context(ctx, inputs, output) -> None:
    ctx.save_for_backward(*inputs, *output)
    ctx.mark_non_differentiable(output[1])


def _backward(ctx, grad, _):
    wanted = list(ctx.needs_input_grad[:3])
    gradients = torch.ops.ddfast.param_distance_backward(grad, *ctx.saved_tensors, wanted)
    return *(g if want else None for g, want in zip(gradients, wanted, strict=True)), None


def _backward_setup_context(ctx, inputs, output) -> None:
    *tensors, ctx.wanted = inputs
    ctx.save_for_backward(*tensors)


def _double_backward(ctx, *cotangents):
    """Derivative of ⟨cotangents, gradients⟩, in plain PyTorch, and so right in every further order.

    Distance and denominator are functions of the parameters here: computed anew, and their own cotangents are None.
    """
    grad, student, target, start, weight, *_ = ctx.saved_tensors
    w = 1.0 if weight is None else weight
    along_student, along_target, along_start = (
        c if want else 0.0 for c, want in zip(cotangents, ctx.wanted, strict=True)
    )
    a, b = student - target, start - target
    # grad_target = −grad_student − grad_start, so its cotangent joins the other two.
    u, v = w * (along_student - along_target), w * (along_start - along_target)
    ua, vb = (u * a).sum(1, keepdim=True), (v * b).sum(1, keepdim=True)
    denominator = (w * b.square()).sum(1, keepdim=True)
    distance = (w * a.square()).sum(1, keepdim=True) / denominator
    scale = 2 * grad[:, None] / denominator
    grad_grad = 2 * (ua - distance * vb) / denominator
    grad_a = scale * (u - 2 * vb / denominator * w * a)
    grad_b = scale * (2 * (2 * distance * vb - ua) / denominator * w * b - distance * v)
    return grad_grad[:, 0], grad_a, -grad_a - grad_b, grad_b, None, None, None, None


_INPUTS = "Tensor student, Tensor target, Tensor start, Tensor? weight"
define(f"param_distance({_INPUTS}) -> (Tensor, Tensor)", _reference, _fake)
define(
    f"param_distance_backward(Tensor grad, {_INPUTS}, Tensor distance, Tensor denominator, bool[3] wanted)"
    " -> (Tensor, Tensor, Tensor)",
    _backward_reference,
    _backward_fake,
)
define_autograd("param_distance", _backward, _setup_context)
define_autograd("param_distance_backward", _double_backward, _backward_setup_context)
