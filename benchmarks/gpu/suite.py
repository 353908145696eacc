"""pytest -m cuda, with a line for every test as soon as it ends. As a pytest plugin, this module writes those lines."""

import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

from benchmarks.gpu.lines import Lines, Work
from benchmarks.gpu.runner import ROOT

FILE = "DDFAST_BENCHMARK_LINES"  # the environment variable by which the plugin knows where lines go
FIRST = ("ops", "engine", "methods")  # the tests of kernels come first
FEW = "tests/runtime/test_memory_limits.py"  # of a rehearsal
PROCESSES = 8
_lines: list[Lines] = []


def pytest_configure(config) -> None:
    """Write lines, but not in the processes of pytest-xdist."""
    if os.environ.get(FILE) and not hasattr(config, "workerinput"):
        _lines.append(Lines(Path(os.environ[FILE])))


def pytest_runtest_logreport(report) -> None:
    """A line for the test, or for what failed before or after it."""
    if _lines and (report.when == "call" or report.outcome != "passed"):
        ended = {"outcome": report.outcome, "seconds": round(report.duration, 3)}
        why = str(report.longrepr).strip().splitlines()[-1][:300] if report.failed else ""
        _lines[0].write(report.nodeid, **ended, **({"ok": False, "why": why} if report.failed else {}))


def pytest_collectreport(report) -> None:
    """A line for a file that cannot be collected."""
    if _lines and report.failed:
        _lines[0].write(
            report.nodeid, ok=False, outcome="failed", why=str(report.longrepr).strip().splitlines()[-1][:300]
        )


def run(work: Work) -> None:
    """Run pytest; the plugin in it writes the lines."""
    folders = sorted(str(path.relative_to(ROOT)) for path in (ROOT / "tests").iterdir() if path.is_dir())
    first = [f"tests/{name}" for name in FIRST]
    where = [FEW] if work.rehearse else [*first, *(f for f in folders if f not in first and "__pycache__" not in f)]
    command = [sys.executable, "-m", "pytest", "-q", "-m", "not cuda" if work.rehearse else "cuda", "-p", __name__]
    command += ["-p", "no:cacheprovider", "--continue-on-collection-errors", *where]
    if find_spec("xdist") is not None and not work.rehearse:
        command += ["-n", str(min(PROCESSES, os.cpu_count() or 1)), "--dist", "worksteal"]
    environment = os.environ | {FILE: str(work.output / "suite.jsonl"), "OMP_NUM_THREADS": "1"}
    code = subprocess.run(command, cwd=ROOT, env=environment).returncode
    if code not in (0, 1):
        raise RuntimeError(f"pytest ended with status {code}")
