"""One Markdown table per benchmark group after a run: time, memory and error, with ratios to the group's baseline."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from benchmarks.measure import DEVICE, described, peak_bytes

MEMORY = ("MALLOC_", "THP_")  # settings of memory that change what is measured


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
    """Where tables go, and the second table that is fair to both sides on a GPU."""
    parser.addoption("--tables", metavar="FILE", type=Path, help="write the tables to this Markdown file too")
    parser.addoption("--strict-float32", action="store_true", help="no TF32 on either side")


def pytest_configure(config):
    """Turn TF32 off for everything, where that is asked for."""
    if config.getoption("--strict-float32"):
        backends = torch.backends
        for setting in (backends.cudnn.conv, backends.cudnn.rnn, backends.cuda.matmul):
            setting.fp32_precision = "ieee"


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
    settings = " ".join(f"{name}={os.environ[name]}" for name in sorted(os.environ) if name.startswith(MEMORY))
    command = " ".join(filter(None, [settings, "pytest", *map(str, config.invocation_params.args)]))
    yield f"{described()}; `{command}`"
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
