"""One Markdown table per benchmark group after a run: time, memory and error, with ratios to the group's baseline."""

import datetime
import platform

import pytest
import torch

import ddfast
from benchmarks.measure import DEVICE, peak_bytes


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


def _device() -> str:
    if DEVICE == "cuda":
        return torch.cuda.get_device_name()
    model = next((line for line in open("/proc/cpuinfo") if line.startswith("model name")), ": unknown")
    return f"{model.split(':')[1].strip()}, {torch.get_num_threads()} threads"


def pytest_terminal_summary(terminalreporter, config):
    """Print the tables."""
    rows = getattr(getattr(config, "_benchmarksession", None), "benchmarks", [])
    if not rows:
        return
    write = terminalreporter.write_line
    write("")
    command = f"`pytest {' '.join(config.invocation_params.args)}`"
    versions = f"torch {torch.__version__}, ddfast {ddfast.build_info()['versions']['ddfast']}"
    write(f"{_device()}; {versions}, Python {platform.python_version()}; {datetime.date.today()}; {command}")
    for group in dict.fromkeys(row.group for row in rows):
        members = [row for row in rows if row.group == group]
        base = members[0]
        write(f"\n**{group}**\n")
        write("| | ms (median) | speed-up | peak MiB | of baseline | error against float64 | floor |")
        write("|---|---|---|---|---|---|---|")
        for row in members:
            info, error, floor = row.extra_info, row.extra_info.get("error"), row.extra_info.get("floor")
            write(
                f"| {info['row']} | {row.stats.median * 1e3:.4g} | {base.stats.median / row.stats.median:.2f}× | "
                f"{info['peak_mib']:.4g} | {info['peak_mib'] / max(base.extra_info['peak_mib'], 1e-9):.2f} | "
                f"{'' if error is None else f'{error:.1e}'} | "
                f"{'' if floor is None else f'{floor / row.stats.median:.0%}'} |"
            )
