"""gradient_distance: how far two flat gradients are apart, layer by layer, in one pass over memory."""

from collections.abc import Sequence

import torch
from torch import Tensor

from ddfast.ops._checks import expect_shape, expect_tensors, refuse_transforms
from ddfast.ops._library import define, define_autograd

KINDS = ("cosine", "squared", "absolute")
EPS = 1e-6  # added to products of norms


def gradient_distance(
    g: Tensor,  # [S, P] or [P]
    h: Tensor,  # like g
    layers: Sequence[tuple[int, int, int]],  # offset in P, rows, and length of a row, of each
    kind: str = "cosine",
) -> Tensor:  # [S], or [] for [P]
    """Distance of gradients g and h, summed over the rows of the layers; parameters of no layer count nothing.

    kind "cosine": 1 − ⟨a, b⟩ / (‖a‖ ‖b‖ + 1e-6) of every row, which holds the weights of an output
    unit (DC: Zhao et al. 2021, eq. 9). "squared": Σ (a − b)². "absolute": Σ |a − b| (both as IDC, Kim et al. 2022).

    One pass computes the value, one more the gradients asked for. Differentiable in g and h, in every order.

    Errors: TypeError for other dtypes than one of float32 and float64; ValueError for shapes or devices that differ,
    another kind, or layers that are not parts of P one after another.
    """
    expect_tensors(g=g, h=h)
    if g.dim() not in (1, 2) or g.numel() == 0:
        raise ValueError(f"g: expected [S, P] or [P], got {list(g.shape)}")
    expect_shape("h", h, g.shape, "[S, P] like g" if g.dim() == 2 else "[P] like g")
    if kind not in KINDS:
        raise ValueError(f"kind: expected one of {', '.join(KINDS)}, got {kind!r}")
    flat = [int(number) for layer in layers for number in layer]
    _check_layers(flat, g.shape[-1])
    refuse_transforms("gradient_distance", g, h)
    rows = [tensor.reshape(-1, g.shape[-1]) for tensor in (g, h)]
    distance, _ = torch.ops.ddfast.gradient_distance(*rows, flat, KINDS.index(kind))
    return distance.reshape(g.shape[:-1])


def _check_layers(layers: Sequence[int], P: int) -> None:
    if not layers or len(layers) % 3:
        raise ValueError(f"layers: expected offset, rows and length of each, got {len(layers)} numbers")
    end = 0
    for offset, rows, length in _triples(layers):
        if offset < end or rows < 1 or length < 1 or offset + rows * length > P:
            raise ValueError(f"layers: expected parts of {P} parameters one after another, got {list(layers)}")
        end = offset + rows * length


def _triples(layers: Sequence[int]) -> list[tuple[int, int, int]]:
    return list(zip(layers[::3], layers[1::3], layers[2::3], strict=True))


def _rows(flat: Tensor, layers: Sequence[int]) -> list[Tensor]:  # [S, P] -> [S, rows, length] each
    return [flat[:, o : o + n * k].unflatten(1, (n, k)) for o, n, k in _triples(layers)]


def _value(g: Tensor, h: Tensor, layers: Sequence[int], kind: int) -> Tensor:  # [S, P], [S, P] -> [S]
    total = g.new_zeros(len(g))
    for a, b in zip(_rows(g, layers), _rows(h, layers), strict=True):
        if KINDS[kind] == "cosine":
            total = total + (1 - (a * b).sum(2) / (a.norm(dim=2) * b.norm(dim=2) + EPS)).sum(1)
        else:
            total = total + ((a - b).square() if KINDS[kind] == "squared" else (a - b).abs()).sum((1, 2))
    return total


def _reference(
    g: Tensor,  # [S, P]
    h: Tensor,  # [S, P]
    layers: Sequence[int],
    kind: int,
) -> tuple[Tensor, Tensor]:  # distance [S]; sums of every row [S, R, 3], float64: ⟨a, b⟩, ‖a‖², ‖b‖², or its distance
    _check_layers(layers, g.shape[1])
    g, h = g.detach(), h.detach()
    sums = []
    for a, b in zip(_rows(g, layers), _rows(h, layers), strict=True):
        if KINDS[kind] == "cosine":
            sums.append(torch.stack([(a * b).sum(2), a.square().sum(2), b.square().sum(2)], 2).double())
        else:
            apart = ((a - b).square() if KINDS[kind] == "squared" else (a - b).abs()).sum(2).double()
            sums.append(torch.stack([apart, torch.zeros_like(apart), torch.zeros_like(apart)], 2))
    return _value(g, h, layers, kind), torch.cat(sums, 1)


def _backward_reference(
    grad: Tensor,  # [S]
    g: Tensor,  # [S, P]
    h: Tensor,  # [S, P]
    sums: Tensor,  # float64 [S, R, 3]
    layers: Sequence[int],
    kind: int,
    wanted: list[bool],  # gradients in g and h
) -> tuple[Tensor, Tensor]:  # [S, P], or [0] where not wanted
    _check_layers(layers, g.shape[1])
    expect_shape("sums", sums, (len(g), sum(n for _, n, _ in _triples(layers)), 3), "[S, R, 3]")
    by_g, by_h = torch.zeros_like(g), torch.zeros_like(h)
    row = 0
    for (offset, count, length), a, b in zip(_triples(layers), _rows(g, layers), _rows(h, layers), strict=True):
        if KINDS[kind] == "cosine":
            dot, aa, bb = sums[:, row : row + count, :, None].unbind(2)  # [S, rows, 1]
            norm_a, norm_b = aa.sqrt(), bb.sqrt()
            q = norm_a * norm_b + EPS
            slope = dot / q.square()
            of_a = torch.where(aa > 0, slope * norm_b / norm_a, 0 * norm_a).to(g.dtype)
            of_b = torch.where(bb > 0, slope * norm_a / norm_b, 0 * norm_b).to(g.dtype)
            across = (-1 / q).to(g.dtype)
            by_a, by_b = of_a * a + across * b, across * a + of_b * b
        else:
            by_a = 2 * (a - b) if KINDS[kind] == "squared" else (a - b).sign()
            by_b = -by_a
        by_g[:, offset : offset + count * length] = (grad[:, None, None] * by_a).flatten(1)
        by_h[:, offset : offset + count * length] = (grad[:, None, None] * by_b).flatten(1)
        row += count
    return tuple(x if want else x.new_empty(0) for x, want in zip((by_g, by_h), wanted, strict=True))


def _fake(g, h, layers, kind):
    return g.new_empty(len(g)), g.new_empty(len(g), sum(layers[1::3]), 3, dtype=torch.float64)


def _backward_fake(grad, g, h, sums, layers, kind, wanted):
    return tuple(g.new_empty(g.shape if want else 0) for want in wanted)


def _setup_context(ctx, inputs, output) -> None:
    g, h, ctx.layers, ctx.kind = inputs
    ctx.save_for_backward(g, h, output[1])
    ctx.mark_non_differentiable(output[1])


def _backward(ctx, grad, _):
    g, h, sums = ctx.saved_tensors
    wanted = list(ctx.needs_input_grad[:2])
    found = torch.ops.ddfast.gradient_distance_backward(grad, g, h, sums, ctx.layers, ctx.kind, wanted)
    return *(x if want else None for x, want in zip(found, wanted, strict=True)), None, None


def _backward_setup_context(ctx, inputs, output) -> None:
    *tensors, ctx.layers, ctx.kind, ctx.wanted = inputs
    ctx.save_for_backward(*tensors)


def _double_backward(ctx, *cotangents):
    """Derivative of ⟨cotangents, gradients⟩ by autograd of the formula, and so right in every further order."""
    grad, g, h, _ = ctx.saved_tensors
    further = torch.is_grad_enabled()
    with torch.enable_grad():
        # views, for grad may itself depend on g and h, which is not to be counted here
        inputs = [x.view_as(x) if x.requires_grad else x.detach().requires_grad_() for x in (grad, g, h)]
        value = _value(inputs[1], inputs[2], ctx.layers, ctx.kind)
        first = torch.autograd.grad(value, inputs[1:], inputs[0], create_graph=True)
        along = [c for c, want in zip(cotangents, ctx.wanted, strict=True) if want]
        outputs = [x for x, want in zip(first, ctx.wanted, strict=True) if want]
        found = torch.autograd.grad(
            outputs, inputs, along, create_graph=further, allow_unused=True, materialize_grads=True
        )
    return *found, None, None, None, None


define(
    "gradient_distance(Tensor g, Tensor h, int[] layers, int kind) -> (Tensor, Tensor)",
    _reference,
    _fake,
)
define(
    "gradient_distance_backward(Tensor grad, Tensor g, Tensor h, Tensor sums, int[] layers, int kind, bool[2] wanted)"
    " -> (Tensor, Tensor)",
    _backward_reference,
    _backward_fake,
)
define_autograd("gradient_distance", _backward, _setup_context)
define_autograd("gradient_distance_backward", _double_backward, _backward_setup_context)
