"""Time and memory of a meta-gradient against inner steps and against images, eager beside ddfast, as a picture.

python -m benchmarks.scaling benchmarks/results/cpu/scaling.png
"""

import functools
import sys
import time
from pathlib import Path

import torch

from benchmarks.bench_meta_gradient import make
from benchmarks.measure import DEVICE, described, peak_bytes

VARIANTS = {"eager": "eager full unroll", "recompute": "ddfast, recomputing all", "store": "ddfast, all steps stored"}
STEPS = (5, 10, 20, 40, 80)
IMAGES = (10, 20, 50, 100)
SIDE, FEW_IMAGES, FEW_STEPS = 32, 10, 5


def seconds(**case) -> float:
    """The fastest of three after a warm-up."""
    call, times = make(**case), []
    for _ in range(4):
        began = time.perf_counter()
        call()
        if DEVICE == "cuda":
            torch.cuda.synchronize()
        times.append(time.perf_counter() - began)
    return min(times[1:])


@functools.cache
def measured(**case) -> tuple[float, float]:  # s, MiB
    """Once for both pictures."""
    return seconds(**case), peak_bytes("benchmarks.bench_meta_gradient", **case) / 2**20


def main(path: Path) -> None:
    """Measure, print a table, draw it, and write the table beside the picture."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    lines = [described(f"python -m benchmarks.scaling {path}")]
    figure, axes = plt.subplots(2, 2, figsize=(9, 6), layout="constrained")
    for column, (name, values) in enumerate({"inner steps": STEPS, "images": IMAGES}.items()):
        for variant, label in VARIANTS.items():
            rows = []
            for value in values:
                images, steps = (FEW_IMAGES, value) if name == "inner steps" else (value, FEW_STEPS)
                case = {"variant": variant, "images": images, "steps": steps, "side": SIDE}
                rows.append(measured(**case))
                lines.append(
                    f"{label:<24} {images:>4} images {steps:>3} steps {rows[-1][0]:8.3f} s {rows[-1][1]:8.1f} MiB"
                )
                print(lines[-1])
            for axis, numbers, unit in zip(axes[:, column], zip(*rows, strict=True), ("s", "MiB"), strict=True):
                axis.plot(values, numbers, marker="o", label=label)
                axis.set(xlabel=name, ylabel=unit, ylim=(0, None), xlim=(0, None))
    axes[0, 0].legend()
    axes[0, 0].set_title(f"{FEW_IMAGES} images, {SIDE} px")
    axes[0, 1].set_title(f"{FEW_STEPS} inner steps, {SIDE} px")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120)
    path.with_suffix(".txt").write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
