"""What the compiler and the code say of the CUDA kernels on a Hopper GPU, without one: predicted, not measured.

python -m benchmarks.predicted [--arch sm_90] > benchmarks/results/predicted-sm_90.md

Needs nvcc (CUDA_HOME, or on PATH). Compiles csrc/common/instantiate.cu and reads ptxas's report (registers, spills) and
the PTX (the widest access to device memory); the rest follows from the launch rules in csrc/*/launch.cuh and cuda.cuh.
"""

import argparse
import os
import re
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import NamedTuple

from benchmarks.measure import ROOT

# Of an H100 and an H200: 64 Ki registers, 228 KiB shared memory (227 for a block, 1 taken by each), 64 warps, 132 SMs.
REGISTERS, SHARED, SHARED_BLOCK, WARPS, SMS = 65536, 228 * 1024, 227 * 1024, 64, 132
SPEEDS = {"H100": 3.35e12, "H200": 4.8e12}  # bytes per second of device memory
THREADS, VECTOR, SECTOR, WIDEST, RESIDENT = 256, 16, 32, 32, 3  # csrc/common/packed.cuh, csrc/norm_relu_pool/cuda.cuh
POOL = {  # maps of full and pooled size that a kernel reads, and that it writes
    "norm_relu_pool_kernel": ((1, 0), (0, 1)),
    "norm_relu_pool_backward_kernel": ((1, 1), (1, 0)),
    "norm_relu_pool_jvp_kernel": ((2, 0), (0, 1)),
    "norm_relu_pool_backward_jvp_kernel": ((2, 2), (1, 0)),
}
SIZES = {"100 × 128 × 32 × 32": (100, 32), "100 × 128 × 16 × 16": (100, 16), "10 × 128 × 128 × 128": (10, 128)}


class Kernel(NamedTuple):
    """Of one instance of a kernel."""

    registers: int
    spills: int  # bytes
    access: int  # bytes, the widest of device memory


def compiled(arch: str) -> dict[str, Kernel]:
    """All kernels of instantiate.cu by mangled name."""
    home = os.environ.get("CUDA_HOME", "/usr/local/cuda")
    nvcc = shutil.which("nvcc") or str(Path(home) / "bin" / "nvcc")
    source = str(ROOT / "csrc" / "common" / "instantiate.cu")
    with tempfile.TemporaryDirectory() as folder:
        command = [nvcc, "-std=c++17", "-O3", f"-arch={arch}", source, "-o"]
        report = subprocess.run(
            [*command, f"{folder}/a.o", "-c", "-Xptxas", "-v"], check=True, capture_output=True, text=True
        ).stderr
        subprocess.run([*command, f"{folder}/a.ptx", "-ptx"], check=True)
        ptx = Path(folder, "a.ptx").read_text()
    bodies = {m[1]: m[2] for m in re.finditer(r"\.entry (\w+)\((.*?)(?=\.entry|\Z)", ptx, re.S)}
    pattern = r"Function properties for (\w+)\n.*?(\d+) bytes spill stores.*?\n.*?Used (\d+) registers"
    return {m[1]: Kernel(int(m[3]), int(m[2]), _widest(bodies[m[1]])) for m in re.finditer(pattern, report)}


def _widest(body: str) -> int:
    """Of loads, stores and asynchronous copies of device memory."""
    sizes = [int(size) for size in re.findall(r"cp\.async\.c[ag]\.shared\.global \[[^]]*\], \[[^]]*\], (\d+)", body)]
    for vector, bits in re.findall(r"(?:ld|st)\.global(?:\.nc)?(?:\.v(\d))?\.[bfsu](\d+)", body):
        sizes.append(int(vector or 1) * int(bits) // 8)
    return max(sizes, default=0)


def tiling(reads: tuple[int, int], pixels: int, pooled: int, channels: int, element: int, real: int, vector: int):
    """(channels of a block, staged, bytes of shared memory), as csrc/norm_relu_pool/launch.cuh chooses."""
    per_channel = (reads[0] * pixels + reads[1] * pooled) * element
    sums, narrowest = THREADS * real * vector, SECTOR // element
    widest = narrowest
    while widest < WIDEST and widest < channels:
        widest *= 2
    tile = widest
    while tile > narrowest and RESIDENT * (sums + tile * per_channel) > SHARED_BLOCK:
        tile //= 2
    if sums + tile * per_channel <= SHARED_BLOCK:
        return tile, True, sums + tile * per_channel
    return widest, False, sums


def resident(registers: int, shared: int) -> int:
    """Blocks on a multiprocessor."""
    by_registers = REGISTERS // (THREADS * -(-registers // 8) * 8)
    return min(by_registers, SHARED // (shared + 1024), WARPS * 32 // THREADS)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--arch", default="sm_90")
    kernels = compiled(parser.parse_args().arch)
    print("Predicted from the code and the compiler, **not measured**: no GPU was there.\n")
    print("| kernel, float32 | maps | registers | spilled | shared KiB | warps resident | widest access |", end="")
    print(" KiB in flight per SM | µs at 3.35 TB/s | at 4.8 |")
    print("|---" * 10 + "|")
    for name, (reads, writes) in POOL.items():
        for words, (images, side) in SIZES.items():
            pixels, pooled = side**2, (side // 2) ** 2
            tile, staged, shared = tiling(reads, pixels, pooled, 128, 4, 4, VECTOR // 4)
            kernel = next(k for n, k in kernels.items() if f"{len(name)}{name}IfLi4ELb{int(staged)}E" in n)
            blocks = resident(kernel.registers, shared)
            total = (
                images
                * 128
                * 4
                * sum(n * size for n, size in zip((*reads, *writes), 2 * (pixels, pooled), strict=True))
            )
            flight = blocks * (shared - THREADS * VECTOR if staged else THREADS * VECTOR) / 1024
            times = " | ".join(f"{1e6 * total / speed:.1f}" for speed in SPEEDS.values())
            print(
                f"| {name.removesuffix('_kernel')}, {'staged' if staged else 'unstaged'}, {tile} channels | {words} |",
                end="",
            )
            print(f" {kernel.registers} | {kernel.spills} | {shared / 1024:.0f} | {blocks * THREADS // 32} |", end="")
            print(f" {kernel.access} B | {flight:.0f} | {times} |")
    for name, moved, words in (
        ("param_distance_kernel", 3, "1 × 320010 parameters"),
        ("param_distance_backward_kernel", 4, "1 × 320010 parameters"),
        ("dsa_augment_sums_kernel", 1, "100 × 3 × 32 × 32"),
        ("dsa_augment_kernel", 2, "100 × 3 × 32 × 32"),
        ("dsa_augment_backward_kernel", 2, "100 × 3 × 32 × 32"),
        ("dsa_augment_color_backward_kernel", 2, "100 × 3 × 32 × 32"),
    ):
        found = [k for n, k in kernels.items() if re.search(rf"{len(name)}{name}If", n)]
        kernel = max(found, key=lambda k: k.access)
        shared = 0 if name == "param_distance_backward_kernel" else 2 * THREADS * 8
        blocks = resident(kernel.registers, shared)
        size = 320010 if "param" in name else 100 * 3 * 32 * 32
        times = " | ".join(f"{1e6 * moved * size * 4 / speed:.1f}" for speed in SPEEDS.values())
        print(f"| {name.removesuffix('_kernel')} | {words} | {kernel.registers} | {kernel.spills} |", end="")
        print(f" {shared / 1024:.0f} | {blocks * THREADS // 32} | {kernel.access} B |", end="")
        print(f" {blocks * THREADS * kernel.access / 1024:.0f} | {times} |")


if __name__ == "__main__":
    main()
