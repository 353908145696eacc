"""Where tensors live: the device that a user named, or the best there is, and how much was needed of it."""

import resource
from pathlib import Path

import torch

CGROUP = Path("/sys/fs/cgroup")


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


def peak_bytes(device: torch.device) -> int:
    """The most memory so far: of this process on a CPU, of tensors on a GPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def is_out_of_memory(error: BaseException) -> bool:
    """Whether memory ran out; on a CPU it shows in the words of PyTorch's allocator and of oneDNN only."""
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    words = ("can't allocate memory", "could not create a primitive", "could not create a memory")
    return isinstance(error, RuntimeError) and any(part in str(error) for part in words)


def free_bytes(device: torch.device) -> int:
    """Memory that can be had now: of the GPU, or what Linux calls available, or less where a container allows less."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    with open("/proc/meminfo", encoding="ascii") as file:
        available = next(int(line.split()[1]) * 1024 for line in file if line.startswith("MemAvailable"))
    try:
        most, now = (int((CGROUP / name).read_text()) for name in ("memory.max", "memory.current"))
    except (OSError, ValueError):  # no cgroup v2, or no limit: "max"
        return available
    return min(available, max(0, most - now))
