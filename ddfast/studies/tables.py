"""What studies leave in their folder: a table as JSON, and a picture."""

import json
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from ddfast.runtime.files import read_json, replacing, writing

TABLE = "study.json"
Table = dict[str, Any]  # "study", "settings", "rows", "findings"


def study_folder(output: str | Path, study: str, of: Mapping[str, Any]) -> Path:
    """The folder of a study, made where it is not there yet: OSError before any work where it cannot be.

    `of`: what is studied, as its table's settings say it. FileExistsError for a folder with the table of another study,
    or of something else.
    """
    folder = Path(output)
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
    if (folder / TABLE).is_file():
        there = read_json(folder / TABLE)
        if not isinstance(there, dict) or there.get("study") != study:
            what = there.get("study") if isinstance(there, dict) else "of another program"
            raise FileExistsError(f"{folder}: has the study {what}; choose another output folder")
        had = there.get("settings", {})
        for name, value in of.items():
            if had.get(name, value) != value:
                what = f"{study} of {name} {had[name]}, not {value}"
                raise FileExistsError(f"{folder}: has the study {what}; choose another output folder")
    return folder


def expect_joined(protocol: str, options: Mapping[str, Any]) -> None:
    """ValueError for what sets cannot have that are distilled apart, and joined."""
    if protocol == "recipe":
        raise ValueError("protocol: recipe is a single set's steps, which joined sets have not; give another protocol")
    if options.get("zca"):
        raise ValueError("zca: each part would have a whitening of its own; distil without")


def save_table(table: Table, folder: Path) -> None:
    """Write `study.json`; numbers that are not finite, which JSON has not, as null."""
    with replacing(folder / TABLE) as temporary:
        temporary.write_text(json.dumps(_in_json(table), indent=1, allow_nan=False) + "\n")


def _in_json(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _in_json(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [_in_json(one) for one in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def save_picture(draw: Callable[[Any], None], folder: Path, name: str = "study.png") -> None:
    """Write a picture: what `draw` puts on its axes."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 4), layout="constrained")
    axes = figure.subplots()
    draw(axes)
    axes.grid(alpha=0.3)
    with replacing(folder / name) as temporary:
        FigureCanvasAgg(figure).print_png(temporary)
