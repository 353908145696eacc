"""Results line by line, so that what a part measured is kept when it is killed."""

import json
import time
from pathlib import Path
from typing import Any, NamedTuple


class Lines:
    """A .jsonl file that grows."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def write(self, name: str, **values: Any) -> None:
        """Append a line, and show it. `ok=False` is a failed check, `why` says of what."""
        line = {"name": name, **values}
        with open(self._path, "a", encoding="utf-8") as file:
            file.write(json.dumps(line, ensure_ascii=False) + "\n")
        print(line, flush=True)


def read_lines(path: Path) -> list[dict[str, Any]]:
    """The lines of such a file; one that was cut off by a kill is left out."""
    lines = []
    for text in path.read_text(encoding="utf-8").splitlines() if path.exists() else []:
        try:
            lines.append(json.loads(text))
        except ValueError:
            continue
    return lines


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
