"""Where tensors live: the device that a user named, or the best there is, and how much was needed of it."""

import re
import resource
from collections.abc import Sequence

import torch

from ddfast.runtime.memory_limits import left_by_limits

# PyTorch's allocator on a CPU, oneDNN (whose "primitive descriptor" cannot be made of what it does not know), CUDA
OUT_OF_MEMORY = re.compile(
    r"can't allocate memory|Cannot allocate memory|could not create a (primitive|memory)(?! desc)"
    r"|CUDA error: out of memory|_STATUS_ALLOC_FAILED"
)


def resolve_device(device: str | torch.device | None) -> torch.device:
    """The device called `device`; None for the GPU where there is one, else the CPU. ValueError for one not there."""
    if device is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        resolved = torch.device(device)
    except RuntimeError:
        raise ValueError(f"device: expected cpu, cuda or cuda:<number>, got {device!r}") from None
    if resolved.type not in ("cpu", "cuda"):
        raise ValueError(f"device: expected cpu, cuda or cuda:<number>, got {device!r}")
    if resolved.type == "cuda" and (resolved.index or 0) >= torch.cuda.device_count():
        raise ValueError(f"device: {device!r} is not there, torch sees {torch.cuda.device_count()} CUDA devices")
    return resolved


def computes_bfloat16(device: torch.device) -> bool:
    """Whether convolutions in bfloat16 are as fast as others there."""
    try:
        return device.type == "cuda" or torch.ops.mkldnn._is_mkldnn_bf16_supported()
    except (AttributeError, RuntimeError):  # a PyTorch without oneDNN
        return False


def peak_bytes(device: torch.device) -> int:
    """The most memory so far: of this process on a CPU, of tensors on a GPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def is_out_of_memory(error: BaseException) -> bool:
    """Whether memory ran out; often it shows in the words of an allocator or a library only."""
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    return isinstance(error, RuntimeError) and OUT_OF_MEMORY.search(str(error)) is not None


def free_bytes(device: torch.device) -> int:
    """Memory that can be had now: of the GPU, or what Linux calls available, or less where limits do."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    with open("/proc/meminfo", encoding="ascii") as file:
        available = next(int(line.split()[1]) * 1024 for line in file if line.startswith("MemAvailable"))
    left = left_by_limits()
    return available if left is None else min(available, left)


def to_device(tensor: torch.Tensor, device: torch.device) -> torch.Tensor:
    """A tensor of the host on a device, without waiting for the device."""
    return (tensor.pin_memory() if device.type == "cuda" else tensor).to(device, non_blocking=True)


def to_host(tensors: Sequence[torch.Tensor]) -> list[torch.Tensor]:
    """Tensors of one device on the host, with one wait for all of them and for the work before them."""
    if not tensors or tensors[0].device.type != "cuda":
        return [tensor.cpu() for tensor in tensors]
    copies = [torch.empty(t.shape, dtype=t.dtype, pin_memory=True).copy_(t, non_blocking=True) for t in tensors]
    torch.cuda.current_stream(tensors[0].device).synchronize()
    return copies
