"""Pictures of the results: kernels' share of the bandwidth, meta-gradients' speed-up and memory, accuracy over time."""

from pathlib import Path
from typing import Any

ROWS = {"store": "all steps stored", "graph": "the same, CUDA graph", "recompute": "recomputing all"}


def draw(output: Path, parts: dict[str, dict[str, Any]]) -> list[str]:
    """Write what there are results for; the names of the files."""
    import matplotlib

    matplotlib.use("Agg")
    drawn = []
    for name, function in (("kernels", _kernels), ("meta_gradient", _meta_gradient), ("cifar", _cifar)):
        figure = function(parts[name]["lines"]) if name in parts else None
        if figure is not None:
            figure.savefig(output / f"{name}.png", dpi=120, bbox_inches="tight")
            drawn.append(f"{name}.png")
    return drawn


def _kernels(lines: list[dict]):
    from matplotlib.figure import Figure

    rows = [
        line for line in lines if "us" in line and "flops_per_second" not in line and line["precision"] == "float32"
    ]
    if not rows:
        return None
    figure = Figure(figsize=(8, 0.22 * len(rows) + 1))
    axes = figure.add_subplot()
    axes.barh(
        [f"{line['name']}, {line['size']}" for line in rows], [line.get("of_peak", line["of_copy"]) for line in rows]
    )
    axes.invert_yaxis()
    axes.tick_params(labelsize=7)
    axes.set_xlabel("share of the maker's bandwidth" if "of_peak" in rows[0] else "share of a copy's bandwidth")
    return figure


def _meta_gradient(lines: list[dict]):
    from matplotlib.figure import Figure

    rows = [line for line in lines if line.get("precision") == "default" and line.get("row") in ROWS]
    if not any("speed_up" in line for line in rows):
        return None
    settings = list(dict.fromkeys(line["name"] for line in rows))
    figure = Figure(figsize=(11, 0.6 * len(settings) + 1.5))
    for at, (key, words) in enumerate((("speed_up", "times as fast as eager"), ("of_memory", "of eager's memory"))):
        axes = figure.add_subplot(1, 2, at + 1)
        for offset, (row, name) in enumerate(ROWS.items()):
            found = {line["name"]: line[key] for line in rows if line["row"] == row and key in line}
            places = [settings.index(setting) + 0.25 * (offset - 1) for setting in found]
            if found:
                axes.barh(places, list(found.values()), height=0.22, label=name)
        axes.set_yticks(range(len(settings)), settings if at == 0 else [""] * len(settings), fontsize=7)
        axes.invert_yaxis()
        axes.set_xlabel(words)
    axes.legend(fontsize=7)
    return figure


def _cifar(lines: list[dict]):
    from matplotlib.figure import Figure

    points = [(line["seconds"], line["accuracy"]) for line in lines if line["name"] == "evaluation"]
    result = [line for line in lines if line["name"] == "result"]
    points += [(line["seconds"], line["accuracy"]["distilled"][0]) for line in result]
    if not points:
        return None
    figure = Figure(figsize=(6, 4))
    axes = figure.add_subplot()
    axes.plot(*zip(*points, strict=True), marker="o", label="distilled, 1 image per class")
    for line in result:
        axes.axhline(line["accuracy"]["random_real"][0], linestyle=":", label="random real images")
    axes.set_xlabel("seconds from raw data")
    axes.set_ylabel("test accuracy, %")
    axes.legend()
    return figure
