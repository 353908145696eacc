"""One Markdown table per benchmark group after a run: time, memory and error, with ratios to the group's baseline."""

import statistics
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from benchmarks.measure import DEVICE, described, peak_bytes


@pytest.fixture
def measured(benchmark):
    """Time `make(**case)()` of a module and note its peak memory and whatever else is to stand in the table.

    Before every round the baseline, `make(**case | against)()`, is timed too: machines change their speed, and the
    ratio of a pair does not.
    """

    def run(module, group: str, row: str, *, against: dict | None = None, rounds: int = 5, **case):
        call, baseline = synchronised(module.make(**case)), None
        if against is not None and case | against != case:
            baseline = synchronised(module.make(**case | against))
        before = []

        def time_the_baseline():
            if baseline is not None:
                began = time.perf_counter()
                baseline()
                before.append(time.perf_counter() - began)

        benchmark.group = group
        benchmark.extra_info |= {"row": row, "peak_mib": peak_bytes(module.__name__, **case) / 2**20}
        benchmark.pedantic(call, setup=time_the_baseline, rounds=rounds, warmup_rounds=1)
        if before:
            pairs = zip(before[-rounds:], benchmark.stats.stats.data, strict=True)
            benchmark.extra_info["speed_up"] = statistics.median(b / t for b, t in pairs)
        return benchmark.extra_info

    return run


def synchronised(call: Callable) -> Callable[[], None]:
    """The call, and a wait for the device."""

    def run() -> None:
        call()
        if DEVICE == "cuda":
            torch.cuda.synchronize()

    return run


def pytest_addoption(parser):
    """Where tables go."""
    parser.addoption("--tables", metavar="FILE", type=Path, help="write the tables to this Markdown file too")


def pytest_terminal_summary(terminalreporter, config):
    """Print the tables, and save them where a file is named."""
    rows = getattr(getattr(config, "_benchmarksession", None), "benchmarks", [])
    if not rows:
        return
    text = "\n".join(_tables(rows, config))
    terminalreporter.write_line(f"\n{text}")
    path = config.getoption("--tables")
    if path is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"{text}\n", encoding="utf-8")


def _tables(rows, config) -> Iterator[str]:  # lines
    """What was run, then a table per group."""
    yield described(" ".join(["pytest", *map(str, config.invocation_params.args)]))
    for group in dict.fromkeys(row.group for row in rows):
        members = [row for row in rows if row.group == group]
        base = members[0]
        yield f"\n**{group}**\n"
        yield "| | ms (median) | speed-up | peak MiB | of baseline | error against float64 |"
        yield "|---|---|---|---|---|---|"
        for row in members:
            info, error = row.extra_info, row.extra_info.get("error")
            speed_up = info.get("speed_up", base.stats.median / row.stats.median)
            yield (
                f"| {info['row']} | {row.stats.median * 1e3:.4g} | {speed_up:.2f}× | "
                f"{info['peak_mib']:.4g} | {info['peak_mib'] / max(base.extra_info['peak_mib'], 1e-9):.2f} | "
                f"{'' if error is None else f'{error:.1e}'} |"
            )
