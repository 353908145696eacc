"""The table of docs/drop-in.md: an eager loop and the calls that replace it, in turn.

python -m benchmarks.drop_in
"""

import statistics
import time

import torch

from benchmarks.bench_meta_gradient import make
from benchmarks.measure import DEVICE, described, peak_bytes

ROWS = {
    "eager": "the loop, by autograd",
    "recompute": "the call",
    "store": "the call, with memory for all steps",
    "module": "the call, the network run as any module",
}
CASE = {"images": 10, "steps": 20, "side": 32}
ROUNDS = 3


def seconds(call) -> float:
    """On a CPU those of this process, which other work on the machine changes little; with one thread, as many as an
    idle machine takes."""
    clock = time.perf_counter if DEVICE == "cuda" else time.process_time
    began = clock()
    call()
    if DEVICE == "cuda":
        torch.cuda.synchronize()
    return clock() - began


def main() -> None:
    """Measure and print the table; the rows take turns, for machines change their speed."""
    calls = {row: make(row, **CASE) for row in ROWS}
    rounds = [{row: seconds(call) for row, call in calls.items()} for _ in range(1 + ROUNDS)][1:]
    print(described("python -m benchmarks.drop_in"))
    print("\n| | seconds | speed-up | peak MiB |\n|---|---|---|---|")
    for row, words in ROWS.items():
        median = statistics.median(times[row] for times in rounds)
        speed_up = statistics.median(times["eager"] / times[row] for times in rounds)
        peak = peak_bytes("benchmarks.bench_meta_gradient", variant=row, **CASE) / 2**20
        print(f"| {words} | {median:.2f} | {speed_up:.2f}× | {peak:.0f} |")


if __name__ == "__main__":
    main()
