"""Compile the extension in place for the GPU that is there, and see that it loads. Needs nothing but Python and torch.

A package that ddfast needs and that is missing is installed by pip, where that can be."""

import json
import os
import re
import subprocess
import sys
import time
from importlib import metadata
from importlib.util import find_spec

from benchmarks.gpu.lines import Work
from benchmarks.gpu.runner import ROOT

MODULES = {
    "scikit-learn": "sklearn",
    "pillow": "PIL",
    "pyyaml": "yaml",
}  # a package's module, where it has another name
TESTS = (
    "pytest",
    "pytest-benchmark",
    "pytest-xdist",
    "hypothesis",
    "setuptools",
    "ninja",
)  # as ddfast's "dev" has them
INSTALL = 120.0  # seconds
PROBE = "import json, ddfast; print(json.dumps(ddfast.build_info()))"


def needed() -> list[str]:
    """The packages of pyproject.toml, and those of the tests, that are missing."""
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    block = re.search(r"^dependencies = \[(.*?)^\]", text, re.M | re.S)[1]
    names = re.findall(r'^\s*"([\w-]+)[^";]*"', block, re.M)
    modules = {name: MODULES.get(name, name.replace("-", "_")) for name in (*names, *TESTS)}
    modules |= {"pytest-xdist": "xdist", "pytest-benchmark": "pytest_benchmark"}
    return [name for name, module in modules.items() if find_spec(module) is None]


def architecture() -> str | None:
    """Of the GPU: 9.0 of an H100."""
    code = "import torch; print('%d.%d' % torch.cuda.get_device_capability())"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    return found.stdout.strip() if found.returncode == 0 else None


def run(work: Work) -> None:
    """Write a line for the packages, the compilation and what came of it."""
    missing = needed()
    if missing and not work.rehearse:
        same = f"torch=={metadata.version('torch')}"  # which no other package may replace
        command = [sys.executable, "-m", "pip", "install", "--quiet", "--retries", "0", same, *missing]
        try:
            subprocess.run(command, timeout=min(INSTALL, work.left() / 3))
        except subprocess.TimeoutExpired:
            print("pip took too long")
    work.lines.write("packages", missing=missing, still_missing=needed())
    if not work.rehearse:
        began, found = time.monotonic(), architecture()
        environment = os.environ | {"DDFAST_BUILD": "cuda"} | ({"TORCH_CUDA_ARCH_LIST": found} if found else {})
        command = [sys.executable, "setup.py", "egg_info", "build_ext", "--inplace"]
        code = subprocess.run(command, cwd=ROOT, env=environment).returncode
        why = {} if code == 0 else {"why": "the kernels were not compiled: build.log"}
        seconds = time.monotonic() - began
        work.lines.write("compiled", ok=code == 0, seconds=seconds, architecture=found, **why)
    probe = subprocess.run([sys.executable, "-c", PROBE], cwd=ROOT, capture_output=True, text=True)
    if probe.returncode != 0:
        work.lines.write("loaded", ok=False, why=f"ddfast cannot be imported: {probe.stderr.strip().splitlines()[-1]}")
        return
    info, device = json.loads(probe.stdout.splitlines()[-1]), "cpu" if work.rehearse else "cuda"
    without = [name for name, devices in info["kernels"].items() if device not in devices]
    why = {"why": f"no {device} kernel for {', '.join(without)}"} if without else {}
    work.lines.write("loaded", ok=not without, info=info, **why)
