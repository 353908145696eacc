"""The one torch.library of ddfast: how an op is defined, where its kernels come from, and how they are switched off."""

import importlib
import importlib.machinery
import importlib.util
import os
import re
from collections.abc import Callable
from types import ModuleType

import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.utils._python_dispatch import TorchDispatchMode

LIBRARY = torch.library.Library("ddfast", "DEF")
_references: dict[str, Callable] = {}


def define(schema: str, reference: Callable, fake: Callable) -> None:
    """Define the op `ddfast::<name>` of `schema`, computed by `reference` on every device that has no faster kernel."""
    name = schema.partition("(")[0]
    LIBRARY.define(schema)
    LIBRARY.impl(name, reference, "CompositeExplicitAutograd")
    torch.library.register_fake(f"ddfast::{name}", fake, lib=LIBRARY)
    _references[name] = reference


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


def refuse_transforms(name: str, *tensors: Tensor | None) -> None:
    """Raise where a derivative is asked of an op that would answer wrongly: forward-mode, torch.func.grad and jvp."""
    message = (
        f"{name}: forward-mode and torch.func derivatives are not available; use torch.autograd.grad, "
        f"with create_graph=True for second derivatives"
    )
    if torch.compiler.is_compiling():
        return
    interpreter = torch._C._functorch.peek_interpreter_stack()
    if interpreter is not None and interpreter.key() in (
        torch._C._functorch.TransformType.Grad,
        torch._C._functorch.TransformType.Jvp,
    ):
        raise NotImplementedError(message)
    if forward_ad._current_level >= 0:
        for tensor in tensors:
            if tensor is not None and forward_ad.unpack_dual(tensor).tangent is not None:
                raise NotImplementedError(message)


def expect_tensors(**tensors: Tensor | None) -> None:
    """Raise unless all are float32 or float64 tensors of one dtype on one device; the first one sets which."""
    (first_name, first), *_ = tensors.items()
    for name, tensor in tensors.items():
        if tensor is None:
            continue
        if not isinstance(tensor, Tensor):
            raise TypeError(f"{name}: expected a tensor, got {type(tensor).__name__}")
        if tensor.dtype not in (torch.float32, torch.float64):
            raise TypeError(f"{name}: expected float32 or float64, got {str(tensor.dtype).removeprefix('torch.')}")
        if tensor.dtype != first.dtype:
            raise TypeError(f"{name}: expected {first.dtype} like {first_name}, got {tensor.dtype}")
        if tensor.device != first.device:
            raise ValueError(f"{name}: expected device {first.device} like {first_name}, got {tensor.device}")


def expect_shape(name: str, tensor: Tensor, shape: tuple[int, ...], letters: str) -> None:
    """Raise unless `tensor` has `shape`; `letters` names it in the message ("[S, P]")."""
    if tensor.shape != shape:
        raise ValueError(f"{name}: expected {letters} = {list(shape)}, got {list(tensor.shape)}")


def _major_minor(version: str) -> str:
    return ".".join(version.split("+")[0].split(".")[:2])


def _built_for(path: str) -> str | None:
    """The torch version that a compiled ddfast._C names in its bytes, readable even where it cannot be loaded."""
    with open(path, "rb") as file:
        found = re.search(rb"ddfast was built for torch ([0-9][^ ]*) ", file.read())
    return found.group(1).decode() if found else None


def _load_extension() -> ModuleType | None:
    """Import ddfast._C. Its plain absence is the pure-PyTorch build; anything else that is wrong raises."""
    if os.environ.get("DDFAST_EXTENSION", "1") == "0":
        return None
    spec = importlib.util.find_spec("ddfast._C")
    if spec is None:
        return None
    built_for = _built_for(spec.origin)
    if built_for is not None and _major_minor(built_for) != _major_minor(torch.__version__):
        raise ImportError(
            f"ddfast._C was built for torch {built_for}, but torch {torch.__version__} is installed; rebuild it with "
            f"`pip install --no-build-isolation --force-reinstall --no-deps ddfast` (or, in a checkout, "
            f"`pip install --no-build-isolation -e .`), or set DDFAST_EXTENSION=0 to run without it"
        )
    return importlib.import_module("ddfast._C")


def why_no_extension() -> str:
    """Why EXTENSION is None."""
    return "DDFAST_EXTENSION=0" if os.environ.get("DDFAST_EXTENSION") == "0" else "ddfast._C was not built"


EXTENSION = _load_extension()
