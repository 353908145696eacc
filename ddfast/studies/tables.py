"""What studies leave in their folder: a table as JSON, and a picture."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ddfast.runtime.files import replacing

Table = dict[str, Any]  # "study", "settings", "rows", "findings"


def save_table(table: Table, folder: Path) -> None:
    """Write `study.json`."""
    folder.mkdir(parents=True, exist_ok=True)
    with replacing(folder / "study.json") as temporary:
        temporary.write_text(json.dumps(table, indent=1) + "\n")


def save_picture(draw: Callable[[Any], None], folder: Path) -> None:
    """Write `study.png`: what `draw` puts on its axes."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 4), layout="constrained")
    axes = figure.subplots()
    draw(axes)
    axes.grid(alpha=0.3)
    folder.mkdir(parents=True, exist_ok=True)
    with replacing(folder / "study.png") as temporary:
        FigureCanvasAgg(figure).print_png(temporary)
