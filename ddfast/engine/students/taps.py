"""What a network sees on its way: the maps after every activation, and the features at its end."""

import torch
from torch import Tensor, nn
from torch.nn.functional import group_norm

from ddfast.engine.students.features import features_of
from ddfast.networks.convnet import NormReLUPool

ACTIVATIONS = (nn.ReLU, nn.LeakyReLU, nn.Sigmoid, nn.SiLU, nn.GELU)


def taps_of(net: nn.Module, images: Tensor) -> tuple[list[Tensor], Tensor]:  # [B, C, H, W] -> [B, …] each, [B, K]
    """The maps after each activation, before any pooling, and the input of the last linear layer [B, F]; and the
    logits. Differentiable in the images, by autograd.

    Only activations that are modules are seen: of a network without any the features alone.
    Errors: ValueError for a network that has no linear layer at its end.
    """
    taps: list[Tensor] = []

    def unpooled(layer: NormReLUPool, given: tuple[Tensor]) -> None:
        taps.append(torch.relu(group_norm(given[0], len(layer.weight), layer.weight, layer.bias, layer.eps)))

    hooks = []
    for module in net.modules():
        if isinstance(module, NormReLUPool):
            hooks.append(module.register_forward_pre_hook(unpooled))
        elif isinstance(module, ACTIVATIONS):
            hooks.append(module.register_forward_hook(lambda _, given, result: taps.append(result)))
    try:
        features, logits = features_of(net, images)
    finally:
        for hook in hooks:
            hook.remove()
    return [*taps, features], logits
