"""Classifiers of torchvision and timm, adapted to the channels, size and classes of the data."""

import inspect
from collections.abc import Callable
from functools import partial
from typing import Any

from torch import nn

LIBRARIES = {"torchvision": "resnet18", "timm": "vit_tiny_patch16_224"}  # with a model of each


def from_library(library: str, model: str) -> Callable[..., nn.Module]:
    """What makes a model of a library, not pretrained. Errors: ValueError for one that is unknown or not installed."""
    return partial(_torchvision if library == "torchvision" else _timm, model)


def _torchvision(
    model: str, *, channels: int, num_classes: int, image_size: tuple[int, int], **options: Any
) -> nn.Module:
    from torchvision import models

    if model not in models.list_models(module=models):
        raise ValueError(
            f"network: torchvision has no classifier {model!r}; torchvision.models.list_models() lists them"
        )
    builder = models.get_model_builder(model)
    if "image_size" in inspect.signature(builder).parameters or model.startswith("vit"):
        options = {"image_size": image_size[0], **options}
    if model in ("googlenet", "inception_v3"):
        options = {"aux_logits": False, "init_weights": True, **options}
    network = _made(model, builder, weights=None, num_classes=num_classes, **options)
    if channels != 3:
        _take_channels(network, channels)
    return network


def _timm(model: str, *, channels: int, num_classes: int, image_size: tuple[int, int], **options: Any) -> nn.Module:
    try:
        import timm
    except ImportError:
        raise ValueError(f"network: timm:{model} needs `pip install timm`") from None
    if not timm.is_model(model):
        raise ValueError(f"network: timm has no model {model!r}; timm.list_models() lists them")
    make = partial(timm.create_model, model, pretrained=False, num_classes=num_classes, in_chans=channels)
    try:
        return make(img_size=image_size, **options)
    except TypeError:  # convolutional ones take every size
        return _made(model, make, **options)


def _made(model: str, make: Callable[..., nn.Module], **options: Any) -> nn.Module:
    try:
        return make(**options)
    except (TypeError, ValueError, RuntimeError) as error:
        raise ValueError(f"network: {model} cannot be made with {options}: {error}") from None


def _take_channels(network: nn.Module, channels: int) -> None:
    """Put a first convolution of so many channels in the place of one of 3."""
    name, first = next((name, part) for name, part in network.named_modules() if isinstance(part, nn.Conv2d))
    parent = network.get_submodule(name.rpartition(".")[0])
    named = ("kernel_size", "stride", "padding", "dilation", "padding_mode")
    how = {key: getattr(first, key) for key in named}
    setattr(
        parent, name.rpartition(".")[2], nn.Conv2d(channels, first.out_channels, bias=first.bias is not None, **how)
    )
