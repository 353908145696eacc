"""The run folder: what `distill` writes, and `report` and `evaluate` read."""

import json
from pathlib import Path
from typing import Any

from ddfast.data import SyntheticSet
from ddfast.files import write_json


class RunFolder:
    """A folder for one run: config.json, metrics.jsonl, synthetic.safetensors and .json, summary.json, images.png."""

    def __init__(self, path: Path):
        self.path = path

    @classmethod
    def create(cls, path: str | Path | None) -> "RunFolder":
        """A new folder; None for the next free number under runs/. A folder that holds a run is never written to."""
        if path is None:
            runs = Path("runs")
            taken = [int(p.name) for p in runs.iterdir() if p.name.isdigit()] if runs.is_dir() else []
            path = runs / f"{max(taken, default=0) + 1:04d}"
        path = Path(path)
        if (path / "config.json").exists():
            raise FileExistsError(f"{path}: holds a run already; choose another output folder")
        path.mkdir(parents=True, exist_ok=True)
        return cls(path)

    @property
    def images_path(self) -> Path:
        """Where the picture of the distilled images goes."""
        return self.path / "images.png"

    def write_config(self, config: dict[str, Any]) -> None:
        """Write every setting, resolved."""
        write_json(self.path / "config.json", config)

    def append_metrics(self, record: dict[str, Any]) -> None:
        """Add one line to metrics.jsonl."""
        with open(self.path / "metrics.jsonl", "a", encoding="utf-8") as file:
            file.write(json.dumps(record) + "\n")

    def write_synthetic(self, synthetic: SyntheticSet) -> None:
        """Write the latest synthetic set."""
        synthetic.save(self.path / "synthetic")

    def write_summary(self, summary: dict[str, Any]) -> None:
        """Write the results."""
        write_json(self.path / "summary.json", summary)
