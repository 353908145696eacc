"""What a public function checks of its tensors before anything is computed."""

import torch
from torch import Tensor
from torch.autograd import forward_ad


def refuse_transforms(name: str, *tensors: Tensor | None) -> None:
    """Raise where a derivative is asked of an op that would answer wrongly: forward-mode, torch.func.grad and jvp."""
    message = (
        f"{name}: forward-mode and torch.func derivatives are not available; use torch.autograd.grad, "
        f"with create_graph=True for second derivatives"
    )
    if torch.compiler.is_compiling():
        return
    derivatives = (torch._C._functorch.TransformType.Grad, torch._C._functorch.TransformType.Jvp)
    if any(level.key() in derivatives for level in torch._C._functorch.get_interpreter_stack() or ()):
        raise NotImplementedError(message)
    if _has_tangent(*tensors):
        raise NotImplementedError(message)


def in_transform(*tensors: Tensor | None) -> bool:
    """Whether an op would be seen by torch.func, forward-mode derivatives, torch.compile or a tracer."""
    if torch.compiler.is_compiling() or torch.jit.is_tracing() or torch._C._functorch.get_interpreter_stack():
        return True
    return _has_tangent(*tensors)


def _has_tangent(*tensors: Tensor | None) -> bool:
    """Whether a forward-mode derivative is formed through one of these."""
    return forward_ad._current_level >= 0 and any(
        tensor is not None and forward_ad.unpack_dual(tensor).tangent is not None for tensor in tensors
    )


def expect_tensors(**tensors: Tensor | None) -> None:
    """Raise unless all are float32 or float64 tensors of one dtype on one device; the first one sets which."""
    (first_name, first), *_ = tensors.items()
    for name, tensor in tensors.items():
        if tensor is None:
            continue
        expect_dtype(name, tensor, torch.float32, torch.float64)
        if tensor.dtype != first.dtype:
            raise TypeError(f"{name}: expected {first.dtype} like {first_name}, got {tensor.dtype}")
        expect_device(name, tensor, first_name, first)


def expect_dtype(name: str, tensor: Tensor, *dtypes: torch.dtype, reason: str = "") -> None:
    """Raise unless `tensor` is a tensor of one of the dtypes."""
    if not isinstance(tensor, Tensor):
        raise TypeError(f"{name}: expected a tensor, got {type(tensor).__name__}")
    if tensor.dtype not in dtypes:
        *others, last = [str(dtype).removeprefix("torch.") for dtype in dtypes]
        expected = f"{', '.join(others)} or {last}" if others else last
        raise TypeError(f"{name}: expected {expected}{reason}, got {str(tensor.dtype).removeprefix('torch.')}")


def expect_device(name: str, tensor: Tensor, first_name: str, first: Tensor) -> None:
    """Raise unless both tensors are on one device."""
    if tensor.device != first.device:
        raise ValueError(f"{name}: expected device {first.device} like {first_name}, got {tensor.device}")


def expect_shape(name: str, tensor: Tensor, shape: tuple[int, ...], letters: str) -> None:
    """Raise unless `tensor` has `shape`; `letters` names it in the message ("[S, P]")."""
    if tensor.shape != shape:
        raise ValueError(f"{name}: expected {letters} = {list(shape)}, got {list(tensor.shape)}")
