"""Distances of a student's parameters from an expert's, each normalised by the way that the expert went."""

from collections.abc import Sequence

import torch
from torch import Tensor

from ddfast.ops import expect_shape, expect_tensors, param_distance
from ddfast.runtime.arguments import expect_one_of, expect_whole

DISTANCES = ("squared", "l1", "cosine", "layerwise", "unnormalised")


def distance(
    student: Tensor,  # θ [S, P] or [P]
    target: Tensor,  # θ* like student
    start: Tensor,  # θ_0 like student
    kind: str = "squared",
    *,
    weight: Tensor | None = None,  # w, like student or [P]
    layers: Sequence[int] | None = None,  # parameters per layer, P in all
) -> Tensor:  # [S], or [] for [P]
    """How far a student is from where the expert went.

        squared       Σ w (θ − θ*)² / Σ w (θ_0 − θ*)²                (MTT, Cazenavette et al. 2022, eq. 2)
        l1            Σ w |θ − θ*| / Σ w |θ_0 − θ*|
        cosine        1 − ⟨θ − θ_0, θ* − θ_0⟩_w / (‖θ − θ_0‖_w ‖θ* − θ_0‖_w): the direction alone
        layerwise     the mean of `squared` over the layers in which the expert moved; needs `layers`
        unnormalised  Σ w (θ − θ*)²

    The weight is a constant, 1 where None. squared and layerwise are ops.param_distance. Differentiable in student,
    and but for layerwise in target and start; a start that equals its target gives inf or nan, and so does cosine
    for a student that has not moved.

    Errors: ValueError for an unknown kind, or layers that do not add up to P; those of ops.param_distance.
    """
    expect_one_of("distance", kind, DISTANCES)
    expect_tensors(student=student, target=target, start=start, weight=weight)
    if student.dim() not in (1, 2) or student.numel() == 0:
        raise ValueError(f"student: expected [S, P] or [P], got {list(student.shape)}")
    for name, tensor in (("target", target), ("start", start)):
        expect_shape(name, tensor, student.shape, "like student")
    if weight is not None and weight.shape not in (student.shape, student.shape[-1:]):
        raise ValueError(f"weight: expected {list(student.shape)} or [{student.shape[-1]}], got {list(weight.shape)}")
    if kind == "layerwise":
        weight = _by_layer(target, start, weight, layers)
    if kind in ("squared", "layerwise"):
        if weight is None or weight.dim() == 1:
            return param_distance(student, target, start, weight)
        rows = zip(student, target, start, weight, strict=True)
        return torch.stack([param_distance(*row) for row in rows])
    w = 1.0 if weight is None else weight
    if kind == "l1":
        return (w * (student - target).abs()).sum(-1) / (w * (start - target).abs()).sum(-1)
    if kind == "unnormalised":
        return (w * (student - target).square()).sum(-1)
    went, should = student - start, target - start
    squares = (w * went.square()).sum(-1) * (w * should.square()).sum(-1)
    return 1 - (w * went * should).sum(-1) / squares.sqrt()


def _by_layer(
    target: Tensor,  # [S, P] or [P]
    start: Tensor,
    weight: Tensor | None,
    layers: Sequence[int] | None,
) -> Tensor:  # like target
    """The weight with which `squared` is the mean over layers: w over the layer's own denominator."""
    P = target.shape[-1]
    expect_whole(**{f"layers[{i}]": size for i, size in enumerate(layers or ())})
    if layers is None or sum(layers) != P:
        got = "none" if layers is None else f"{len(layers)} with {sum(layers)} parameters"
        raise ValueError(f"layers: expected the sizes of layers of {P} parameters in all, got {got}")
    w = torch.ones_like(target) if weight is None else weight.expand_as(target)
    squares = w * (start - target).detach().square()
    denominators = torch.stack([part.sum(-1) for part in squares.split(list(layers), -1)], -1)  # [S, L] or [L]
    shares = torch.where(denominators > 0, 1 / denominators, 0.0)
    parts = [shares[..., i, None].expand(*target.shape[:-1], size) for i, size in enumerate(layers)]
    return w * torch.cat(parts, -1)
