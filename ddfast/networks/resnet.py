"""ResNet-18 in its CIFAR form: a 3×3 first convolution of stride 1, no first pooling."""

from torch import nn


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

    norms = {"instancenorm": lambda width: nn.GroupNorm(width, width), "batchnorm": nn.BatchNorm2d}
    if norm not in norms:
        raise ValueError(f"norm: expected one of {', '.join(norms)}, got {norm!r}")
    if min(image_size) < 16:
        raise ValueError(f"image_size: expected at least 16 pixels a side for resnet18, got {tuple(image_size)}")
    network = torchvision_resnet18(num_classes=num_classes, norm_layer=norms[norm])
    network.conv1 = nn.Conv2d(channels, 64, 3, padding=1, bias=False)
    network.maxpool = nn.Identity()
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            module.reset_parameters()
    return network
