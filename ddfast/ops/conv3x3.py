"""conv3x3: the 3×3 convolution of the field's ConvNet as an op with three faces, by minimal filtering on a CPU."""

import torch
from torch import Tensor
from torch.nn.functional import conv2d
from torch.nn.grad import conv2d_input, conv2d_weight

from ddfast.ops._checks import expect_shape, expect_tensors, in_transform, refuse_transforms
from ddfast.ops._layout import channels_last, keeping_layout
from ddfast.ops._library import define, define_autograd, has_kernel
from ddfast.ops._precision import is_strict_float32

TILES = (4, 2, 0)  # outputs a side of a tile: the fastest, the next, and no tiles: direct


def conv3x3(
    x: Tensor,  # [B, groups·C, H, W]
    weight: Tensor,  # [groups·O, C, 3, 3]
    bias: Tensor | None = None,  # [groups·O]
    *,
    tile: int = 4,
) -> Tensor:  # [B, groups·O, H, W], channels-last or contiguous, as x is
    """The convolution of conv2d(x, weight, bias, padding=1, groups=groups), any number of times differentiable.

    On a CPU, in float32, with at least 16 channels in and out of a group and maps of more than 2 pixels a side, by
    minimal filtering F(tile × tile, 3 × 3) (Winograd; Lavin & Gray 2016): 2.5 to 3 times as fast as a direct
    convolution, with errors of 1e-6 instead of 2e-7 (docs/numerics.md). `tile` is 4, 2 (slower and more accurate) or 0
    (direct). Everything else, and every GPU, computes directly.

    Works in channels-last: other layouts are converted first, and result and gradients are converted back.

    Errors: TypeError for other dtypes than float32 and float64; ValueError for shapes or devices that do not fit
    together, and another tile.
    """
    expect_tensors(x=x, weight=weight, bias=bias)
    if tile not in TILES:
        raise ValueError(f"tile: expected 4, 2 or 0, got {tile!r}")
    if x.dim() != 4 or 0 in x.shape:
        raise ValueError(f"x: expected [B, C, H, W], got {list(x.shape)}")
    if weight.dim() != 4 or weight.shape[2:] != (3, 3) or 0 in weight.shape:
        raise ValueError(f"weight: expected [O, C, 3, 3], got {list(weight.shape)}")
    if x.shape[1] % weight.shape[1] or weight.shape[0] % (x.shape[1] // weight.shape[1]):
        raise ValueError(f"x, weight: {list(x.shape)} and {list(weight.shape)} are of no number of groups")
    if bias is not None:
        expect_shape("bias", bias, (len(weight),), "[O]")
    refuse_transforms("conv3x3", x, weight, bias)
    return keeping_layout(lambda x: torch.ops.ddfast.conv3x3(x, weight, bias, None, None, tile), x, True)


def conv3x3_is_faster(
    x: Tensor,  # [B, C, H, W]
    weight: Tensor,  # [O, C, 3, 3]
) -> bool:
    """Whether a layer may and should run as `conv3x3`: float32 on a CPU, at least 16 outputs, maps of more than 2
    pixels a side; not under autocast, torch.func, torch.compile or strict float32, where it is PyTorch's own."""
    return (
        isinstance(x, Tensor)
        and x.is_cpu
        and x.dtype == weight.dtype == torch.float32
        and x.dim() == 4
        and len(weight) >= 16
        and min(x.shape[2:]) > 2
        and len(x) > 0
        and has_kernel("conv3x3", "cpu")
        and not torch.is_autocast_enabled("cpu")
        and not is_strict_float32()
        and not in_transform(x, weight)
    )


# The reference. Each face is the sum of one or two products, as the tangent of a product is: the second may be None.


def _reference(
    x: Tensor,  # [B, groups·C, H, W]
    w: Tensor,  # [groups·O, C, 3, 3]
    bias: Tensor | None,  # [groups·O]
    x2: Tensor | None,  # like x
    w2: Tensor | None,  # like w
    tile: int,
) -> Tensor:  # [B, groups·O, H, W]
    groups = x.shape[1] // w.shape[1]
    z = channels_last(conv2d(x, w, bias, padding=1, groups=groups))
    return z if x2 is None else z + channels_last(conv2d(x2, w2, padding=1, groups=groups))


def _input_reference(
    g: Tensor,  # [B, groups·O, H, W]
    w: Tensor,  # [groups·O, C, 3, 3]
    g2: Tensor | None,  # like g
    w2: Tensor | None,  # like w
    groups: int,
    tile: int,
) -> Tensor:  # [B, groups·C, H, W]
    size = (len(g), groups * w.shape[1], *g.shape[2:])
    x = channels_last(conv2d_input(size, w, g, padding=1, groups=groups))
    return x if g2 is None else x + channels_last(conv2d_input(size, w2, g2, padding=1, groups=groups))


def _weight_reference(
    g: Tensor,  # [B, groups·O, H, W]
    x: Tensor,  # [B, groups·C, H, W]
    g2: Tensor | None,  # like g
    x2: Tensor | None,  # like x
    groups: int,
    tile: int,
) -> Tensor:  # [groups·O, C, 3, 3]
    size = (g.shape[1], x.shape[1] // groups, 3, 3)
    w = conv2d_weight(x, size, g, padding=1, groups=groups).contiguous()
    return w if g2 is None else w + conv2d_weight(x2, size, g2, padding=1, groups=groups).contiguous()


def _maps_fake(maps: Tensor, channels: int) -> Tensor:
    B, _, H, W = maps.shape
    return channels_last(maps.new_empty((B, channels, H, W)))


def _setup_context(ctx, inputs, output) -> None:
    *tensors, ctx.tile = inputs
    ctx.save_for_backward(*tensors)


def _backward(ctx, h):
    x, w, bias, x2, w2 = ctx.saved_tensors
    groups, needs, ops = x.shape[1] // w.shape[1], ctx.needs_input_grad, torch.ops.ddfast

    def by(need: bool, face, other: Tensor | None) -> Tensor | None:
        return face(h, other, None, None, groups, ctx.tile) if need and other is not None else None

    return (
        by(needs[0], ops.conv3x3_input, w),
        by(needs[1], ops.conv3x3_weight, x),
        h.sum((0, 2, 3)) if bias is not None and needs[2] else None,
        by(needs[3], ops.conv3x3_input, w2),
        by(needs[4], ops.conv3x3_weight, x2),
        None,
    )


def _transposed_setup_context(ctx, inputs, output) -> None:
    *tensors, ctx.groups, ctx.tile = inputs
    ctx.save_for_backward(*tensors)


def _input_backward(ctx, h):  # [B, groups·C, H, W]
    g, w, g2, w2 = ctx.saved_tensors
    needs, rest = ctx.needs_input_grad, (ctx.groups, ctx.tile)

    def by_g(need: bool, w: Tensor | None) -> Tensor | None:
        return torch.ops.ddfast.conv3x3(h, w, None, None, None, ctx.tile) if need and w is not None else None

    def by_w(need: bool, g: Tensor | None) -> Tensor | None:
        return torch.ops.ddfast.conv3x3_weight(g, h, None, None, *rest) if need and g is not None else None

    return by_g(needs[0], w), by_w(needs[1], g), by_g(needs[2], w2), by_w(needs[3], g2), None, None


def _weight_backward(ctx, h):  # [groups·O, C, 3, 3]
    g, x, g2, x2 = ctx.saved_tensors
    needs, rest = ctx.needs_input_grad, (ctx.groups, ctx.tile)

    def by_g(need: bool, x: Tensor | None) -> Tensor | None:
        return torch.ops.ddfast.conv3x3(x, h, None, None, None, ctx.tile) if need and x is not None else None

    def by_x(need: bool, g: Tensor | None) -> Tensor | None:
        return torch.ops.ddfast.conv3x3_input(g, h, None, None, *rest) if need and g is not None else None

    return by_g(needs[0], x), by_x(needs[1], g), by_g(needs[2], x2), by_x(needs[3], g2), None, None


define(
    "conv3x3(Tensor x, Tensor w, Tensor? bias, Tensor? x2, Tensor? w2, int tile) -> Tensor",
    _reference,
    lambda x, w, *_: _maps_fake(x, len(w)),
)
define(
    "conv3x3_input(Tensor g, Tensor w, Tensor? g2, Tensor? w2, int groups, int tile) -> Tensor",
    _input_reference,
    lambda g, w, g2, w2, groups, tile: _maps_fake(g, groups * w.shape[1]),
)
define(
    "conv3x3_weight(Tensor g, Tensor x, Tensor? g2, Tensor? x2, int groups, int tile) -> Tensor",
    _weight_reference,
    lambda g, x, g2, x2, groups, tile: g.new_empty((g.shape[1], x.shape[1] // groups, 3, 3)),
)
define_autograd("conv3x3", _backward, _setup_context)
define_autograd("conv3x3_input", _input_backward, _transposed_setup_context)
define_autograd("conv3x3_weight", _weight_backward, _transposed_setup_context)
