"""Builds the extension ddfast._C: CUDA kernels where an nvcc that fits torch's CUDA is found, CPU kernels otherwise.

DDFAST_BUILD=none|cpu|cuda overrides the choice; TORCH_CUDA_ARCH_LIST says for which GPUs. A failed build fails.
"""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

from setuptools import setup

CPU_SOURCES = ["csrc/module.cpp", *sorted(str(p) for p in Path("csrc").glob("*/*.cpp") if p.name != "test.cpp")]
CUDA_SOURCES = sorted(str(p) for p in Path("csrc").glob("*/*_cuda.cu"))
DEFAULT_ARCHITECTURES = "8.0;9.0+PTX"
# psabi: vectors cross inlined calls only; maybe-uninitialized: false alarms on them; g0: a file 10 MB smaller.
# fopenmp: without it at::parallel_for runs on one thread, silently. Not linked: torch brings the OpenMP library, once.
COMPILE_ARGS = ["-O3", "-Wall", "-Wno-psabi", "-Wno-maybe-uninitialized", "-g0", "-fopenmp"]


def say(line: str) -> None:
    print(f"ddfast: {line}", file=sys.stderr)


def find_cuda_home() -> Path | None:
    """The CUDA toolkit to build with: CUDA_HOME where set, else the one of the nvcc on PATH, else /usr/local/cuda."""
    named = os.environ.get("CUDA_HOME") or os.environ.get("CUDA_PATH")
    nvcc = shutil.which("nvcc")
    guesses = [Path(nvcc).resolve().parents[1]] if nvcc else []  # wrong where nvcc is a wrapper script
    for home in [Path(named)] if named else [*guesses, Path("/usr/local/cuda")]:
        if (home / "bin" / "nvcc").exists() and (home / "include" / "cuda_runtime.h").exists():
            return home
    return None


def nvcc_version(cuda_home: Path) -> str:
    """Major.minor of the nvcc under cuda_home."""
    output = subprocess.run(
        [cuda_home / "bin" / "nvcc", "--version"], check=True, capture_output=True, text=True
    ).stdout
    return re.search(r"release (\d+\.\d+)", output).group(1)


def why_not_cuda(nvcc: str | None, torch_cuda: str | None) -> str | None:
    """Why CUDA kernels cannot be built, or None where they can."""
    if torch_cuda is None:
        return "this torch is built without CUDA"
    if nvcc is None:
        return f"no nvcc was found (set CUDA_HOME to a CUDA {torch_cuda} toolkit to build them)"
    if nvcc.split(".")[0] != torch_cuda.split(".")[0]:
        return f"nvcc is CUDA {nvcc}, torch is built for CUDA {torch_cuda}: their major versions must agree"
    return None


def extension_arguments() -> dict:
    """The keyword arguments of setup() that build the extension."""
    wanted = os.environ.get("DDFAST_BUILD", "")  # empty: CUDA kernels where they can be built
    if wanted not in ("", "none", "cpu", "cuda"):
        sys.exit(f"ddfast: DDFAST_BUILD: expected none, cpu or cuda, got {wanted!r}")
    if wanted == "none":
        say("building no kernels: every op runs its plain-PyTorch reference (DDFAST_BUILD=none)")
        return {}

    cuda_home = find_cuda_home()
    nvcc = nvcc_version(cuda_home) if cuda_home else None
    if cuda_home:
        os.environ["CUDA_HOME"] = str(cuda_home)  # torch reads it when cpp_extension is imported

    import torch
    from torch.utils.cpp_extension import BuildExtension, CppExtension, CUDAExtension

    obstacle = "DDFAST_BUILD=cpu" if wanted == "cpu" else why_not_cuda(nvcc, torch.version.cuda)
    if obstacle and wanted == "cuda":
        sys.exit(f"ddfast: cannot build CUDA kernels: {obstacle}")
    if obstacle:
        say(f"building CPU kernels only: {obstacle}")
        extension = CppExtension("ddfast._C", CPU_SOURCES, extra_compile_args=COMPILE_ARGS, py_limited_api=True)
    else:
        architectures = os.environ.setdefault("TORCH_CUDA_ARCH_LIST", DEFAULT_ARCHITECTURES)
        say(f"building CPU kernels, and CUDA kernels for {architectures} with nvcc {nvcc}")
        extension = CUDAExtension(
            "ddfast._C",
            CPU_SOURCES + CUDA_SOURCES,
            define_macros=[
                ("DDFAST_CUDA_VERSION", f'"{nvcc}"'),
                ("DDFAST_CUDA_ARCHITECTURES", f'"{architectures}"'),
            ],
            extra_compile_args={"cxx": COMPILE_ARGS, "nvcc": ["-O3", "-Xcompiler", "-Wno-psabi"]},
            py_limited_api=True,
        )
    return {
        "ext_modules": [extension],
        "cmdclass": {"build_ext": BuildExtension},
        "options": {"bdist_wheel": {"py_limited_api": "cp310"}},  # csrc/module.cpp is in Python's limited API
    }


setup(**extension_arguments())
