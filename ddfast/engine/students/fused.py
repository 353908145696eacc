"""Whether the fused ops compute exactly what a network does: it is compared, in all that it is, with a new ConvNet."""

import functools
import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn
from torch.nn.modules import module as global_state

from ddfast.engine.students.wrappers import unwrapped
from ddfast.networks import Conv3x3, ConvNet, NormReLUPool

# Of a module's attributes those that change neither its function nor its gradients, or that are compared otherwise.
_ELSEWHERE = {"_modules", "_parameters", "_buffers", "eps", "border"}
_HARMLESS = {"training", "_non_persistent_buffers_set", "_is_full_backward_hook", "_compiled_call_impl"}
_HARMLESS |= {"_state_dict_hooks", "_state_dict_pre_hooks"}
_HARMLESS |= {"_load_state_dict_pre_hooks", "_load_state_dict_post_hooks"}
_GLOBAL_HOOKS = ("forward_hooks", "forward_pre_hooks", "backward_hooks", "backward_pre_hooks")
_LAYERS = (ConvNet, nn.Sequential, nn.Conv2d, Conv3x3, NormReLUPool, nn.Identity, nn.Linear)
_CALLED = ("__call__", "_wrapped_call_impl", "_call_impl", "forward", "_conv_forward")


def _functions() -> dict[tuple[type, str], Any]:
    """What a call of each layer runs."""
    return {(layer, name): getattr(layer, name, None) for layer in _LAYERS for name in _CALLED}


_OWN_FUNCTIONS = _functions()


def why_not_fused(network: nn.Module) -> str | None:
    """Why the fused ops cannot stand in for a network; None where they compute what it does.

    Whatever is not known to be without effect counts: types, layers and their order, attributes, shapes, types and ties
    of parameters, hooks, replaced methods. Train or eval mode and frozen parameters change nothing: all are trained.
    Wrappers are taken off first (`unwrapped`, whose errors are raised).
    """
    return next(_differences(unwrapped(network)), None)


def _differences(network: nn.Module) -> Iterator[str]:
    if type(network) is not ConvNet:
        yield f"{type(network).__name__} is not a networks.ConvNet"
        return
    modules = dict(network.named_modules(remove_duplicate=False))
    try:
        reference = _reference_of(network)
    except (AttributeError, IndexError, KeyError, TypeError, ValueError, RuntimeError):
        yield "its layers were replaced"
        return
    if reference is None:
        yield "its blocks are not instance norm, ReLU and average pooling"
        return
    expected = dict(reference.named_modules(remove_duplicate=False))
    for name, layer in modules.items():
        if name not in expected:
            yield f"{name} ({type(layer).__name__}) was added"
        elif type(layer) is not type(expected[name]) and (type(layer), type(expected[name])) != (nn.Conv2d, Conv3x3):
            yield f"{name} is a {type(layer).__name__}, not a {type(expected[name]).__name__}"
        else:
            yield from (f"{name or 'the network'} {words}" for words in _of_layer(layer, expected[name]))
    if list(modules) != list(expected):
        yield "its layers are in another order"
    yield from _of_settings(network)
    yield from _of_parameters(network, reference)
    yield from of_patches()


def _reference_of(network: ConvNet) -> ConvNet | None:
    """The ConvNet of the sizes of a network's parameters; None for one of other blocks than the fused ones."""
    features, weight = network.features, network.classifier.weight  # [K, F]
    if len(features) < 4 or len(features) % 4 or not any(isinstance(layer, NormReLUPool) for layer in features):
        return None
    first = features[0]
    return _reference(first.in_channels, len(first.weight), len(features) // 4, *weight.shape)


@functools.lru_cache(maxsize=64)
def _reference(channels: int, width: int, depth: int, num_classes: int, features: int) -> ConvNet:
    with torch.device("meta"):
        side = 2 ** (depth + 1)  # images of any size: that of the linear layer alone depends on it
        reference = ConvNet(channels, num_classes, width, depth, (side, side))
        reference.classifier = nn.Linear(features, num_classes)
    return reference


def _of_layer(layer: nn.Module, reference: nn.Module) -> Iterator[str]:
    """How a layer's attributes differ from those of one that was just made."""
    own, expected = vars(layer), vars(reference)
    for name in expected:
        if name in _ELSEWHERE | _HARMLESS:
            continue
        if name not in own:
            yield f"has no {name}"
        elif not _equal(own[name], expected[name]):
            yield "has hooks" if name.endswith("_hooks") or "_hooks_" in name else f"has {name} {own[name]!r}"
    for name in own:
        if name not in expected.keys() | _HARMLESS and hasattr(type(layer), name):
            yield f"has {name} of its own"
    if layer._buffers:
        yield f"has the buffer {next(iter(layer._buffers))}"
    if list(layer._parameters) != list(reference._parameters):
        yield f"has the parameters {', '.join(layer._parameters) or 'none'}"
    for name, parameter in layer._parameters.items():
        expected_one = reference._parameters.get(name)
        if parameter is None or expected_one is None:
            if parameter is not expected_one:
                yield f"has {'no' if parameter is None else 'a'} {name}"
        elif type(parameter) is not nn.Parameter:
            yield f"has a {name} of type {type(parameter).__name__}"
        elif parameter.shape != expected_one.shape:
            yield f"has a {name} of shape {list(parameter.shape)}"
        elif has_hooks(parameter):
            yield f"has hooks on its {name}"


def _equal(value: Any, expected: Any) -> bool:
    """Whether an attribute is what a new layer has; dictionaries of hooks are of one type or another."""
    if isinstance(value, dict) and isinstance(expected, dict):
        return not value and not expected
    return type(value) is type(expected) and bool(value == expected)


def _of_settings(network: ConvNet) -> Iterator[str]:
    """What may have several values, that the fused ops take: the border and the norms' ε."""
    if type(network.border) is not int or network.border < 0:
        yield f"its border is {network.border!r}"
    values = [vars(layer).get("eps") for layer in network.features[1::4]]
    if not all(type(eps) is float and 0 <= eps < math.inf for eps in values) or len(set(values)) > 1:
        yield f"its norms have eps {', '.join(map(repr, values))}"


def _of_parameters(network: ConvNet, reference: ConvNet) -> Iterator[str]:
    if [name for name, _ in network.named_parameters()] != [name for name, _ in reference.named_parameters()]:
        yield "its parameters are tied, or in another order"
    yield from of_types(network)


def of_types(network: nn.Module) -> Iterator[str]:
    """What the fused ops do not take of the parameters' types."""
    kinds = {(p.dtype, p.layout) for p in network.parameters()}
    if len(kinds) != 1 or kinds.pop() not in ((torch.float32, torch.strided), (torch.float64, torch.strided)):
        yield "its parameters are not all of float32, or all of float64"


def has_hooks(parameter: nn.Parameter) -> bool:
    """Whether something is to run when the parameter gets a gradient."""
    return bool(parameter._backward_hooks or getattr(parameter, "_post_accumulate_grad_hooks", None))


def of_patches() -> Iterator[str]:
    """What was changed for all modules of the process."""
    for kind in _GLOBAL_HOOKS:
        if getattr(global_state, f"_global_{kind}"):
            yield "hooks for all modules are registered"
    for (layer, name), function in _functions().items():
        if function is not _OWN_FUNCTIONS[layer, name]:
            yield f"{layer.__name__}.{name} was replaced"
