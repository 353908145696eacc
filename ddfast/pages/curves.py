"""Curves over the iterations, as data for the page's charts."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from ddfast.pages.record import Record
from ddfast.run.curves import has_peaks, thinned

MOST_POINTS = 1000  # of a curve; longer ones become medians of neighbouring values
MOST_ROWS = 25  # of the table below a chart

Curve = tuple[Sequence[float], Sequence[float | None]]  # iterations and values; None if not finite
CURVES = {  # keys of metrics.jsonl: title, unit and factor
    "loss": ("Loss", "loss", 1.0),
    "lr": ("Learned rate", "learning rate α", 1.0),
    "peak_bytes": ("Memory", "peak memory in MiB", 2.0**-20),
    "seconds": ("Time", "seconds per iteration", 1.0),
}


def charts(runs: Mapping[str, Record]) -> list[dict[str, Any]]:
    """The charts of one or more runs: id, title, unit, x, series of labels, values and colours, whether the axis starts
    logarithmic, and rows of the table."""
    found = []
    for key, (title, unit, factor) in CURVES.items():
        lines = {name: _of_metrics(run, key, factor) for name, run in runs.items()}
        found.append(_chart(key, title, unit, {name: line for name, line in lines.items() if line is not None}))
    lines = {name: line for name, run in runs.items() if (line := _of_evaluations(run)) is not None}
    found.append(_chart("accuracy", "Accuracy on the way", "test accuracy in %", lines))
    colours = {name: n for n, name in enumerate(runs)}  # the same in all charts
    for line in (line for chart in found for line in chart["series"]):
        line["colour"] = colours[line["label"]]
    return [chart for chart in found if chart["series"]]


def _of_metrics(run: Record, key: str, factor: float) -> Curve | None:
    records = [record for record in run.metrics if key in record]
    values = [None if record[key] is None else factor * record[key] for record in records]
    middles, medians = thinned([record["iteration"] for record in records], values, MOST_POINTS)
    found = [value if math.isfinite(value) else None for value in medians]
    return None if all(value is None for value in found) else (middles, found)


def _of_evaluations(run: Record) -> Curve | None:
    points = [(record["iteration"], record["mean"]) for record in run.evaluations]
    if not points:
        return None
    if run.summary.get("accuracy"):
        points.append((run.summary["iterations"], run.summary["accuracy"]["distilled"]["mean"]))
    iterations, values = zip(*points, strict=True)
    return [float(n) for n in iterations], list(values)


def _chart(key: str, title: str, unit: str, lines: Mapping[str, Curve]) -> dict[str, Any]:
    x = sorted({n for iterations, _ in lines.values() for n in iterations})
    series = []
    for name, (iterations, values) in lines.items():
        at = dict(zip(iterations, values, strict=True))
        series.append({"label": name, "values": [at.get(n) for n in x]})
    peaked = key == "loss" and has_peaks([value for line in series for value in line["values"]])  # it has a switch
    places = range(0, len(x), -(-len(x) // MOST_ROWS)) if x else range(0)
    rows = [[x[n], *(line["values"][n] for line in series)] for n in places]
    return {"id": key, "title": title, "unit": unit, "x": x, "series": series, "log": peaked, "rows": rows}
