"""The field's ConvNet, and its fused layer."""

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import pad

from ddfast.ops import channels_last, conv3x3, conv3x3_is_faster, norm_relu_pool
from ddfast.runtime.arguments import expect_one_of, expect_whole

ACTIVATIONS = {
    "relu": nn.ReLU,
    "leakyrelu": lambda: nn.LeakyReLU(0.01),
    "sigmoid": nn.Sigmoid,
    "swish": nn.SiLU,
}
POOLINGS = {"avgpooling": nn.AvgPool2d, "maxpooling": nn.MaxPool2d}
PADDING_ADVICE = "The field's code pads 28-px images to 32: first_padding=3, or convnet:first_padding=3 by name"
NORMALISATIONS = ("instancenorm", "batchnorm", "layernorm", "groupnorm", "none")


class Conv3x3(nn.Conv2d):
    """nn.Conv2d(inputs, outputs, 3, padding=1), on a CPU by ops.conv3x3: [B, C, H, W] -> [B, O, H, W].

    The same parameters and, but for rounding (1e-6), the same results and derivatives of any order.
    """

    def __init__(self, inputs: int, outputs: int, bias: bool = True) -> None:
        super().__init__(inputs, outputs, 3, padding=1, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        """Apply the layer."""
        if conv3x3_is_faster(x, self.weight):
            return conv3x3(x, self.weight, self.bias)
        return super().forward(x)


class NormReLUPool(nn.Module):
    """Instance norm with affine parameters, ReLU and 2×2 average pool as one op: [N, C, H, W] -> [N, C, H/2, W/2].

    Computes what GroupNorm(C, C) → ReLU → AvgPool2d(2) computes, with the same parameters, and can be differentiated
    twice (`create_graph=True`).
    """

    def __init__(self, channels: int, eps: float = 1e-5) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))

    def forward(self, z: Tensor) -> Tensor:
        """Apply the layer."""
        return norm_relu_pool(z, self.weight, self.bias, self.eps)

    def extra_repr(self) -> str:
        """What repr shows."""
        return f"{len(self.weight)}, eps={self.eps}"


class ConvNet(nn.Module):
    """[3×3 convolution → norm → activation → 2×2 pool] × depth → linear (Gidaris & Komodakis 2018; Zhao et al. 2021).

    Args:
        channels: of the images, 1 for grey.
        width: channels of every convolution.
        depth: number of blocks; None for log2(shorter side) − 2, rounded (3 at 32 px, 4 at 64, 5 at 128). As in the
            field's code every pooling halves a side and drops an odd last row, down to a last map of one pixel: at
            32 px up to 5.
        image_size: (H, W) of the images.
        norm: instancenorm (GroupNorm(C, C)), batchnorm, layernorm, groupnorm (four groups) or none.
        activation: relu, leakyrelu (0.01), sigmoid or swish (x · sigmoid(x)).
        pooling: avgpooling, maxpooling or none.
        first_padding: padding of the first convolution; 3 makes 28-px digits 32 px, as the field does.

    `features` holds the layers as the field numbers them, block by block: convolution, norm, activation, pooling, those
    that are none left out; `classifier` is the linear layer. State dicts, the order of the parameters (weight and bias
    of each) and, for the same global random state, the initial values are those of PyTorch's layers in that order.
    The default block runs as one op after its convolution, in channels-last: a NormReLUPool where the norm is, and
    nn.Identity where activation and pooling are.
    """

    def __init__(
        self,
        channels: int = 3,
        num_classes: int = 10,
        width: int = 128,
        depth: int | None = None,
        image_size: tuple[int, int] = (32, 32),
        *,
        norm: str = "instancenorm",
        activation: str = "relu",
        pooling: str = "avgpooling",
        first_padding: int = 1,
    ) -> None:
        super().__init__()
        expect_one_of("norm", norm, NORMALISATIONS)
        expect_one_of("activation", activation, ACTIVATIONS)
        expect_one_of("pooling", pooling, (*POOLINGS, "none"))
        expect_whole(channels=channels, num_classes=num_classes, width=width, depth=1 if depth is None else depth)
        if not isinstance(image_size, tuple | list) or len(image_size) != 2:
            raise ValueError(f"image_size: expected (H, W), got {image_size!r}")
        expect_whole(first_padding=first_padding)
        self.border = first_padding - 1
        H, W = (side + 2 * self.border for side in image_size)
        if depth is None:
            depth = max(1, round(math.log2(max(1, min(H, W)))) - 2)
        smallest = 2**depth if pooling != "none" else 1
        if min(H, W) < smallest:
            raise ValueError(
                f"image_size: expected at least {smallest} pixels a side for depth {depth} and {pooling}, "
                f"got {tuple(image_size)} with first_padding {first_padding}"
            )
        blocks = []
        for block in range(depth):
            blocks.append(Conv3x3(channels if block == 0 else width, width))
            blocks += _after_convolution(norm, activation, pooling, width, (H, W))
            if pooling != "none":
                H, W = H // 2, W // 2
        self.features = nn.Sequential(*blocks)
        self.classifier = nn.Linear(width * H * W, num_classes)

    def load_state_dict(self, state_dict: Any, *args: Any, **options: Any) -> Any:
        """As of any module; where the parameters are of a network whose maps are a row larger, the error says why."""
        try:
            return super().load_state_dict(state_dict, *args, **options)
        except RuntimeError as error:
            weight = state_dict.get("classifier.weight")
            advice = "" if weight is None else self.padding_advice(weight.shape[-1])
            if not advice:
                raise
            raise RuntimeError(f"{error}\n{advice}") from None

    def padding_advice(self, features: int) -> str:
        """What to say of parameters whose classifier has so many inputs: those of a map a row and a column larger, as
        of 28-px images that are padded to 32; "" for others."""
        first, last = self.features[0], self.classifier
        if self.border or not isinstance(first, nn.Conv2d) or not isinstance(last, nn.Linear):  # or changed by its user
            return ""
        width = first.out_channels
        return PADDING_ADVICE if features == width * (math.isqrt(last.in_features // width) + 1) ** 2 else ""

    def forward(self, images: Tensor) -> Tensor:
        """Logits: [B, C, H, W] -> [B, K]."""
        if self.border:  # apart from the convolution, which is slow on a CPU where padding reaches the kernel's size
            images = pad(images, 4 * [self.border])
        return self.classifier(self.features(channels_last(images)).flatten(1))


def _after_convolution(norm: str, activation: str, pooling: str, width: int, size: tuple[int, int]) -> list[nn.Module]:
    if (norm, activation, pooling) == ("instancenorm", "relu", "avgpooling"):
        return [NormReLUPool(width), nn.Identity(), nn.Identity()]  # the numbers of three layers
    layers = [] if norm == "none" else [_norm(norm, width, size)]
    layers.append(ACTIVATIONS[activation]())
    return layers if pooling == "none" else [*layers, POOLINGS[pooling](2)]


def _norm(name: str, width: int, size: tuple[int, int]) -> nn.Module:
    if name == "batchnorm":
        return nn.BatchNorm2d(width)
    if name == "layernorm":
        return nn.LayerNorm([width, *size])
    groups = width if name == "instancenorm" else 4
    if width % groups:
        raise ValueError(f"width: expected a multiple of {groups} for {name}, got {width}")
    return nn.GroupNorm(groups, width)
