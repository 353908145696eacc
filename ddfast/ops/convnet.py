"""convnet: the field's ConvNet on flat parameters, S students at once: logits, gradient, and the gradient's jvp."""

import torch
from torch import Tensor
from torch.nn.functional import conv2d, pad
from torch.nn.grad import conv2d_input, conv2d_weight

from ddfast.ops._checks import expect_dtype, expect_shape, expect_tensors, refuse_transforms
from ddfast.ops._convnet_layout import ConvNetLayout
from ddfast.ops._extension import EXTENSION
from ddfast.ops._layout import channels_last, in_layout, is_channels_last
from ddfast.ops._library import define, define_autograd, forbid_autograd
from ddfast.ops._precision import apart_from_autocast

# of a ConvNetLayout, in a schema
SIZES = "int width, int depth, int num_classes, int border, float eps, str precision"


def convnet_forward(
    parameters: Tensor,  # [S, P]
    images: Tensor,  # [B, C, H, W], seen by every student, or [S, B, C, H, W]
    layout: ConvNetLayout,
) -> Tensor:  # [S, B, K]
    """Logits of S ConvNets. Not differentiable: `convnet_grad` is its loss's gradient, networks.ConvNet the module.

    Errors: TypeError for other dtypes than one of float32 and float64, or float64 with the precision bfloat16;
    ValueError for shapes or devices that do not fit together.
    """
    check_convnet(layout, parameters, images)
    with apart_from_autocast(layout.precision, parameters.device):
        return torch.ops.ddfast.convnet_forward(parameters, images, *layout.sizes)


def convnet_grad(
    parameters: Tensor,  # [S, P]
    images: Tensor,  # [B, C, H, W], seen by every student, or [S, B, C, H, W]
    labels: Tensor,  # int64 [B], or target weights [B, K]; of each student its own: [S, B], [S, B, K]
    layout: ConvNetLayout,
    *,
    keep: bool = False,
) -> tuple[Tensor, Tensor, list[Tensor]]:  # losses [S], g [S, P], kept
    """The mean cross-entropy of every student and its gradient g = ∇_θ ℓ.

    With `keep`, what `convnet_grad_jvp` can take up instead of computing it again: the convolution's result z
    [B, S·width, H, W] of every block but the first, which is the largest and the cheapest, and the cotangent of the
    pooled map [B, S·width, H/2, W/2] of every block. A convolution's bias stands before an instance norm and has no
    effect: its gradient is exactly 0. g is differentiable once, by convnet_grad_jvp; the losses are not.

    Errors: as convnet_forward, and those of labels.
    """
    check_convnet(layout, parameters, images, labels)
    with apart_from_autocast(layout.precision, parameters.device):
        return torch.ops.ddfast.convnet_grad(parameters, images, labels, keep, *layout.sizes)


def convnet_grad_jvp(
    parameters: Tensor,  # [S, P]
    images: Tensor,  # [B, C, H, W], seen by every student, or [S, B, C, H, W]
    labels: Tensor,  # int64 [B], or target weights [B, K]; of each student its own: [S, B], [S, B, K]
    direction: Tensor,  # σ [S, P]
    layout: ConvNetLayout,
    *,
    kept: list[Tensor] | None = None,
    wanted: tuple[bool, bool, bool] = (True, True, True),
) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # ⟨g, σ⟩ [S], Hσ [S, P], ∂⟨g,σ⟩/∂x like images, ∂⟨g,σ⟩/∂y [(S,) B, K]
    """Directional derivatives along σ of the gradient: one forward pass with tangents, one backward pass with theirs.

    Forward over reverse (Pearlmutter 1994) without an autograd graph: 8 convolutions of a forward pass's size where
    `kept` holds what convnet_grad kept for the same arguments, 8 plus 2 where not; the first block's, which is cheap,
    is always computed again. Images that every student sees, and labels, get the sum over students. What is not
    `wanted` (of parameters, images, labels) comes back empty, [0]. Not differentiable.

    Errors: as convnet_grad.
    """
    check_convnet(layout, parameters, images, labels)
    expect_tensors(parameters=parameters, direction=direction)
    expect_shape("direction", direction, tuple(parameters.shape), "[S, P]")
    with apart_from_autocast(layout.precision, parameters.device):
        slope, h_sigma, by_images, by_labels = torch.ops.ddfast.convnet_grad_jvp(
            parameters, images, labels, direction, kept or [], list(wanted), *layout.sizes
        )
    if wanted[1] and images.dim() == 4:
        by_images = in_layout(by_images, is_channels_last(images))
    return slope, h_sigma, by_images, by_labels


def check_convnet(layout: ConvNetLayout, parameters: Tensor, images: Tensor, labels: Tensor | None = None) -> None:
    """Raise for tensors that are not a ConvNet's of this layout, or do not fit together."""
    soft = {"labels": labels} if isinstance(labels, Tensor) and labels.is_floating_point() else {}
    expect_tensors(parameters=parameters, images=images, **soft)
    if layout.precision == "bfloat16":
        expect_dtype("parameters", parameters, torch.float32, reason=" with the precision bfloat16")
    if parameters.dim() != 2 or images.dim() not in (4, 5) or 0 in images.shape:
        raise ValueError(
            f"parameters, images: expected [S, P] and [B, C, H, W] or [S, B, C, H, W], got {list(parameters.shape)} "
            f"and {list(images.shape)}"
        )
    (S, P), (B, C, H, W) = parameters.shape, images.shape[-4:]
    if min(layout.maps((H, W))[-1]) < 1:
        raise ValueError(f"images: expected at least {2**layout.depth} pixels a side, got {H} × {W}")
    expected = sum(torch.Size(shape).numel() for shape in layout.piece_shapes(C, (H, W)))
    if S == 0 or P != expected:
        raise ValueError(
            f"images, parameters: images of {C} × {H} × {W} take a ConvNet of [S, {expected}] parameters, got {[S, P]}"
        )
    if images.dim() == 5 and len(images) != S:
        raise ValueError(f"images: expected [{S}, B, C, H, W] for {S} students, got {list(images.shape)}")
    if labels is not None:
        if not soft and labels.dtype != torch.int64:
            raise TypeError(f"labels: expected int64 or target weights, got {labels.dtype}")
        shape = (B, layout.num_classes) if soft else (B,)
        own = labels.dim() > len(shape)
        letters = f"[{'S, ' if own else ''}B{', K' if soft else ''}]"
        expect_shape("labels", labels, (S, *shape) if own else shape, letters)
    refuse_transforms("convnet", parameters, images, *soft.values())


def first_block_parts(
    layout: ConvNetLayout,
    images: torch.Size,  # [B, C, H, W], that all students see
    students: int,
    dtype: torch.dtype,
    on_gpu: bool,
) -> int:
    """Of how many images at a time the first block's maps are in memory; 0 where it is of all."""
    if EXTENSION is None or on_gpu or dtype != torch.float32 or layout.precision == "bfloat16":
        return 0
    return EXTENSION.first_block_parts(images[0], images[1], students * layout.width)


# The reference. Students are folded into channels: maps are [B, S·C, H, W], convolutions have S groups; images that all
# students see keep their C channels, and the first convolution one group. Maps and the weights of convolutions have the
# layout's map_dtype.


class _Weights:
    """The parameters of S students by layer, folded."""

    def __init__(
        self,
        flat: Tensor,  # [S, P]
        images: Tensor,  # [B, C, H, W] or [S, B, C, H, W]
        layout: ConvNetLayout,
    ) -> None:
        shapes = layout.piece_shapes(images.shape[-3], tuple(images.shape[-2:]))
        pieces = flat.split([torch.Size(shape).numel() for shape in shapes], 1)
        *blocks, weight, bias = [p.reshape(len(flat), *shape) for p, shape in zip(pieces, shapes, strict=True)]
        # of every block w [S·O, I, 3, 3], γ [S·O], β [S·O]
        self.blocks = [[p.flatten(0, 1) for p in (blocks[i], *blocks[i + 2 : i + 4])] for i in range(0, len(blocks), 4)]
        for block in self.blocks:
            block[0] = block[0].to(layout.map_dtype(flat.dtype))
        self.weight, self.bias = weight, bias  # [S, K, F], [S, K]


def _flat(blocks: list[tuple[Tensor, Tensor, Tensor]], weight: Tensor, bias: Tensor) -> Tensor:  # [S, P]
    """The inverse of _Weights; biases of convolutions are 0."""
    S = len(weight)
    rows = [piece.reshape(S, -1) for w, gamma, beta in blocks for piece in (w, torch.zeros_like(gamma), gamma, beta)]
    return torch.cat([row.to(weight.dtype) for row in (*rows, weight.flatten(1), bias)], 1)


def _fold(images: Tensor, layout: ConvNetLayout) -> Tensor:  # [B, C, H, W] or [S, B, C, H, W] -> [B, (S·)C, H + 2, …]
    folded = images.transpose(0, 1).flatten(1, 2) if images.dim() == 5 else images
    return channels_last(pad(folded.to(layout.map_dtype(images.dtype)), 4 * [layout.border]))


def _unfold(grad: Tensor, images: Tensor, border: int) -> Tensor:  # the transpose of _fold
    H, W = images.shape[-2:]
    inner = grad[..., border : border + H, border : border + W]
    folded = inner.unflatten(1, (len(images), -1)).transpose(0, 1) if images.dim() == 5 else inner
    return folded.to(images.dtype).contiguous()


def _features(y: Tensor, weights: _Weights) -> Tensor:  # [B, S·C, H, W] -> [S, B, C·H·W], to multiply with its weight
    return y.unflatten(1, (len(weights.weight), -1)).transpose(0, 1).flatten(2).to(weights.weight.dtype)


def _unfeatures(features: Tensor, y: Tensor) -> Tensor:  # [S, B, C·H·W] -> like y
    maps = features.unflatten(2, (-1, *y.shape[2:])).transpose(0, 1).flatten(1, 2)
    return channels_last(maps.to(y.dtype))


def _groups(x: Tensor, w: Tensor) -> int:
    return x.shape[1] // w.shape[1]


def _conv(x: Tensor, w: Tensor) -> Tensor:
    return channels_last(conv2d(x, w, padding=1, groups=_groups(x, w)))


def _conv_input(g: Tensor, x: Tensor, w: Tensor) -> Tensor:  # the convolution's transpose
    return channels_last(conv2d_input(x.shape, w, g, padding=1, groups=_groups(x, w)))


def _conv_weight(g: Tensor, x: Tensor, w: Tensor) -> Tensor:
    return conv2d_weight(x, w.shape, g, padding=1, groups=_groups(x, w))


def _targets(labels: Tensor, logits: Tensor) -> Tensor:  # int64 [(S,) B] or [(S,) B, K] -> [(S,) B, K]
    if labels.is_floating_point():
        return labels
    return logits.new_zeros((*labels.shape, logits.shape[2])).scatter_(-1, labels[..., None], 1)


def _forward(
    weights: _Weights,
    images: Tensor,  # [B, C, H, W] or [S, B, C, H, W]
    layout: ConvNetLayout,
    kept: list[Tensor],
) -> tuple[list[tuple[Tensor, ...]], Tensor, Tensor]:  # of every block (x, z, mean, rstd); the last y; logits [S, B, K]
    x, blocks = _fold(images, layout), []
    for i, (w, gamma, beta) in enumerate(weights.blocks):
        z = kept[2 * i - 1] if kept and i else _conv(x, w)
        y, mean, rstd = torch.ops.ddfast.norm_relu_pool(z, gamma, beta, layout.eps)
        blocks.append((x, z, mean, rstd))
        x = y
    features = _features(x, weights)
    return blocks, x, torch.baddbmm(weights.bias[:, None], features, weights.weight.mT)


def _forward_reference(parameters, images, *sizes):
    layout = ConvNetLayout(*sizes)
    return _forward(_Weights(parameters, images, layout), images, layout, [])[2]


def _grad_reference(
    parameters: Tensor,  # [S, P]
    images: Tensor,  # [B, C, H, W] or [S, B, C, H, W]
    labels: Tensor,  # int64 [(S,) B] or [(S,) B, K]
    keep: bool,
    *sizes,
) -> tuple[Tensor, Tensor, list[Tensor]]:  # losses [S], g [S, P], kept
    layout = ConvNetLayout(*sizes)
    weights = _Weights(parameters, images, layout)
    blocks, y, logits = _forward(weights, images, layout, [])
    targets, B = _targets(labels, logits), logits.shape[1]
    delta = (targets.sum(-1, keepdim=True) * logits.softmax(2) - targets) / B  # [S, B, K]
    losses = -(targets * logits.log_softmax(2)).sum((1, 2)) / B
    g_weight, g_bias = delta.mT @ _features(y, weights), delta.sum(1)
    g_y = _unfeatures(delta @ weights.weight, y)
    gradients: list[Tensor] = []
    kept: list[Tensor] = []
    for i in reversed(range(layout.depth)):
        (w, gamma, beta), (x, z, mean, rstd) = weights.blocks[i], blocks[i]
        kept = [*([z] if i else []), g_y, *kept] if keep else kept
        g_z, g_gamma, g_beta = torch.ops.ddfast.norm_relu_pool_backward(g_y, z, mean, rstd, gamma, beta)
        gradients.insert(0, (_conv_weight(g_z, x, w), g_gamma, g_beta))
        g_y = _conv_input(g_z, x, w) if i else None
    return losses, _flat(gradients, g_weight, g_bias), kept


def _grad_jvp_reference(
    parameters: Tensor,  # [S, P]
    images: Tensor,  # [B, C, H, W] or [S, B, C, H, W]
    labels: Tensor,  # int64 [(S,) B] or [(S,) B, K]
    direction: Tensor,  # [S, P]
    kept: list[Tensor],
    wanted: list[bool],
    *sizes,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # ⟨g, σ⟩ [S], Hσ [S, P], ∂⟨g,σ⟩/∂x like images, ∂⟨g,σ⟩/∂y [(S,) B, K]
    layout = ConvNetLayout(*sizes)
    weights, dots = _Weights(parameters, images, layout), _Weights(direction, images, layout)
    blocks, y, logits = _forward(weights, images, layout, kept)
    dy: Tensor | None = None  # the images' own tangent is 0
    tangents: list[tuple[Tensor, ...]] = []
    for (w, gamma, beta), (dw, dgamma, dbeta), (x, z, mean, rstd) in zip(
        weights.blocks, dots.blocks, blocks, strict=True
    ):
        dx, dz = dy, _conv(x, dw) if dy is None else _conv(x, dw) + _conv(dy, w)
        dy, dmean, dcov = torch.ops.ddfast.norm_relu_pool_jvp(dz, dgamma, dbeta, z, mean, rstd, gamma, beta)
        tangents.append((dx, dz, dmean, dcov))

    f, df, targets = _features(y, weights), _features(dy, weights), _targets(labels, logits)
    dlogits = df @ weights.weight.mT + f @ dots.weight.mT + dots.bias[:, None]  # [S, B, K]
    B, row_sums, p = logits.shape[1], targets.sum(-1, keepdim=True), logits.softmax(2)
    p_dot = (p * dlogits).sum(2, keepdim=True)
    delta, ddelta = (row_sums * p - targets) / B, row_sums * p * (dlogits - p_dot) / B
    slope = (delta * dlogits).sum((1, 2))

    h_weight, h_bias = ddelta.mT @ f + delta.mT @ df, ddelta.sum(1)
    g_y = _unfeatures(delta @ weights.weight, y)
    dg_y = _unfeatures(ddelta @ weights.weight + delta @ dots.weight, y)
    second: list[Tensor] = []
    for i in reversed(range(layout.depth)):
        (w, gamma, beta), (dw, dgamma, _) = weights.blocks[i], dots.blocks[i]
        (x, z, mean, rstd), (dx, dz, dmean, dcov) = blocks[i], tangents[i]
        g_z, _, _ = torch.ops.ddfast.norm_relu_pool_backward(g_y, z, mean, rstd, gamma, beta)
        dg_z, h_gamma, h_beta = torch.ops.ddfast.norm_relu_pool_backward_jvp(
            g_y, dg_y, z, dz, mean, rstd, dmean, dcov, gamma, dgamma, beta
        )
        if wanted[0]:
            h_w = _conv_weight(dg_z, x, w).to(direction.dtype) + (0 if dx is None else _conv_weight(g_z, dx, w))
            second.insert(0, (h_w, h_gamma, h_beta))
        if i or wanted[1]:
            dg_y = _conv_input(dg_z, x, w) + _conv_input(g_z, x, dw)
        if i:
            g_y = kept[2 * i - 2] if kept else _conv_input(g_z, x, w)
    empty = parameters.new_empty(0)
    return (
        slope,
        _flat(second, h_weight, h_bias) if wanted[0] else empty,
        _unfold(dg_y, images, layout.border) if wanted[1] else empty,
        ((p_dot - dlogits) / B).sum_to_size(targets.shape) if wanted[2] else empty,
    )


def _grad_fake(parameters, images, labels, keep, *sizes):
    layout, kept = ConvNetLayout(*sizes), []
    dtype = layout.map_dtype(parameters.dtype)
    N, C = images.shape[-4], len(parameters) * layout.width
    for size in layout.maps(tuple(images.shape[-2:]))[1:] if keep else ():
        kept += [channels_last(parameters.new_empty((N, C, *size), dtype=dtype)) for _ in range(2)]
    kept = kept[:-1]  # a pooled map is as large as the next block's z
    return parameters.new_empty(len(parameters)), torch.empty_like(parameters), kept


def _grad_jvp_fake(parameters, images, labels, direction, kept, wanted, width, depth, num_classes, *_):
    empty = parameters.new_empty(0)
    return (
        parameters.new_empty(len(parameters)),
        parameters.new_empty(parameters.shape) if wanted[0] else empty,
        images.new_empty(images.shape) if wanted[1] else empty,
        parameters.new_empty((*labels.shape[: labels.dim() - labels.is_floating_point()], num_classes))
        if wanted[2]
        else empty,
    )


def _grad_setup_context(ctx, inputs, output) -> None:
    parameters, images, labels, _, *ctx.sizes = inputs
    ctx.save_for_backward(parameters, images, labels, *output[2])
    ctx.mark_non_differentiable(output[0], *output[2])
    ctx.set_materialize_grads(False)  # zeros as large as all that was kept


def _grad_backward(ctx, _losses, grad_g, _kept):
    if grad_g is None:
        return (None,) * (4 + len(ctx.sizes))
    parameters, images, labels, *kept = ctx.saved_tensors
    wanted = list(ctx.needs_input_grad[:3])
    with apart_from_autocast(ctx.sizes[-1], parameters.device):
        _, *results = torch.ops.ddfast.convnet_grad_jvp(parameters, images, labels, grad_g, kept, wanted, *ctx.sizes)
    gradients = [result if want else None for result, want in zip(results, wanted, strict=True)]
    return *gradients, *([None] * (1 + len(ctx.sizes)))


define(
    f"convnet_forward(Tensor parameters, Tensor images, {SIZES}) -> Tensor",
    _forward_reference,
    lambda parameters, images, width, depth, num_classes, *_: parameters.new_empty(
        (len(parameters), images.shape[-4], num_classes)
    ),
)
define(
    f"convnet_grad(Tensor parameters, Tensor images, Tensor labels, bool keep, {SIZES}) -> (Tensor, Tensor, Tensor[])",
    _grad_reference,
    _grad_fake,
)
define(
    f"convnet_grad_jvp(Tensor parameters, Tensor images, Tensor labels, Tensor direction, Tensor[] kept,"
    f" bool[3] wanted, {SIZES}) -> (Tensor, Tensor, Tensor, Tensor)",
    _grad_jvp_reference,
    _grad_jvp_fake,
)
forbid_autograd(
    "convnet_forward", "convnet_forward is not differentiable; use convnet_grad, or the module networks.ConvNet"
)
define_autograd("convnet_grad", _grad_backward, _grad_setup_context)
forbid_autograd("convnet_grad_jvp", "convnet_grad: third derivatives are not available")
