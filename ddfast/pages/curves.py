"""Curves over the iterations, as the page's charts take them."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from ddfast.pages.record import Record

MOST_POINTS = 1000  # of a curve; of more, the median of each group of neighbours
MOST_ROWS = 25  # of the table beside a chart
PEAKS = 100.0  # a loss that is so many times its median is drawn on a logarithmic axis

Curve = tuple[Sequence[float], Sequence[float | None]]  # iterations and values; None where nothing was finite
CURVES = {  # records of metrics.jsonl, and what is shown of them
    "loss": ("Loss", "loss", 1.0),
    "lr": ("Learned rate", "learning rate α", 1.0),
    "peak_bytes": ("Memory", "peak memory in MiB", 2.0**-20),
    "seconds": ("Time", "seconds per iteration", 1.0),
}


def charts(runs: Mapping[str, Record]) -> list[dict[str, Any]]:
    """The charts of one run or several: id, title, unit, x, series of labels, values and colours, and whether to begin
    with a logarithmic axis."""
    found = []
    for key, (title, unit, factor) in CURVES.items():
        lines = {name: _of_metrics(run, key, factor) for name, run in runs.items()}
        found.append(_chart(key, title, unit, {name: line for name, line in lines.items() if line is not None}))
    lines = {name: line for name, run in runs.items() if (line := _of_evaluations(run)) is not None}
    found.append(_chart("accuracy", "Accuracy on the way", "test accuracy in %", lines))
    colours = {name: n for n, name in enumerate(runs)}  # a run has one in all charts
    for line in (line for chart in found for line in chart["series"]):
        line["colour"] = colours[line["label"]]
    return [chart for chart in found if chart["series"]]


def _of_metrics(run: Record, key: str, factor: float) -> Curve | None:
    records = [record for record in run.metrics if key in record]
    values = torch.tensor([math.nan if record[key] is None else factor * record[key] for record in records])
    if not len(records) or not values.isfinite().any():
        return None
    iterations = torch.tensor([float(record["iteration"]) for record in records])
    size = -(-len(records) // MOST_POINTS)
    middle = [float(part[len(part) // 2]) for part in iterations.split(size)]
    medians = [float(part.nanmedian()) for part in values.split(size)]
    return middle, [value if math.isfinite(value) else None for value in medians]


def _of_evaluations(run: Record) -> Curve | None:
    points = [(record["iteration"], record["mean"]) for record in run.evaluations]
    if not points:
        return None
    if run.summary:
        points.append((run.summary["iterations"], run.summary["accuracy"]["distilled"]["mean"]))
    iterations, values = zip(*points, strict=True)
    return [float(n) for n in iterations], list(values)


def _chart(key: str, title: str, unit: str, lines: Mapping[str, Curve]) -> dict[str, Any]:
    x = sorted({n for iterations, _ in lines.values() for n in iterations})
    series = []
    for name, (iterations, values) in lines.items():
        at = dict(zip(iterations, values, strict=True))
        series.append({"label": name, "values": [at.get(n) for n in x]})
    finite = torch.tensor([v for line in series for v in line["values"] if v is not None])
    peaked = len(finite) > 0 and bool(finite.min() > 0) and bool(finite.max() > PEAKS * finite.median())
    places = range(0, len(x), -(-len(x) // MOST_ROWS)) if x else range(0)
    rows = [[x[n], *(line["values"][n] for line in series)] for n in places]
    return {"id": key, "title": title, "unit": unit, "x": x, "series": series, "log": peaked, "rows": rows}
