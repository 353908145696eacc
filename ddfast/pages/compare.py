"""The page that compares several runs."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ddfast.pages.curves import charts
from ddfast.pages.pictures import steps
from ddfast.pages.record import Record, read
from ddfast.pages.render import expect_place, write_page
from ddfast.pages.report import cost
from ddfast.run.result import accuracy_rows

FACTS = ("fingerprint", "test_fingerprint", "data", "preprocessing", "derived_settings", "probed", "probed_rates")


def compare(runs: Sequence[str | Path], output: str | Path = "compare.html") -> Path:
    """Write runs side by side as one HTML page: settings that differ, curves, accuracies, cost and images.

    Args:
        runs: two or more run folders.
        output: file of the page.

    Returns the page's path.
    Errors: FileNotFoundError if a folder has no run; ValueError for a damaged run, or fewer than two runs.
    """
    if isinstance(runs, str | Path) or len(runs) < 2:
        raise ValueError(f"runs: expected two or more folders, got {runs!r}")
    path = Path(output)
    expect_place(path)
    records = _named([read(run) for run in runs])
    rows = [
        row | {"name": f"{name}, {row['name']}"} for name, run in records.items() for row in accuracy_rows(run.accuracy)
    ]
    costs = {name: cost(run) for name, run in records.items()}
    notes = [(name, words) for name, run in records.items() if (words := _note(run)) is not None]
    pictures = {name: found[-1]["picture"] for name, run in records.items() if (found := steps(run))}
    write_page(
        "compare.html",
        path,
        title=f"{len(records)} runs: {', '.join(dict.fromkeys(run.title for run in records.values()))}",
        notes=notes,
        rows=rows,
        costs=costs,
        cost_names=list(dict.fromkeys(key for found in costs.values() for key in found)),
        names=list(records),
        differences=_differences(list(records.values())),
        charts=charts(records),
        images=pictures,
    )
    return path


def _named(runs: list[Record]) -> dict[str, Record]:
    """Runs by folder name, or by number and full path if two names are equal."""
    names = [run.name for run in runs]
    if len(set(names)) == len(names):
        return dict(zip(names, runs, strict=True))
    return {f"{n}. {run.path}": run for n, run in enumerate(runs, 1)}


def _note(run: Record) -> str | None:
    if not run.summary:
        return "has not finished"
    return run.summary.get("useless")


def _differences(runs: list[Record]) -> dict[str, list[Any]]:
    """Settings that differ between runs; None if a run lacks the setting."""
    names = dict.fromkeys(name for run in runs for name in run.settings if name not in FACTS)
    values = {name: [run.settings.get(name) for run in runs] for name in names}
    return {name: row for name, row in values.items() if any(value != row[0] for value in row)}
