"""The field's ConvNet in other people's code: recognised by its structure, compared with autograd once, run fused."""

import copy
import math
import weakref
from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ddfast.engine.students.base import GradientJvp, Step, Wanted
from ddfast.engine.students.convnet import ConvNetStudent
from ddfast.engine.students.fused import has_hooks, of_patches, of_types
from ddfast.engine.students.module import ModuleStudent
from ddfast.engine.students.replay import other_states, set_other_states
from ddfast.engine.students.wrappers import HOOKS
from ddfast.ops import ConvNetLayout, convnet_grad, convnet_grad_jvp

ADDRESS = " at 0x"  # in the words of an object that has none of its own
MOST_KINDS = 64  # that are known of all networks, the last ones
MOST_VERSIONS = 8  # of one network: one that changes with every call is not compared again and again
MOST_NUMBERS = 2**25  # of the first map of the comparison: 256 MiB
EXACT = 1e-7  # in float64, relative; another network differs by more than 1e-3
_BOOKKEEPING = {"_parameters", "_modules", "_buffers", "_non_persistent_buffers_set", "_is_full_backward_hook"}


class Recognised(NamedTuple):
    """Which ConvNet a network is, and where each of its parameters lies in the network's own order."""

    layout: ConvNetLayout  # of the default precision
    index: Tensor  # [P of the layout], int64; the number of own parameters where it has none: a convolution's bias

    def is_like(self, other: "Recognised") -> bool:
        return self.layout == other.layout and torch.equal(self.index, other.index)


class RecognisedStudent(ConvNetStudent):
    """A ConvNetStudent of a network with flat parameters in another order, and perhaps without biases of convolutions,
    which have no effect before an instance norm."""

    def __init__(self, network: nn.Module, recognised: Recognised, precision: str = "default") -> None:
        module = ModuleStudent(network, precision)
        self.num_parameters, self.layer_sizes = module.num_parameters, module.layer_sizes
        layout, self._index = recognised
        self.layout = ConvNetLayout(*layout.sizes[:-1], precision)
        own = torch.full((self.num_parameters + 1,), -1)
        own[self._index] = torch.arange(len(self._index))
        self._own = own[:-1]
        self._same = torch.equal(self._index, torch.arange(self.num_parameters))

    def to_fused(self, parameters: Tensor) -> Tensor:  # [S, P] -> [S, P of the layout]
        if self._same:
            return parameters
        padded = torch.cat([parameters, parameters.new_zeros(len(parameters), 1)], 1)
        return padded[:, self._index.to(parameters.device)]

    def from_fused(self, parameters: Tensor) -> Tensor:  # [S, P of the layout] -> [S, P]
        return parameters if self._same else parameters[:, self._own.to(parameters.device)]

    def grad(
        self, parameters: Tensor, images: Tensor, labels: Tensor, *, step: Step, create_graph: bool = False
    ) -> tuple[Tensor, Tensor]:
        losses, gradient = super().grad(self.to_fused(parameters), images, labels, step=step, create_graph=create_graph)
        return losses, self.from_fused(gradient)

    def grad_jvp(
        self, parameters: Tensor, images: Tensor, labels: Tensor, direction: Tensor, *, step: Step, wanted: Wanted
    ) -> GradientJvp:
        jvp = super().grad_jvp(
            self.to_fused(parameters), images, labels, self.to_fused(direction), step=step, wanted=wanted
        )
        return jvp if jvp.parameters is None else jvp._replace(parameters=self.from_fused(jvp.parameters))


_kinds: dict[tuple, Recognised | str] = {}  # by version, where it names no object that may be another's tomorrow
_known: weakref.WeakKeyDictionary[nn.Module, dict[tuple, Recognised | str]] = weakref.WeakKeyDictionary()


def recognise(
    network: nn.Module,
    image: torch.Size,  # [C, H, W]
) -> Recognised | str:
    """The ConvNet that a network is on images of this size, or why it is none.

    Found by its modules and parameters, whatever their names: 3×3 convolutions, each followed by an instance norm with
    affine parameters, and a linear layer. Then logits, gradient and second derivatives are compared with autograd's, in
    float64 on two random images, once for each state of its attributes, of all networks that are alike.
    """
    reason = next(_obstacles(network), None)
    if reason is not None:
        return reason
    version = (tuple(image), *_version(network))
    known = _known.setdefault(network, {})
    if version not in known:
        if len(known) >= MOST_VERSIONS:
            return "its attributes change from call to call"
        known[version] = _kinds.get(version) or _recognise(network, image)
        if not any(
            ADDRESS in value for part in version if isinstance(part, tuple) for value in part if isinstance(value, str)
        ):
            _kinds[version] = known[version]
            if len(_kinds) > MOST_KINDS:
                del _kinds[next(iter(_kinds))]
    return known[version]


def _version(network: nn.Module) -> Iterator[Any]:
    """What a network does depends on this, beside its parameters: types, methods, attributes, shapes."""
    for name, module in network.named_modules(remove_duplicate=False):
        yield name, type(module), type(module).forward, type(module).__call__
        for attribute, value in vars(module).items():
            if attribute in _BOOKKEEPING:
                continue
            yield attribute, repr(value)  # of what has no words of its own, its address
        for parameter in module._parameters.values():
            yield None if parameter is None else (type(parameter), parameter.shape, parameter.dtype)


def _recognise(network: nn.Module, image: torch.Size) -> Recognised | str:
    others = other_states()
    try:
        with torch.random.fork_rng(devices=[]), torch.autocast("cpu", enabled=False):
            holders = _in_order_of_calls(network, image)
            found = _structure(network, holders, image)
            return found if isinstance(found, str) else _compared(network, found, image)
    except Exception as error:  # whatever a network of someone else's raises
        return f"it cannot be compared with a ConvNet: {type(error).__name__}"
    finally:
        set_other_states(others)


def _obstacles(network: nn.Module) -> Iterator[str]:
    """What excludes a network at once; looked at in every call."""
    yield from of_patches()
    for name, module in network.named_modules():
        where = name or "the network"
        if any(vars(module).get(hooks) for hooks in HOOKS):
            yield f"{where} has hooks"
        if any(buffer is not None for buffer in module._buffers.values()):
            yield f"{where} has buffers"
        if module.training and isinstance(module, nn.modules.dropout._DropoutNd) and module.p:
            yield f"{where} draws random numbers"
        if any(isinstance(value, Tensor) for value in vars(module).values()):
            yield f"{where} has a tensor that is no parameter"
        parameters = [p for p in module._parameters.values() if p is not None]
        if any(type(p) is not nn.Parameter for p in parameters):
            yield f"{where} has parameters of another type"
        if any(map(has_hooks, parameters)):
            yield f"{where} has hooks on its parameters"
    if len(list(network.named_parameters(remove_duplicate=False))) != len(list(network.parameters())):
        yield "its parameters are tied"
    yield from of_types(network)


def _in_order_of_calls(network: nn.Module, image: torch.Size) -> list[nn.Module]:
    """Modules with parameters of their own, in the order in which a copy of the network calls them."""
    copied = copy.deepcopy(network).to("cpu")
    originals = dict(zip(copied.modules(), network.modules(), strict=True))
    called: list[nn.Module] = []
    for module in copied.modules():
        if any(p is not None for p in module._parameters.values()):
            module.register_forward_pre_hook(lambda module, _: called.append(originals[module]))
    with torch.no_grad():
        copied(torch.zeros(1, *image, dtype=next(copied.parameters()).dtype))
    return called


def _structure(network: nn.Module, holders: list[nn.Module], image: torch.Size) -> Recognised | str:
    """By the shapes of parameters; what they do is compared after that."""
    other = "its layers are not those of the field's ConvNet"
    if not holders:
        return other
    *blocks, linear = holders
    places, total = {}, 0
    for parameter in network.parameters():
        places[parameter] = total
        total += parameter.numel()
    held = [p for module in holders for p in module._parameters.values() if p is not None]
    if not blocks or len(blocks) % 2 or sum(p.numel() for p in held) != total:
        return other
    index, missing = [], total
    width, inputs = len(next(iter(blocks[0]._parameters.values()))), image[0]
    eps = {float(module.eps) for module in network.modules() if isinstance(getattr(module, "eps", None), float)}
    paddings = [getattr(module, "padding", None) for module in blocks[::2]]
    for convolution, norm in zip(blocks[::2], blocks[1::2], strict=True):
        w, bias = (convolution._parameters.get(name) for name in ("weight", "bias"))
        gamma, beta = (norm._parameters.get(name) for name in ("weight", "bias"))
        shapes = [None if p is None else tuple(p.shape) for p in (w, gamma, beta)]
        if shapes != [(width, inputs, 3, 3), (width,), (width,)] or (bias is not None and bias.shape != (width,)):
            return other
        for piece in (w, bias, gamma, beta):
            index.append(
                torch.full((width,), missing) if piece is None else places[piece] + torch.arange(piece.numel())
            )
        inputs = width
    weight, bias = (linear._parameters.get(name) for name in ("weight", "bias"))
    if weight is None or bias is None or weight.dim() != 2 or len(eps) != 1:
        return other
    index += [places[piece] + torch.arange(piece.numel()) for piece in (weight, bias)]
    first = paddings[0]
    border = first[0] - 1 if isinstance(first, tuple) and isinstance(first[0], int) and first[0] > 0 else 0
    layout = ConvNetLayout(width, len(blocks) // 2, len(weight), border, eps.pop())
    H, W = layout.maps((image[1], image[2]))[-1]
    if min(H, W) < 1 or weight.shape[1] != width * H * W:
        return other
    if 2 * width * math.prod(layout.maps((image[1], image[2]))[0]) > MOST_NUMBERS:
        return "its images are too large for a comparison with a ConvNet"
    return Recognised(layout, torch.cat(index))


def _compared(network: nn.Module, found: Recognised, image: torch.Size) -> Recognised | str:
    """The same, where a copy of the network in float64 agrees with the fused ops at random parameters."""
    copied = copy.deepcopy(network).to("cpu", torch.float64)
    student = RecognisedStudent(copied, found)
    generator = torch.Generator().manual_seed(0)

    def draw(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    P, K = student.num_parameters, found.layout.num_classes
    flat = torch.nn.utils.parameters_to_vector(copied.parameters()).detach()[None]
    scale = flat.abs().mean()
    theta, sigma, x = flat + scale * draw(1, P), draw(1, P), draw(2, *image)
    labels = draw(2, K).softmax(1)
    module, step, wanted = ModuleStudent(copied), Step(), Wanted()
    losses, g = module.grad(theta, x, labels, step=step)
    by_autograd = [losses, g, *module.grad_jvp(theta, x, labels, sigma, step=step, wanted=wanted)]
    fused, along = student.to_fused(theta), student.to_fused(sigma)
    losses, g, _ = convnet_grad(fused, x, labels, found.layout)
    slope, h, *rest = convnet_grad_jvp(fused, x, labels, along, found.layout)
    own = [losses, student.from_fused(g), slope, student.from_fused(h), *rest]
    for a, b in zip(own, by_autograd, strict=True):
        error = (a - b).norm() / b.norm().clamp_min(1e-30)
        if not math.isfinite(error) or error > EXACT:
            return "it computes something else than the field's ConvNet"
    return found
