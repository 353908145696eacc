"""One Markdown table per benchmark group after a run: time, memory and error, with ratios to the group's baseline."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from benchmarks.measure import DEVICE, described, peak_bytes


@pytest.fixture
def measured(benchmark):
    """Time `make(**case)()` of a module and note its peak memory and whatever else is to stand in the table."""

    def run(module, group: str, row: str, *, rounds: int = 5, **case):
        call = module.make(**case)

        def synchronised():
            call()
            if DEVICE == "cuda":
                torch.cuda.synchronize()

        benchmark.group = group
        benchmark.extra_info |= {"row": row, "peak_mib": peak_bytes(module.__name__, **case) / 2**20}
        benchmark.pedantic(synchronised, rounds=rounds, warmup_rounds=1)
        return benchmark.extra_info

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
        yield "| | ms (median) | speed-up | peak MiB | of baseline | error against float64 | floor |"
        yield "|---|---|---|---|---|---|---|"
        for row in members:
            info, error, floor = row.extra_info, row.extra_info.get("error"), row.extra_info.get("floor")
            yield (
                f"| {info['row']} | {row.stats.median * 1e3:.4g} | {base.stats.median / row.stats.median:.2f}× | "
                f"{info['peak_mib']:.4g} | {info['peak_mib'] / max(base.extra_info['peak_mib'], 1e-9):.2f} | "
                f"{'' if error is None else f'{error:.1e}'} | "
                f"{'' if floor is None else f'{floor / row.stats.median:.0%}'} |"
            )
