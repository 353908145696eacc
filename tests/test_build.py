"""What setup.py decides to build, and says."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parent.parent
needs_cuda_torch = pytest.mark.skipif(torch.version.cuda is None, reason="this torch is built without CUDA")


def setup(*arguments: str, **environment: str) -> subprocess.CompletedProcess:
    known = {k: v for k, v in os.environ.items() if k not in ("CUDA_HOME", "CUDA_PATH", "TORCH_CUDA_ARCH_LIST")}
    return subprocess.run(
        [sys.executable, "setup.py", *(arguments or ("--name",))],
        cwd=ROOT,
        env={**known, **environment},
        capture_output=True,
        text=True,
        timeout=300,
    )


def toolkit(path: Path, version: str) -> str:
    """A folder that looks like a CUDA toolkit."""
    (path / "bin").mkdir(parents=True)
    (path / "include").mkdir()
    (path / "include" / "cuda_runtime.h").touch()
    nvcc = path / "bin" / "nvcc"
    nvcc.write_text(f"#!/bin/sh\necho 'Cuda compilation tools, release {version}, V{version}.1'\n")
    nvcc.chmod(0o755)
    return str(path)


@pytest.mark.parametrize(
    "build, said",
    [("none", "ddfast: building no kernels"), ("cpu", "ddfast: building CPU kernels only: DDFAST_BUILD=cpu")],
)
def test_the_build_that_was_asked_for_is_said_in_one_line(build, said):
    done = setup(DDFAST_BUILD=build)
    assert done.returncode == 0
    assert len([line for line in done.stderr.splitlines() if line.startswith(said)]) == 1


def test_an_unknown_build_is_refused():
    done = setup(DDFAST_BUILD="gpu")
    assert done.returncode != 0 and "DDFAST_BUILD: expected none, cpu or cuda, got 'gpu'" in done.stderr


@needs_cuda_torch
def test_without_nvcc_cpu_kernels_are_built_and_cuda_kernels_cannot_be_forced():
    assert "building CPU kernels only: no nvcc was found (set CUDA_HOME" in setup(CUDA_HOME="/nowhere").stderr
    forced = setup(CUDA_HOME="/nowhere", DDFAST_BUILD="cuda")
    assert forced.returncode != 0 and "cannot build CUDA kernels: no nvcc was found" in forced.stderr


@needs_cuda_torch
def test_an_nvcc_of_another_major_version_is_not_used(tmp_path):
    said = setup(CUDA_HOME=toolkit(tmp_path, "9.2")).stderr
    assert f"building CPU kernels only: nvcc is CUDA 9.2, torch is built for CUDA {torch.version.cuda}" in said


@needs_cuda_torch
def test_a_fitting_nvcc_is_used_for_the_architectures_that_were_asked_for(tmp_path):
    home = toolkit(tmp_path, torch.version.cuda.split(".")[0] + ".0")
    assert "and CUDA kernels for 8.0;9.0+PTX with nvcc" in setup(CUDA_HOME=home).stderr
    assert "and CUDA kernels for 9.0 with nvcc" in setup(CUDA_HOME=home, TORCH_CUDA_ARCH_LIST="9.0").stderr


def test_a_failed_build_fails(tmp_path):
    """A compiler that cannot compile ends the build with an error, and not with a package without kernels."""
    done = setup(
        "build_ext", "--build-lib", str(tmp_path), "--build-temp", str(tmp_path), DDFAST_BUILD="cpu", CXX="false"
    )
    assert done.returncode != 0
    assert not list(tmp_path.rglob("*.so"))
