"""The other networks that distilled sets are evaluated on, in their CIFAR-size forms."""

from collections import OrderedDict

from torch import nn

from ddfast.networks.convnet import Conv3x3
from ddfast.runtime.arguments import expect_one_of, expect_whole

NORMALISATIONS = {"instancenorm": lambda width: nn.GroupNorm(width, width), "batchnorm": nn.BatchNorm2d}
VGG11 = (64, "pool", 128, "pool", 256, 256, "pool", 512, 512, "pool", 512, 512, "pool")
VGG_SMALLEST = 32  # pixels: five poolings leave one


def mlp(
    channels: int = 3, num_classes: int = 10, image_size: tuple[int, int] = (32, 32), *, width: int = 128
) -> nn.Module:
    """Three linear layers with ReLU between them."""
    expect_whole(width=width)
    H, W = image_size
    layers = [nn.Flatten(), nn.Linear(channels * H * W, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU()]
    return nn.Sequential(*layers, nn.Linear(width, num_classes))


def lenet(channels: int = 3, num_classes: int = 10, image_size: tuple[int, int] = (32, 32)) -> nn.Module:
    """LeNet-5 (LeCun et al. 1998) with ReLU and max pooling; 28-px images are padded to 32, as in the original.

    At 28 px it is the LeNet of FedD3 and of dataset distillation (Wang et al. 2018), with 61,706 parameters on MNIST.
    """
    padding = 2 if tuple(image_size) == (28, 28) else 0
    H, W = (((side + 2 * padding - 4) // 2 - 4) // 2 for side in image_size)
    _expect_a_map("lenet", image_size, min(H, W), 16)
    return nn.Sequential(
        nn.Conv2d(channels, 6, 5, padding=padding), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(6, 16, 5), nn.ReLU(), nn.MaxPool2d(2),
        nn.Flatten(), nn.Linear(16 * H * W, 120), nn.ReLU(), nn.Linear(120, 84), nn.ReLU(), nn.Linear(84, num_classes),
    )  # fmt: skip


def alexnet(channels: int = 3, num_classes: int = 10, image_size: tuple[int, int] = (32, 32)) -> nn.Module:
    """AlexNet (Krizhevsky et al. 2012) as dataset distillation has it: five convolutions, one linear layer."""
    padding = 4 if tuple(image_size) == (28, 28) else 2  # 28-px digits become 32 px
    H, W = ((side + 2 * padding - 4) // 2 // 2 // 2 for side in image_size)
    _expect_a_map("alexnet", image_size, min(H, W), 8)
    return nn.Sequential(
        nn.Conv2d(channels, 128, 5, padding=padding), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(128, 192, 5, padding=2), nn.ReLU(), nn.MaxPool2d(2),
        Conv3x3(192, 256), nn.ReLU(),
        Conv3x3(256, 192), nn.ReLU(),
        Conv3x3(192, 192), nn.ReLU(), nn.MaxPool2d(2),
        nn.Flatten(), nn.Linear(192 * H * W, num_classes),
    )  # fmt: skip


def alexcifarnet(channels: int = 3, num_classes: int = 10, image_size: tuple[int, int] = (32, 32)) -> nn.Module:
    """AlexCifarNet, as dataset distillation (Wang et al. 2018) and FedD3 have it: two 5×5 convolutions of 64 channels
    with local response norm and overlapping 3×3 max pooling, and linear layers of 384 and 192."""
    H, W = (((side + 1) // 2 + 1) // 2 for side in image_size)

    def norm() -> nn.Module:
        return nn.LocalResponseNorm(4, alpha=0.001 / 9, beta=0.75, k=1)

    features = nn.Sequential(
        nn.Conv2d(channels, 64, 5, padding=2), nn.ReLU(), nn.MaxPool2d(3, stride=2, padding=1), norm(),
        nn.Conv2d(64, 64, 5, padding=2), nn.ReLU(), norm(), nn.MaxPool2d(3, stride=2, padding=1),
    )  # fmt: skip
    classifier = nn.Sequential(
        nn.Linear(64 * H * W, 384), nn.ReLU(), nn.Linear(384, 192), nn.ReLU(), nn.Linear(192, num_classes)
    )
    parts = {"features": features, "flatten": nn.Flatten(), "classifier": classifier}  # the keys of its state dicts
    return nn.Sequential(OrderedDict(parts))


def vgg11(
    channels: int = 3,
    num_classes: int = 10,
    image_size: tuple[int, int] = (32, 32),
    *,
    norm: str = "instancenorm",
) -> nn.Module:
    """VGG-11 (Simonyan & Zisserman 2015) with a norm after each convolution and one linear layer at the end.

    `norm` is instancenorm (GroupNorm(C, C)) or batchnorm. 28-px images are padded to 32; larger maps are averaged.
    """
    _expect_norm(norm)
    border = 2 if tuple(image_size) == (28, 28) else 0
    _expect_a_map("vgg11", image_size, (min(image_size) + 2 * border) // VGG_SMALLEST, VGG_SMALLEST)
    layers: list[nn.Module] = [nn.ZeroPad2d(border)]
    width = channels
    for block in VGG11:
        if block == "pool":
            layers.append(nn.MaxPool2d(2))
            continue
        layers += [Conv3x3(width, block), NORMALISATIONS[norm](block), nn.ReLU()]
        width = block
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, num_classes))


def smallvgg(
    channels: int = 3,
    num_classes: int = 10,
    image_size: tuple[int, int] = (32, 32),
    *,
    width: int = 32,
    norm: str = "batchnorm",
    dropout: int = 50,
) -> nn.Module:
    """Four convolutions of w, 2w, 4w and 4w channels in pairs, a norm after each and max pooling after each pair, then
    a linear layer of 512 with dropout and the last one.

    `width` is w; `norm` is batchnorm or instancenorm (GroupNorm(C, C)); `dropout` is in percent.
    """
    _expect_norm(norm)
    expect_whole(width=width)
    if isinstance(dropout, bool) or not isinstance(dropout, int) or not 0 <= dropout < 100:
        raise ValueError(f"dropout: expected percent, a whole number from 0 to 99, got {dropout!r}")
    H, W = (side // 4 for side in image_size)
    _expect_a_map("smallvgg", image_size, min(H, W), 4)
    layers: list[nn.Module] = []
    for inputs, first, second in ((channels, width, 2 * width), (2 * width, 4 * width, 4 * width)):
        layers += [Conv3x3(inputs, first), NORMALISATIONS[norm](first), nn.ReLU()]
        layers += [Conv3x3(first, second), NORMALISATIONS[norm](second), nn.ReLU(), nn.MaxPool2d(2)]
    layers += [nn.Flatten(), nn.Linear(4 * width * H * W, 512), nn.ReLU(), nn.Dropout(dropout / 100)]
    return nn.Sequential(*layers, nn.Linear(512, num_classes))


def _expect_norm(norm: str) -> None:
    expect_one_of("norm", norm, NORMALISATIONS)


def _expect_a_map(name: str, image_size: tuple[int, int], pixels: int, smallest: int) -> None:
    if pixels < 1:
        raise ValueError(f"image_size: expected at least {smallest} pixels a side for {name}, got {tuple(image_size)}")
