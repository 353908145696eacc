"""ResNet-18 in its CIFAR forms: a 3×3 first convolution of stride 1, no first pooling."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import avg_pool2d, relu

from ddfast.networks.convnet import Conv3x3
from ddfast.runtime.arguments import expect_one_of

NORMS = {"instancenorm": lambda width: nn.GroupNorm(width, width), "batchnorm": nn.BatchNorm2d}
SMALLEST = 16  # pixels a side: the last map is 2×2
STAGES = (64, 128, 256, 512)


def resnet18(
    channels: int = 3,
    num_classes: int = 10,
    image_size: tuple[int, int] = (32, 32),
    *,
    norm: str = "instancenorm",
) -> nn.Module:
    """torchvision's ResNet-18 (He et al. 2016) with the stem of its CIFAR form and PyTorch's default initialisation.

    `norm` is instancenorm (GroupNorm(C, C), the field's choice for distilled sets) or batchnorm. Images need at least
    16 pixels a side, for a last map of 2×2; it is averaged.
    """
    from torchvision.models import resnet18 as torchvision_resnet18

    _expect("resnet18", norm, image_size)
    network = torchvision_resnet18(num_classes=num_classes, norm_layer=NORMS[norm])
    network.conv1 = nn.Conv2d(channels, 64, 3, padding=1, bias=False)
    network.maxpool = nn.Identity()
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            module.reset_parameters()
    for name, module in list(network.named_modules()):
        if isinstance(module, nn.Conv2d) and (module.kernel_size, module.stride) == ((3, 3), (1, 1)):
            network.set_submodule(name, _fast(module))
    return network


def _fast(convolution: nn.Conv2d) -> Conv3x3:
    with torch.device("meta"):
        fast = Conv3x3(convolution.in_channels, convolution.out_channels, bias=False)
    fast.weight = convolution.weight
    return fast


def resnet18_ap(
    channels: int = 3,
    num_classes: int = 10,
    image_size: tuple[int, int] = (32, 32),
    *,
    norm: str = "instancenorm",
) -> nn.Module:
    """ResNet-18 with average pooling, as DC's code has it (ResNet18_AP; with batchnorm, ResNet18BN_AP).

    Every convolution of stride 2 has stride 1 and a 2×2 average pool after it (after norm and ReLU on the main path),
    and the last map goes to the linear layer whole, not averaged. Arguments as resnet18's.
    """
    _expect("resnet18_ap", norm, image_size)
    return _PooledResNet18(channels, num_classes, image_size, NORMS[norm])


class _PooledResNet18(nn.Module):
    """Layers have the names and the order of the field's code, and so its state-dict keys and initial values."""

    def __init__(self, channels: int, num_classes: int, image_size: Any, norm: Any) -> None:
        super().__init__()
        self.conv1 = Conv3x3(channels, STAGES[0], bias=False)
        self.bn1 = norm(STAGES[0])
        width = STAGES[0]
        for number, planes in enumerate(STAGES, start=1):
            blocks = [_PooledBlock(width, planes, number > 1, norm), _PooledBlock(planes, planes, False, norm)]
            self.add_module(f"layer{number}", nn.Sequential(*blocks))
            width = planes
        H, W = (side // 8 for side in image_size)
        self.classifier = nn.Linear(width * H * W, num_classes)

    def forward(self, images: Tensor) -> Tensor:  # [B, C, H, W] -> [B, K]
        maps = relu(self.bn1(self.conv1(images)))
        for stage in (self.layer1, self.layer2, self.layer3, self.layer4):
            maps = stage(maps)
        return self.classifier(maps.flatten(1))


class _PooledBlock(nn.Module):
    """Two convolutions and a way around them; `halves` pools both."""

    def __init__(self, inputs: int, planes: int, halves: bool, norm: Any) -> None:
        super().__init__()
        self.halves = halves
        self.conv1 = Conv3x3(inputs, planes, bias=False)
        self.bn1 = norm(planes)
        self.conv2 = Conv3x3(planes, planes, bias=False)
        self.bn2 = norm(planes)
        around = [nn.Conv2d(inputs, planes, 1, bias=False), nn.AvgPool2d(2), norm(planes)] if halves else []
        self.shortcut = nn.Sequential(*around)

    def forward(self, x: Tensor) -> Tensor:  # [B, C, H, W] -> [B, P, H / 2, W / 2], or [B, P, H, W]
        maps = relu(self.bn1(self.conv1(x)))
        maps = avg_pool2d(maps, 2) if self.halves else maps
        return relu(self.bn2(self.conv2(maps)) + self.shortcut(x))


def _expect(name: str, norm: str, image_size: tuple[int, int]) -> None:
    expect_one_of("norm", norm, NORMS)
    if min(image_size) < SMALLEST:
        raise ValueError(f"image_size: expected at least {SMALLEST} pixels a side for {name}, got {tuple(image_size)}")
