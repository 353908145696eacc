"""The one torch.library of ddfast: how an op is defined, whether it has kernels, and how its reference is run."""

import functools
from collections.abc import Callable

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

LIBRARY = torch.library.Library("ddfast", "DEF")
_references: dict[str, Callable] = {}


def define(schema: str, reference: Callable, fake: Callable) -> None:
    """Define the op `ddfast::<name>` of `schema`, computed by `reference` on every device that has no faster kernel."""
    name = schema.partition("(")[0]
    LIBRARY.define(schema)
    LIBRARY.impl(name, _checked(name, reference), "CompositeExplicitAutograd")
    torch.library.register_fake(f"ddfast::{name}", _checked(name, fake), lib=LIBRARY)
    _references[name] = reference


def _checked(name: str, function: Callable) -> Callable:
    """`function`, where lists are as long as the schema says: PyTorch does not look, and a result too many ends the
    interpreter. And where all tensors are on one device: beside a tensor on meta, others would get unwritten results.
    """
    lengths = [(argument.name, at, argument.N) for at, argument in enumerate(_arguments(name)) if argument.N]

    @functools.wraps(function)
    def checked(*args):
        for argument, at, length in lengths:
            if len(args[at]) != length:
                raise ValueError(f"{argument}: expected {length} values, got {len(args[at])}")
        devices = {tensor.device for tensor in torch.utils._pytree.tree_leaves(args) if isinstance(tensor, Tensor)}
        if len(devices) > 1:
            raise ValueError(f"{name}: expected tensors on one device, got {' and '.join(sorted(map(str, devices)))}")
        return function(*args)

    return checked


def _arguments(name: str) -> list:
    """What the schema says of each argument; N is the length of a list, None where it may be any."""
    return torch._C._get_schema(f"ddfast::{name}", "").arguments


def define_autograd(name: str, backward: Callable, setup_context: Callable) -> None:
    """Register the derivative of `ddfast::<name>`."""
    torch.library.register_autograd(f"ddfast::{name}", backward, setup_context=setup_context, lib=LIBRARY)


def forbid_autograd(name: str, message: str) -> None:
    """Make every derivative of `ddfast::<name>` raise `message`: without a registration it would be silently wrong."""

    def backward(ctx, *grads):
        raise NotImplementedError(message)

    define_autograd(name, backward, lambda ctx, inputs, output: None)


def op_names() -> list[str]:
    """The names of all ops, in the order in which they were defined."""
    return list(_references)


def has_kernel(name: str, device_type: str) -> bool:
    """Whether `ddfast::<name>` has a compiled kernel for "cpu" or "cuda"; without one its reference runs there."""
    return torch._C._dispatch_has_kernel_for_dispatch_key(f"ddfast::{name}", device_type.upper())


class reference_mode(TorchDispatchMode):  # noqa: N801 (a context manager, named like torch.no_grad)
    """Context manager in which every ddfast op runs its plain-PyTorch reference, below the same autograd formulas.

    For tests and for finding out whether a kernel is to blame; a backward pass counts only if it too runs inside.
    """

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func.namespace == "ddfast":
            return _references[func._opname](*args, **(kwargs or {}))
        return func(*args, **(kwargs or {}))
