"""convnet_features: what S ConvNets on flat parameters give to their linear layers, differentiable in the images."""

import torch
from torch import Tensor

from ddfast.ops._checks import expect_shape
from ddfast.ops._convnet_layout import ConvNetLayout
from ddfast.ops._layout import in_layout, is_channels_last
from ddfast.ops._library import define, define_autograd, forbid_autograd
from ddfast.ops._precision import apart_from_autocast
from ddfast.ops.convnet import (
    SIZES,
    _conv_input,
    _features,
    _forward,
    _unfeatures,
    _unfold,
    _Weights,
    check_convnet,
)


def convnet_features(
    parameters: Tensor,  # [S, P]
    images: Tensor,  # [B, C, H, W], seen by every student, or [S, B, C, H, W]
    layout: ConvNetLayout,
) -> Tensor:  # [S, B, F]
    """The last pooled maps of S ConvNets, flattened, F = width · h · w.

    Differentiable in the images, once: forward and backward pass keep no maps from one to the other. Not in the
    parameters.

    Errors: as ops.convnet_forward; NotImplementedError from a backward pass where parameters require a gradient.
    """
    check_convnet(layout, parameters, images)
    with apart_from_autocast(layout.precision, parameters.device):
        return torch.ops.ddfast.convnet_features(parameters, images, *layout.sizes)


def _reference(parameters, images, *sizes):
    layout = ConvNetLayout(*sizes)
    weights = _Weights(parameters, images, layout)
    return _features(_forward(weights, images, layout, [])[1], weights).contiguous()


def _backward_reference(
    cotangent: Tensor,  # [S, B, F]
    parameters: Tensor,  # [S, P]
    images: Tensor,  # [B, C, H, W] or [S, B, C, H, W]
    *sizes,
) -> Tensor:  # like images
    layout = ConvNetLayout(*sizes)
    weights = _Weights(parameters, images, layout)
    blocks, y, _ = _forward(weights, images, layout, [])
    expect_shape(
        "cotangent", cotangent, (len(parameters), images.shape[-4], y[0].numel() // len(parameters)), "[S, B, F]"
    )
    g = _unfeatures(cotangent, y)
    for (w, gamma, beta), (x, z, mean, rstd) in zip(reversed(weights.blocks), reversed(blocks), strict=True):
        g_z, _, _ = torch.ops.ddfast.norm_relu_pool_backward(g, z, mean, rstd, gamma, beta)
        g = _conv_input(g_z, x, w)
    return _unfold(g, images, layout.border)


def _fake(parameters, images, width, depth, num_classes, border, *_):
    H, W = ((side + 2 * border) >> depth for side in images.shape[-2:])
    return parameters.new_empty(len(parameters), images.shape[-4], width * H * W)


def _setup_context(ctx, inputs, output) -> None:
    parameters, images, *ctx.sizes = inputs
    ctx.save_for_backward(parameters, images)


def _backward(ctx, cotangent):
    parameters, images = ctx.saved_tensors
    if ctx.needs_input_grad[0]:
        raise NotImplementedError("convnet_features: not differentiable in the parameters; detach them")
    with apart_from_autocast(ctx.sizes[-1], parameters.device):
        grad = torch.ops.ddfast.convnet_features_backward(cotangent, parameters, images, *ctx.sizes)
    grad = in_layout(grad, is_channels_last(images)) if images.dim() == 4 else grad
    return None, grad, *([None] * len(ctx.sizes))


define(f"convnet_features(Tensor parameters, Tensor images, {SIZES}) -> Tensor", _reference, _fake)
define(
    f"convnet_features_backward(Tensor cotangent, Tensor parameters, Tensor images, {SIZES}) -> Tensor",
    _backward_reference,
    lambda cotangent, parameters, images, *_: images.new_empty(images.shape),
)
define_autograd("convnet_features", _backward, _setup_context)
forbid_autograd("convnet_features_backward", "convnet_features: second derivatives are not available")
