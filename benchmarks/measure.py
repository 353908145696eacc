"""Peak memory and errors, measured the same way for every benchmark."""

import datetime
import importlib
import json
import os
import platform
import subprocess
import sys
from pathlib import Path

import torch

import ddfast

ROOT = Path(__file__).parent.parent
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
STRICT = "BENCHMARKS_STRICT_FLOAT32"  # set for no TF32 on either side, in the processes that measure memory too
if os.environ.get(STRICT):
    for setting in (torch.backends.cudnn.conv, torch.backends.cudnn.rnn, torch.backends.cuda.matmul):
        setting.fp32_precision = "ieee"


def peak_bytes(module: str, **case) -> int:
    """Peak memory above the idle process of `module.make(**case)()`, in a process of its own.

    On a CPU every tensor of more than 64 KiB gets pages of its own, so that the peak counts tensors and not the holes
    of glibc's heap.
    """
    output = subprocess.run(
        [sys.executable, "-m", "benchmarks.measure", module, json.dumps(case)],
        cwd=ROOT,
        env={name: value for name, value in os.environ.items() if not name.startswith("MALLOC_")}
        | {"MALLOC_MMAP_THRESHOLD_": "65536"},
        check=True,
        capture_output=True,
        text=True,
    ).stdout
    return int(output.splitlines()[-1])


def status(key: str) -> int:
    """VmRSS (resident now) or VmHWM (its peak), in bytes."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(key))
    return int(line.split()[1]) * 1024


def _measure(call) -> int:
    if DEVICE == "cuda":
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        idle = torch.cuda.memory_allocated()
        call()
        torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated() - idle
    ddfast.ops.release_memory()  # of the first run
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
    idle = status("VmRSS")
    call()
    return status("VmHWM") - idle


def machine() -> str:
    """Device, versions and date."""
    if DEVICE == "cuda":
        device = torch.cuda.get_device_name()
    else:
        model = next((line for line in open("/proc/cpuinfo") if line.startswith("model name")), ": unknown")
        capability = torch.backends.cpu.get_cpu_capability()
        device = f"{model.split(':')[1].strip()} ({capability}), {torch.get_num_threads()} thread(s)"
    versions = f"torch {torch.__version__}, ddfast {ddfast.build_info()['versions']['ddfast']}"
    return f"{device}; {versions}, Python {platform.python_version()}; {datetime.date.today()}"


def described(command: str) -> str:
    """Device, versions, date and what was run, for above a table."""
    settings = (
        f"{name}={os.environ[name]}" for name in sorted(os.environ) if name.startswith(("MALLOC_", "THP_", STRICT))
    )
    return f"{machine()}; `{' '.join([*settings, command])}`"


def relative_error(got: list[torch.Tensor], expected: list[torch.Tensor]) -> float:
    """‖got − expected‖ / ‖expected‖ over all tensors, in float64."""
    pairs = [(g.double().cpu(), e.double().cpu()) for g, e in zip(got, expected, strict=True)]
    return (sum((g - e).square().sum() for g, e in pairs) / sum(e.square().sum() for _, e in pairs)).sqrt().item()


if __name__ == "__main__":
    make = importlib.import_module(sys.argv[1]).make
    measured = make(**json.loads(sys.argv[2]))
    make(**{**json.loads(sys.argv[2]), "small": True})()  # libraries load and threads start before the measurement
    print(_measure(measured))
