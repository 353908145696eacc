"""Results line by line, so that what a part measured is kept when it is killed."""

import time
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks.lines import append_line


class Lines:
    """A .jsonl file that grows."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def write(self, name: str, **values: Any) -> None:
        """Append a line, and show it. `ok=False` is a failed check, `why` says of what."""
        line = {"name": name, **values}
        append_line(self._path, line)
        print(line, flush=True)


class Work(NamedTuple):
    """What a part is given."""

    lines: Lines
    output: Path  # its files go here
    scratch: Path  # and large ones here: removed at the end
    deadline: float  # of time.monotonic: after it the part is killed
    rehearse: bool  # on a CPU, with tiny sizes
    data: Path | None  # a file that --pack wrote

    def left(self) -> float:
        """Seconds until the deadline."""
        return self.deadline - time.monotonic()
