"""The run folder: what `distill` writes."""

import contextlib
import itertools
import json
import math
from pathlib import Path
from typing import Any

from ddfast.data import SyntheticSet
from ddfast.files import read_json, write_json


class RunFolder:
    """A folder for one run: config.json, metrics.jsonl, synthetic.safetensors and .json, summary.json, images.png."""

    def __init__(self, path: Path):
        self.path = path

    @classmethod
    def create(cls, path: str | Path | None, config: dict[str, Any]) -> "RunFolder":
        """A new folder, claimed by its config.json; None for the next free number under runs/.

        Errors: FileExistsError for a folder that holds a run, which is never written to.
        """
        path = cls._next_number(Path("runs")) if path is None else Path(path)
        if path.exists() and not path.is_dir():
            raise FileExistsError(f"{path}: is a file; choose another output folder")
        path.mkdir(parents=True, exist_ok=True)
        run = cls(path)
        with contextlib.suppress(FileExistsError):
            open(path / "config.json", "x").close()  # of two runs at once, one is first
            run.write_config(config)
            return run
        raise FileExistsError(f"{path}: holds a run already; choose another output folder")

    @staticmethod
    def _next_number(runs: Path) -> Path:
        runs.mkdir(exist_ok=True)
        taken = [int(p.name) for p in runs.iterdir() if p.name.isdigit()]
        for number in itertools.count(max(taken, default=0) + 1):
            with contextlib.suppress(FileExistsError):  # another run took it just now
                path = runs / f"{number:04d}"
                path.mkdir()
                return path

    def discard(self) -> None:
        """Undo `create`, for a run that ended before it had anything to keep."""
        (self.path / "config.json").unlink(missing_ok=True)
        with contextlib.suppress(OSError):  # the folder holds other things
            self.path.rmdir()

    def read_config(self) -> dict[str, Any]:
        """What `write_config` wrote."""
        return read_json(self.path / "config.json")

    @property
    def images_path(self) -> Path:
        """Where the picture of the distilled images goes."""
        return self.path / "images.png"

    def write_config(self, config: dict[str, Any]) -> None:
        """Write every setting, resolved."""
        write_json(self.path / "config.json", config)

    def append_metrics(self, record: dict[str, Any]) -> None:
        """Add one line to metrics.jsonl; a number that is not finite becomes null, as JSON has it."""
        with open(self.path / "metrics.jsonl", "a", encoding="utf-8") as file:
            finite = {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in record.items()}
            file.write(json.dumps(finite, allow_nan=False) + "\n")

    def write_synthetic(self, synthetic: SyntheticSet) -> None:
        """Write the latest synthetic set."""
        synthetic.save(self.path / "synthetic")

    def write_summary(self, summary: dict[str, Any]) -> None:
        """Write the results."""
        write_json(self.path / "summary.json", summary)
