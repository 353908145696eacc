"""Smooth Grad-CAM++: where an expert sees the class of an image."""

import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate

from ddfast.engine.students.features import features_of
from ddfast.engine.students.taps import ACTIVATIONS
from ddfast.networks.convnet import NormReLUPool

SAMPLES, NOISE = 4, 0.3  # noisy copies of an image, and their standard deviation
CHUNK = 64  # images at a time


def grad_cam(
    net: nn.Module,
    images: Tensor,  # [I, C, H, W]
    classes: Tensor,  # int64 [I]
    generator: torch.Generator,
) -> Tensor:  # [I, H, W], 0 to 1
    """A class activation map of each image: the last maps before the features, weighted by what the class's logit gains
    by them (Chattopadhay et al. 2018, eqs. 10 and 19, in the mean over noisy copies: Omeiza et al. 2019), scaled to
    0 … 1 and resized bilinearly.

    Errors: ValueError for a network whose activations are no modules, or whose last one is no map.
    """
    parts = zip(images.split(CHUNK), classes.split(CHUNK), strict=True)
    return torch.cat([_maps(net, part, labels, generator) for part, labels in parts])


def _maps(net: nn.Module, images: Tensor, classes: Tensor, generator: torch.Generator) -> Tensor:
    first = second = third = 0
    for _ in range(SAMPLES):
        noise = torch.randn(images.shape, generator=generator).to(images)
        _, gradient = _last_maps(net, images + NOISE * noise, classes)
        first, second, third = first + gradient, second + gradient.square(), third + gradient**3
    maps, _ = _last_maps(net, images, classes)
    first, second, third = first / SAMPLES, second / SAMPLES, third / SAMPLES
    below = 2 * second + (third * maps).sum((2, 3), keepdim=True)
    alpha = torch.where(below != 0, second / below, 0.0)
    weights = (alpha * first.relu()).sum((2, 3), keepdim=True)
    cam = (weights * maps).sum(1, keepdim=True).relu()  # [I, 1, h, w]
    low, high = cam.amin((2, 3), keepdim=True), cam.amax((2, 3), keepdim=True)
    cam = torch.where(high > low, (cam - low) / (high - low), 0.0)
    return interpolate(cam, size=images.shape[2:], mode="bilinear", align_corners=False)[:, 0]


def _last_maps(net: nn.Module, images: Tensor, classes: Tensor) -> tuple[Tensor, Tensor]:  # [I, C, h, w] each
    """The last maps that an activation gives, pooled where it pools, and the slope of the class's logit in them."""
    maps: list[Tensor] = []
    hooks = [
        module.register_forward_hook(lambda _, given, result: maps.append(result) if result.dim() == 4 else None)
        for module in net.modules()
        if isinstance(module, (NormReLUPool, *ACTIVATIONS))
    ]
    try:
        with torch.enable_grad():
            _, logits = features_of(net, images.detach().requires_grad_())
            if not maps:
                raise ValueError(
                    f"network: {type(net).__name__} shows no maps after its activations, by which areas are told; take "
                    f"another, such as convnet"
                )
            (gradient,) = torch.autograd.grad(logits.gather(1, classes[:, None]).sum(), maps[-1])
    finally:
        for hook in hooks:
            hook.remove()
    return maps[-1].detach(), gradient
