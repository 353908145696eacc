"""One part in a process of its own.

python -m benchmarks.gpu.part NAME --output DIR --scratch DIR --seconds S [--rehearse] [--data FILE]
"""

import argparse
import importlib
import time
from pathlib import Path

from benchmarks.gpu.lines import Lines, Work


def main() -> None:
    """Run it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("name")
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--scratch", type=Path, required=True)
    parser.add_argument("--seconds", type=float, required=True)
    parser.add_argument("--rehearse", action="store_true")
    parser.add_argument("--data", type=Path)
    given = parser.parse_args()
    file, deadline = given.output / f"{given.name}.jsonl", time.monotonic() + given.seconds
    file.write_text("")
    work = Work(Lines(file), given.output, given.scratch, deadline, given.rehearse, given.data)
    if given.name != "build":
        from benchmarks.measure import described  # it needs what the first part installs

        work.lines.write("machine", described=described(f"python -m benchmarks.gpu --only {given.name}"))
    importlib.import_module(f"benchmarks.gpu.{given.name}").run(work)


if __name__ == "__main__":
    main()
