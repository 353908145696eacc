"""Pictures of a run: its images, its curves, and thumbnails of intermediate images."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ddfast.data import SyntheticSet
from ddfast.data.sheet import sheet
from ddfast.run.curves import has_peaks, thinned
from ddfast.runtime.files import replacing

MOST_POINTS = 500  # of a curve; of more, medians are drawn too
MOST_THUMBNAILS = 24  # per run
THUMBNAIL = {"most": 100, "smallest_side": 32}  # images per thumbnail, and their smallest side in pixels


def save_images(synthetic: SyntheticSet, path: str | Path) -> None:
    """Write the synthetic images as a PNG, by class: `ddfast.data.sheet`."""
    with replacing(Path(path)) as temporary:
        sheet(synthetic).save(temporary, format="PNG")


def save_thumbnail(synthetic: SyntheticSet, folder: Path, iteration: int) -> None:
    """Write `<iteration>.webp`. If the folder has more than MOST_THUMBNAILS files, delete every other one."""
    folder.mkdir(exist_ok=True)
    with replacing(folder / f"{iteration:06d}.webp") as temporary:
        sheet(synthetic, **THUMBNAIL).save(temporary, format="WEBP", quality=85)
    numbers = sorted(folder.glob("*.webp"), key=lambda file: int(file.stem))
    if len(numbers) > MOST_THUMBNAILS:
        for file in numbers[1:-1:2]:
            file.unlink(missing_ok=True)


def save_curves(history: Sequence[dict[str, Any]], path: str | Path) -> None:
    """Write the matching loss and the learning rate over the iterations as a PNG; do nothing for an empty history.

    For many iterations, medians of neighbouring values are drawn over the values. The loss axis is logarithmic if any
    loss is more than a hundred times the median.
    """
    if not history:
        return
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 6), layout="constrained")
    iterations = [record["iteration"] for record in history]
    panels = [("loss", "loss"), ("lr", "learning rate α")][: 2 if "lr" in history[0] else 1]
    drawn = figure.subplots(len(panels), 1, sharex=True, squeeze=False)[:, 0]
    for axes, (key, label) in zip(drawn, panels, strict=True):
        values = [float("nan") if record[key] is None else record[key] for record in history]
        many = len(values) > MOST_POINTS
        axes.plot(iterations, values, linewidth=0.8, alpha=0.4 if many else 1)
        if many:
            axes.plot(*thinned(iterations, values, MOST_POINTS), color="C1")
        if key == "loss" and has_peaks(values):
            axes.set_yscale("log")
        axes.set_ylabel(label)
        axes.grid(alpha=0.3)
    axes.set_xlabel("iteration")
    with replacing(Path(path)) as temporary:
        FigureCanvasAgg(figure).print_png(temporary)
