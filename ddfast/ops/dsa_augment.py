"""dsa_augment: all transforms of differentiable Siamese augmentation as one op with a row of parameters per image."""

import torch
from torch import Tensor
from torch.nn.functional import grid_sample

from ddfast.ops._checks import expect_shape, expect_tensors, refuse_transforms
from ddfast.ops._layout import channels_last, keeping_layout
from ddfast.ops._library import define, define_autograd

# The parameters of a row, in their order, with the values that change nothing.
IDENTITY = {
    "flip": 0.0,  # 1: mirror left and right
    "down": 0.0,  # pixels, whole: the result at (y, x) is the image at (y + down, x + right)
    "right": 0.0,
    "top": 0.0,  # the box of zeros, rows top … bottom − 1 and columns left … end − 1
    "bottom": 0.0,
    "left": 0.0,
    "end": 0.0,
    "xx": 1.0,  # the result at (y, x) is sampled at column xx x + xy y + x0, row yx x + yy y + y0
    "xy": 0.0,
    "x0": 0.0,
    "yx": 0.0,
    "yy": 1.0,
    "y0": 0.0,
    "brightness": 0.0,  # added
    "saturation": 1.0,  # factor, about the mean of a pixel's channels
    "contrast": 1.0,  # factor, about the mean of the image
}


def dsa_augment(
    images: Tensor,  # [B, C, H, W]
    rows: Tensor,  # [B, 16], the parameters of IDENTITY
) -> Tensor:  # [B, C, H, W], channels-last or contiguous, as the images are
    """Augment images by drawn parameters: colour, shift, box of zeros, flip, affine map, in this order.

    The transforms of DSA (Zhao & Bilen 2021); those that are not drawn keep their identity values. Bilinear sampling,
    zeros outside. Affine in the images and differentiable in them as often as wanted: the jvp is the linear part, the
    backward its transpose, and the backward's own jvp is itself. Shapes and launches do not depend on what was drawn.
    The rows are constants.

    Errors: TypeError for other dtypes than one of float32 and float64; ValueError for shapes or devices that do not fit
    together, images of a single row or column, or rows that require a gradient.
    """
    expect_tensors(images=images, rows=rows)
    if images.dim() != 4 or 0 in images.shape or min(images.shape[2:]) < 2:
        raise ValueError(f"images: expected [B, C, H, W] with H and W at least 2, got {list(images.shape)}")
    expect_shape("rows", rows, (len(images), len(IDENTITY)), "[B, 16]")
    if rows.requires_grad:
        raise ValueError("rows: expected constants, got a tensor that requires a gradient")
    refuse_transforms("dsa_augment", images)
    return keeping_layout(lambda images: torch.ops.ddfast.dsa_augment(images, rows), images)


def _columns(rows: Tensor) -> dict[str, Tensor]:  # [B, 1, 1, 1] each, by name
    return dict(zip(IDENTITY, rows[..., None, None, None].unbind(1), strict=True))


def _color(images: Tensor, r: dict[str, Tensor]) -> Tensor:  # without the brightness; [B, C, H, W] -> the same
    grey, level = images.mean(1, keepdim=True), images.mean((1, 2, 3), keepdim=True)
    return r["contrast"] * (r["saturation"] * (images - grey) + grey - level) + level


def _color_transposed(grad: Tensor, r: dict[str, Tensor]) -> Tensor:  # [B, C, H, W] -> the same
    grey, level = grad.mean(1, keepdim=True), grad.mean((1, 2, 3), keepdim=True)
    return r["contrast"] * (r["saturation"] * (grad - grey) + grey) + (1 - r["contrast"]) * level


def _shift(images: Tensor, by: Tensor, dim: int) -> Tensor:  # [B, C, H, W]: images[…, i + by, …] along dim, or 0
    side = images.shape[dim]
    shape = [1] * dim + [side] + [1] * (3 - dim)
    index = torch.arange(side, device=images.device).view(shape) + by.long()
    inside = (index >= 0) & (index < side)
    return images.gather(dim, index.clamp(0, side - 1).expand_as(images)) * inside


def _outside_the_box(images: Tensor, r: dict[str, Tensor]) -> Tensor:  # [B, 1, H, W], 0 in it
    H, W = images.shape[2:]
    y = torch.arange(H, device=images.device).view(H, 1)
    x = torch.arange(W, device=images.device)
    inside = (y >= r["top"]) & (y < r["bottom"]) & (x >= r["left"]) & (x < r["end"])
    return ~inside


def _grid(images: Tensor, r: dict[str, Tensor]) -> Tensor:  # [B, H, W, 2], as grid_sample takes it
    H, W = images.shape[2:]
    y = torch.arange(H, device=images.device, dtype=images.dtype).view(H, 1)
    x = torch.arange(W, device=images.device, dtype=images.dtype)
    column, row = (r[f"{a}x"] * x + r[f"{a}y"] * y + r[f"{a}0"] for a in "xy")  # [B, 1, H, W]
    return torch.stack([2 * column[:, 0] / (W - 1) - 1, 2 * row[:, 0] / (H - 1) - 1], -1)


def _linear_reference(images: Tensor, rows: Tensor) -> Tensor:  # [B, C, H, W], [B, 16] -> [B, C, H, W]
    r = _columns(rows)
    return _place(_color(images, r), r)


def _place(images: Tensor, r: dict[str, Tensor]) -> Tensor:  # [B, C, H, W] -> the same
    """Everything after the colours."""
    images = _shift(_shift(images, r["down"], 2), r["right"], 3) * _outside_the_box(images, r)
    images = torch.where(r["flip"] != 0, images.flip(3), images)
    return channels_last(grid_sample(images, _grid(images, r), "bilinear", "zeros", align_corners=True))


def _reference(images: Tensor, rows: Tensor) -> Tensor:  # [B, C, H, W], [B, 16] -> [B, C, H, W]
    r = _columns(rows)
    return _place(_color(images, r) + r["brightness"], r)


def _backward_reference(grad: Tensor, rows: Tensor) -> Tensor:  # [B, C, H, W], [B, 16] -> [B, C, H, W]
    r = _columns(rows)
    images, _ = torch.ops.aten.grid_sampler_2d_backward(
        grad, torch.zeros_like(grad), _grid(grad, r), 0, 0, True, [True, False]
    )
    images = torch.where(r["flip"] != 0, images.flip(3), images) * _outside_the_box(images, r)
    images = _shift(_shift(images, -r["right"], 3), -r["down"], 2)
    return _color_transposed(images, r).contiguous()


def _setup_context(ctx, inputs, output) -> None:
    ctx.save_for_backward(inputs[1])


def _backward(ctx, grad):
    return torch.ops.ddfast.dsa_augment_backward(grad, *ctx.saved_tensors), None


def _jvp(ctx, tangent):
    return torch.ops.ddfast.dsa_augment_jvp(tangent, *ctx.saved_tensors), None


def _fake(images, rows):
    return channels_last(torch.empty_like(images, memory_format=torch.contiguous_format))


define("dsa_augment(Tensor images, Tensor rows) -> Tensor", _reference, _fake)
define("dsa_augment_jvp(Tensor dimages, Tensor rows) -> Tensor", _linear_reference, _fake)
define(
    "dsa_augment_backward(Tensor grad, Tensor rows) -> Tensor",
    _backward_reference,
    lambda grad, rows: torch.empty_like(grad, memory_format=torch.contiguous_format),
)
define_autograd("dsa_augment", _backward, _setup_context)
define_autograd("dsa_augment_jvp", _backward, _setup_context)
define_autograd("dsa_augment_backward", _jvp, _setup_context)
