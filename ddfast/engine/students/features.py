"""What networks see in images: the input of their last linear layer, differentiable in the images."""

from dataclasses import replace

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.utils import parameters_to_vector

from ddfast.engine.students.convnet import ConvNetStudent
from ddfast.engine.students.module import ModuleStudent
from ddfast.engine.students.training import student_of_all
from ddfast.engine.students.wrappers import unwrapped
from ddfast.ops import computing_in, convnet_features


class Features:
    """What S networks give to their last linear layers, F numbers an image each.

    ConvNets that are fused compute them at once, and keep no maps for the backward pass; others one after another, by
    autograd. Parameters are not differentiated, and are those at the time of the making; networks are used in training
    mode, as the field does it. Buffers, such as batch norm's statistics, are not changed. `mixes`: whether the features
    of an image depend on the others of its minibatch, by batch norm.

    Errors: ValueError for a network that has no linear layer at its end, at the first call.
    """

    def __init__(
        self,
        nets: list[nn.Module],
        image: torch.Size,  # [C, H, W]
        precision: str = "default",
    ) -> None:
        self._nets, self._precision = [unwrapped(net) for net in nets], precision
        student = student_of_all(self._nets, image)
        self._student = None
        self.mixes = isinstance(student, str) and ModuleStudent(self._nets[0]).why_no_micro_batches() is not None
        if isinstance(student, ConvNetStudent):
            rows = torch.stack([parameters_to_vector(net.parameters()).detach() for net in self._nets])
            self._student, self._parameters = student, student.to_fused(rows)
            self._layout = replace(student.layout, precision=precision)

    def __call__(self, images: Tensor) -> Tensor:  # [B, C, H, W] -> [S, B, F]
        if self._student is not None:
            return convnet_features(self._parameters, images, self._layout)
        with computing_in(self._precision):
            return torch.stack([features_of(net, images)[0] for net in self._nets])


@torch.no_grad()
def expect_features(net: nn.Module, image: torch.Size) -> None:  # [C, H, W]
    """ValueError for a network that has no linear layer at its end."""
    Features([net], image)(torch.zeros(1, *image))


def features_of(net: nn.Module, images: Tensor) -> tuple[Tensor, Tensor]:  # [B, C, H, W] -> [B, F], [B, K]
    """What the last linear layer that is called is given, and the network's logits; in the network's own mode.

    Errors: ValueError where there is no such layer.
    """
    given: list[Tensor] = []
    hooks = [
        module.register_forward_pre_hook(lambda _, arguments: given.append(arguments[0]))
        for module in net.modules()
        if isinstance(module, nn.Linear)
    ]
    values = {name: p.detach() for name, p in net.named_parameters()}
    values |= {name: b.clone() for name, b in net.named_buffers()}
    try:
        logits = functional_call(net, values, (images,))
    finally:
        for hook in hooks:
            hook.remove()
    if not given or given[-1].dim() != 2 or len(given[-1]) != len(images):
        raise ValueError(
            f"network: {type(net).__name__} has no linear layer at its end, whose input are its features; take "
            f"another, such as convnet"
        )
    return given[-1], logits
