"""norm_relu_pool: instance norm, ReLU and 2×2 average pool of the field's ConvNet as one op with four faces."""

import torch
from torch import Tensor
from torch.nn.functional import avg_pool2d, pad

from ddfast.ops._checks import expect_device, expect_dtype, expect_shape, expect_tensors, refuse_transforms
from ddfast.ops._layout import keeping_layout
from ddfast.ops._library import define, define_autograd, forbid_autograd


def norm_relu_pool(
    z: Tensor,  # [N, C, H, W]
    weight: Tensor,  # [C]
    bias: Tensor,  # [C]
    eps: float = 1e-5,
) -> Tensor:  # [N, C, H // 2, W // 2], channels-last or contiguous, as z is
    """Instance norm with affine parameters, ReLU, then 2×2 average pooling.

        m = mean z,  r = (var z + ε)^(−1/2),  x̂ = (z − m) r,  y = pool(relu(γ x̂ + β))      (mean, var over H·W pixels)

    Equal to group_norm with C groups (the ConvNet of Zhao et al. 2021 and of MTT) → relu → avg_pool2d(2); an odd last
    row or column is normalised over but not pooled. Value, backward, jvp and backward of jvp are one kernel each (the
    gradients of weight and bias are then summed over images) and keep nothing but z, m and r; the double backward is
    made of the last two. Twice differentiable in z, weight and bias; a third derivative raises.

    Works in channels-last: other layouts are converted first, and result and gradients are converted back. Maps may be
    bfloat16, with weight and bias in float32: everything is then computed in float32, and results and gradients that
    are maps are rounded to bfloat16.

    Errors: TypeError for other dtypes than float32, float64, or a bfloat16 z with float32; ValueError for shapes or
    devices that do not fit together, H or W below 2, or a negative ε.
    """
    _expect_dtypes(z, weight, bias)
    if z.dim() != 4 or 0 in z.shape or min(z.shape[2:]) < 2:
        raise ValueError(f"z: expected [N, C, H, W] with H and W at least 2, got {list(z.shape)}")
    expect_shape("weight", weight, z.shape[1:2], "[C]")
    expect_shape("bias", bias, z.shape[1:2], "[C]")
    if not eps >= 0:
        raise ValueError(f"eps: expected at least 0, got {eps}")
    refuse_transforms("norm_relu_pool", z, weight, bias)
    return keeping_layout(lambda z: torch.ops.ddfast.norm_relu_pool(z, weight, bias, eps)[0], z, True)


def _expect_dtypes(z: Tensor, weight: Tensor, bias: Tensor) -> None:
    expect_dtype("z", z, torch.float32, torch.float64, torch.bfloat16)
    if z.dtype == torch.bfloat16:
        for name, tensor in (("weight", weight), ("bias", bias)):
            expect_dtype(name, tensor, torch.float32, reason=" with a bfloat16 z")
            expect_device(name, tensor, "z", z)
    else:
        expect_tensors(z=z, weight=weight, bias=bias)


def _real(dtype: torch.dtype) -> torch.dtype:
    """What is computed in, and the dtype of everything but maps."""
    return torch.float32 if dtype == torch.bfloat16 else dtype


def _wide(maps: Tensor) -> Tensor:
    return maps.to(_real(maps.dtype))


def _mean(values: Tensor) -> Tensor:  # [N, C, H, W] -> [N, C, 1, 1]
    return values.mean((2, 3), keepdim=True)


def _channel(values: Tensor) -> Tensor:  # [C] or [N, C] -> [N or 1, C, 1, 1]
    return values.reshape(-1, values.shape[-1], 1, 1)


def _pool(a: Tensor) -> Tensor:  # [N, C, H, W] -> [N, C, H // 2, W // 2]
    return avg_pool2d(a, 2).contiguous(memory_format=torch.channels_last)


def _unpool(grad: Tensor, like: Tensor) -> Tensor:  # [N, C, OH, OW] -> [N, C, H, W]: the transpose of _pool
    up = grad.repeat_interleave(2, 2).repeat_interleave(2, 3) / 4
    return pad(up, (0, like.shape[3] - up.shape[3], 0, like.shape[2] - up.shape[2]))


def _normalise(z, mean, rstd, weight, bias) -> tuple[Tensor, Tensor]:  # x̂ [N, C, H, W], a = γ x̂ + β [N, C, H, W]
    x = (z - _channel(mean)) * _channel(rstd)
    return x, _channel(weight) * x + _channel(bias)


def _where_positive(a: Tensor, value: Tensor) -> Tensor:  # 0 where a ≤ 0; a NaN passes, as in torch.relu
    return torch.where(a <= 0, 0, value)


def _reference(
    z: Tensor,  # [N, C, H, W]
    weight: Tensor,  # [C]
    bias: Tensor,  # [C]
    eps: float,
) -> tuple[Tensor, Tensor, Tensor]:  # y [N, C, H // 2, W // 2], mean [N, C], rstd [N, C]
    dtype, z = z.dtype, _wide(z)
    mean = _mean(z)
    rstd = ((z - mean).square().mean((2, 3)) + eps).rsqrt()
    _, a = _normalise(z, mean[..., 0, 0], rstd, weight, bias)
    return _pool(a.relu()).to(dtype), mean[..., 0, 0], rstd


def _backward_reference(
    grad_y: Tensor,  # [N, C, OH, OW]
    z: Tensor,  # [N, C, H, W]
    mean: Tensor,  # [N, C]
    rstd: Tensor,  # [N, C]
    weight: Tensor,  # [C]
    bias: Tensor,  # [C]
) -> tuple[Tensor, Tensor, Tensor]:  # grad_z [N, C, H, W], grad_weight [C], grad_bias [C]
    dtype, z, grad_y = z.dtype, _wide(z), _wide(grad_y)
    x, a = _normalise(z, mean, rstd, weight, bias)
    q = _where_positive(a, _unpool(grad_y, z))
    e = q - _mean(q) - x * _mean(q * x)
    grad_z = _channel(weight) * _channel(rstd) * e
    return grad_z.to(dtype, memory_format=torch.channels_last), (q * x).sum((0, 2, 3)), q.sum((0, 2, 3))


def _jvp_reference(
    dz: Tensor,  # [N, C, H, W]
    dweight: Tensor,  # [C]
    dbias: Tensor,  # [C]
    z: Tensor,  # [N, C, H, W]
    mean: Tensor,  # [N, C]
    rstd: Tensor,  # [N, C]
    weight: Tensor,  # [C]
    bias: Tensor,  # [C]
) -> tuple[Tensor, Tensor, Tensor]:  # dy [N, C, OH, OW], dmean = mean dz [N, C], dcov = mean x̂ dz [N, C]
    dtype, z, dz = z.dtype, _wide(z), _wide(dz)
    x, a = _normalise(z, mean, rstd, weight, bias)
    dmean = _mean(dz)
    dcov = _mean(x * (dz - dmean))
    dx = _channel(rstd) * (dz - dmean - x * dcov)
    da = _channel(dweight) * x + _channel(weight) * dx + _channel(dbias)
    return _pool(_where_positive(a, da)).to(dtype), dmean[..., 0, 0], dcov[..., 0, 0]


def _backward_jvp_reference(
    grad_y: Tensor,  # [N, C, OH, OW]
    dgrad_y: Tensor | None,  # [N, C, OH, OW], None for zero
    z: Tensor,  # [N, C, H, W]
    dz: Tensor,  # [N, C, H, W]
    mean: Tensor,  # [N, C]
    rstd: Tensor,  # [N, C]
    dmean: Tensor,  # [N, C]
    dcov: Tensor,  # [N, C]
    weight: Tensor,  # [C]
    dweight: Tensor,  # [C]
    bias: Tensor,  # [C]
) -> tuple[Tensor, Tensor, Tensor]:  # dgrad_z [N, C, H, W], dgrad_weight [C], dgrad_bias [C]
    dtype, z, dz, grad_y = z.dtype, _wide(z), _wide(dz), _wide(grad_y)
    x, a = _normalise(z, mean, rstd, weight, bias)
    r, c, gamma = _channel(rstd), _channel(dcov), _channel(weight)
    dx = r * (dz - _channel(dmean) - x * c)
    q = _where_positive(a, _unpool(grad_y, z))
    dq = torch.zeros_like(q) if dgrad_y is None else _where_positive(a, _unpool(_wide(dgrad_y), z))
    qx, dqx = q * x, dq * x + q * dx
    e = q - _mean(q) - x * _mean(qx)
    de = dq - _mean(dq) - dx * _mean(qx) - x * _mean(dqx)
    dgrad_z = (_channel(dweight) * r - gamma * r.square() * c) * e + gamma * r * de
    return dgrad_z.to(dtype, memory_format=torch.channels_last), dqx.sum((0, 2, 3)), dq.sum((0, 2, 3))


def _pooled_fake(z):
    N, C, H, W = z.shape
    y = z.new_empty((N, C, H // 2, W // 2)).contiguous(memory_format=torch.channels_last)
    return y, *(z.new_empty((N, C), dtype=_real(z.dtype)) for _ in range(2))


def _gradient_fake(z):
    by_channel = (z.new_empty(z.shape[1], dtype=_real(z.dtype)) for _ in range(2))
    return torch.empty_like(z, memory_format=torch.channels_last), *by_channel


def _setup_context(ctx, inputs, output) -> None:
    z, weight, bias, _ = inputs
    _, mean, rstd = output
    ctx.save_for_backward(z, mean, rstd, weight, bias)
    ctx.mark_non_differentiable(mean, rstd)


def _backward(ctx, grad_y, *_):
    return *torch.ops.ddfast.norm_relu_pool_backward(grad_y, *ctx.saved_tensors), None


def _backward_setup_context(ctx, inputs, output) -> None:
    ctx.save_for_backward(*inputs)


def _double_backward(ctx, dz, dweight, dbias):
    """Second derivatives are symmetric: the cotangent of grad_y is the jvp along (dz, dweight, dbias), and that of
    (z, weight, bias) is the backward's jvp along the same direction. Mean and rstd are
    functions of z here, so their own cotangents are None."""
    grad_y, z, mean, rstd, weight, bias = ctx.saved_tensors
    dy, dmean, dcov = torch.ops.ddfast.norm_relu_pool_jvp(dz, dweight, dbias, z, mean, rstd, weight, bias)
    second = torch.ops.ddfast.norm_relu_pool_backward_jvp(
        grad_y, None, z, dz, mean, rstd, dmean, dcov, weight, dweight, bias
    )
    return dy, second[0], None, None, second[1], second[2]


define(
    "norm_relu_pool(Tensor z, Tensor weight, Tensor bias, float eps) -> (Tensor, Tensor, Tensor)",
    _reference,
    lambda z, weight, bias, eps: _pooled_fake(z),
)
define(
    "norm_relu_pool_backward(Tensor grad_y, Tensor z, Tensor mean, Tensor rstd, Tensor weight, Tensor bias)"
    " -> (Tensor, Tensor, Tensor)",
    _backward_reference,
    lambda grad_y, z, *_: _gradient_fake(z),
)
define(
    "norm_relu_pool_jvp(Tensor dz, Tensor dweight, Tensor dbias, Tensor z, Tensor mean, Tensor rstd, Tensor weight,"
    " Tensor bias) -> (Tensor, Tensor, Tensor)",
    _jvp_reference,
    lambda dz, *_: _pooled_fake(dz),
)
define(
    "norm_relu_pool_backward_jvp(Tensor grad_y, Tensor? dgrad_y, Tensor z, Tensor dz, Tensor mean, Tensor rstd,"
    " Tensor dmean, Tensor dcov, Tensor weight, Tensor dweight, Tensor bias) -> (Tensor, Tensor, Tensor)",
    _backward_jvp_reference,
    lambda grad_y, dgrad_y, z, *_: _gradient_fake(z),
)
define_autograd("norm_relu_pool", _backward, _setup_context)
define_autograd("norm_relu_pool_backward", _double_backward, _backward_setup_context)
for _name in ("norm_relu_pool_jvp", "norm_relu_pool_backward_jvp"):
    forbid_autograd(_name, f"{_name}: third derivatives are not available")
