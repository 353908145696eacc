"""What this installation of ddfast is made of."""

import platform
from importlib import metadata
from typing import Any

import torch

from ddfast.ops import EXTENSION, has_kernel, op_names
from ddfast.ops._extension import why_no_extension

DEPENDENCIES = ("torch", "torchvision", "numpy", "safetensors", "scikit-learn")


def build_info() -> dict[str, Any]:
    """Versions, which ops have compiled kernels for which devices, and how to get what is missing."""
    built = EXTENSION.build_info() if EXTENSION else {}
    kernels = {name: [kind for kind in ("cpu", "cuda") if has_kernel(name, kind)] for name in op_names()}
    return {
        "versions": {
            "ddfast": _version("ddfast"),
            "python": platform.python_version(),
            **{name: _version(name) for name in DEPENDENCIES},
        },
        "torch_cuda": torch.version.cuda,
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "threads": torch.get_num_threads(),
        "instructions": torch.backends.cpu.get_cpu_capability(),
        "extension": {key: built[key] for key in ("torch", "compiler", "instructions", "cuda", "cuda_architectures")}
        if built
        else None,
        "kernels": kernels,
        "missing": _missing(built),
    }


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _missing(built: dict[str, Any]) -> list[str]:
    if not built:
        return [f"compiled kernels, so every op runs its plain-PyTorch reference: {why_no_extension()}"]
    if built["cuda"] is None and torch.version.cuda is not None:
        major = torch.version.cuda.split(".")[0]
        how = f"install the CUDA {major} toolkit (nvcc), set CUDA_HOME, and reinstall ddfast from its source folder"
        return [f"CUDA kernels: {how} with `pip install --no-build-isolation .`"]
    return []
