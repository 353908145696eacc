"""What studies leave in their folder: a table as JSON, and a picture."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ddfast.runtime.files import replacing, writing

Table = dict[str, Any]  # "study", "settings", "rows", "findings"


def study_folder(output: str | Path) -> Path:
    """The folder of a study, made where it is not there yet: OSError before any work where it cannot be."""
    folder = Path(output)
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
    return folder


def save_table(table: Table, folder: Path) -> None:
    """Write `study.json`."""
    with replacing(folder / "study.json") as temporary:
        temporary.write_text(json.dumps(table, indent=1) + "\n")


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
