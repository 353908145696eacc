"""Times: by events on a GPU, by a clock in a rehearsal on a CPU; alone, or in pairs with a baseline."""

import statistics
import time
from collections.abc import Callable

import torch

from benchmarks.measure import DEVICE

FLUSH = 2**30  # bytes that are written before a call is timed cold: more than any cache holds


def seconds_of(call: Callable, rounds: int, cold: bool = False) -> list[float]:
    """Of every call, after one that warms up. `cold`: with nothing in the caches, and on a GPU without the time in
    which Python launches, for the device is busy until then."""
    call()
    if DEVICE != "cuda":
        return [_by_clock(call) for _ in range(rounds)]
    flush = torch.empty(FLUSH // 4, device=DEVICE) if cold else None
    events = [[torch.cuda.Event(enable_timing=True) for _ in range(2)] for _ in range(rounds)]
    torch.cuda.synchronize()
    for start, end in events:
        if flush is not None:
            flush.zero_()
        start.record()
        call()
        end.record()
        if flush is None:
            torch.cuda.synchronize()
    torch.cuda.synchronize()
    return [start.elapsed_time(end) / 1000 for start, end in events]


def _by_clock(call: Callable) -> float:
    began = time.perf_counter()
    call()
    return time.perf_counter() - began


def in_pairs(call: Callable, baseline: Callable, rounds: int) -> dict[str, float]:
    """Medians of both, in turn in one run, and the median of the ratios."""
    call(), baseline()
    pairs = []
    for _ in range(rounds):
        (before,), (after,) = _once(baseline), _once(call)
        pairs.append((before, after))
    return {
        "ms": 1000 * statistics.median(after for _, after in pairs),
        "baseline_ms": 1000 * statistics.median(before for before, _ in pairs),
        "speed_up": statistics.median(before / after for before, after in pairs),
    }


def _once(call: Callable) -> list[float]:
    """The time of one call, without a warm-up."""
    if DEVICE != "cuda":
        return [_by_clock(call)]
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    torch.cuda.synchronize()
    start.record()
    call()
    end.record()
    torch.cuda.synchronize()
    return [start.elapsed_time(end) / 1000]
