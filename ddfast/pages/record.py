"""The contents of a run folder that its page shows."""

import logging
import shlex
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ddfast.data import SyntheticSet
from ddfast.run.folder import RunFolder, WatchedRunFolder
from ddfast.runtime.files import read_json

log = logging.getLogger("ddfast")

NOT_SETTINGS = ("versions", "memory_plan", "trained_experts", "derived", "structure")  # of config.json

NUMBERS = {"metrics": ("iteration", "seconds", "peak_bytes"), "evaluations": ("iteration", "mean")}
IN_TRANSFER = {"network": str, "trained_on": str} | dict.fromkeys(
    ("mean", "std", "n", "seconds", "parameters", "flops"), (int, float)
)


@dataclass(frozen=True)
class Record:
    """A run, finished or not."""

    path: Path
    config: dict[str, Any]
    summary: dict[str, Any]  # empty until the run finishes
    metrics: list[dict[str, Any]]  # a record per iteration
    evaluations: list[dict[str, Any]]  # during the run
    transfer: dict[str, Any]  # saved by `ddfast evaluate`; empty if it was not called
    initial: SyntheticSet | None
    synthetic: SyntheticSet | None
    thumbnails: list[tuple[int, Path]]  # iterations and files
    saved_iteration: int  # of `synthetic`

    @property
    def name(self) -> str:
        """The run's name in comparisons."""
        return self.path.name or str(self.path)

    @property
    def shell_path(self) -> str:
        """The folder, quoted for a shell command."""
        return shlex.quote(str(self.path))

    @property
    def accuracy(self) -> dict[str, Any]:
        """As DistillResult has it; empty until the run finishes."""
        return self.summary.get("accuracy", {})

    @property
    def title(self) -> str:
        """Method, data and images per class."""
        ipc = self.config.get("ipc")
        count = f"{ipc} per class" if isinstance(ipc, int) else "several per class"
        return f"{self.config['method']} on {Path(self.config['dataset']).name}, {count}"

    @property
    def settings(self) -> dict[str, Any]:
        """All settings."""
        return {name: value for name, value in self.config.items() if name not in NOT_SETTINGS}


def read(run: str | Path) -> Record:
    """Read a run folder. FileNotFoundError if there is no run, ValueError if it is damaged."""
    path = Path(run)
    folder = WatchedRunFolder(path)  # which deletes nothing
    config = folder.read_config()
    summary = folder.read_summary() or {}
    metrics, evaluations = (_records(folder, name) for name in NUMBERS)
    initial, synthetic = (
        SyntheticSet.load(path / name) if SyntheticSet.is_at(path / name) else None for name in ("initial", "synthetic")
    )
    found = [(int(file.stem), file) for file in (path / "thumbnails").glob("*.webp") if _is_picture(file)]
    saved = folder.saved_iteration() or (metrics[-1]["iteration"] if metrics else 0)
    return Record(
        path, config, summary, metrics, evaluations, _transfer(path), initial, synthetic, sorted(found), saved
    )


def _records(folder: RunFolder, name: str) -> list[dict[str, Any]]:
    """The records with all their numbers; the number of others is logged."""
    found = folder.keep_until(name, sys.maxsize)
    whole = [record for record in found if all(isinstance(record.get(key), (int, float)) for key in NUMBERS[name])]
    if len(whole) < len(found):
        log.warning("%s: skipped %d damaged lines", folder.path / f"{name}.jsonl", len(found) - len(whole))
    return whole


def _transfer(path: Path) -> dict[str, Any]:
    file = path / "transfer.json"
    table = read_json(file, checksum=False) if file.is_file() else {}
    rows, scores = (table.get("rows", []), table.get("scores", {})) if isinstance(table, dict) else (None, None)
    if not (isinstance(rows, list) and all(map(_is_row, rows)) and isinstance(scores, Mapping)):
        raise ValueError(f"{file}: not a transfer table; delete it, or run ddfast evaluate again")
    return table


def _is_picture(file: Path) -> bool:
    return file.stem.isdigit() and file.is_file() and file.stat().st_size > 0


def _is_row(row: Any) -> bool:
    return isinstance(row, dict) and all(isinstance(row.get(name), kind) for name, kind in IN_TRANSFER.items())
