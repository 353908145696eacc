"""The page of one run."""

import shlex
from pathlib import Path
from typing import Any

from ddfast.pages.curves import charts
from ddfast.pages.pictures import looks, steps
from ddfast.pages.record import Record, read
from ddfast.pages.render import expect_place, write_page
from ddfast.run.result import accuracy_rows
from ddfast.runtime.forecast import words_of_time


def report(
    run: str | Path,
    output: str | Path | None = None,
    *,
    neighbours: bool = True,
    dataset: Any = None,
    data_root: str | Path | None = None,
) -> Path:
    """Write a run as one HTML page: images, accuracies, curves, cost and settings.

    Args:
        run: the folder of a run, finished or not.
        output: file of the page; None for report.html in the run folder.
        neighbours: show the nearest training image of each distilled one, which loads the data.
        dataset, data_root: the data, if it has moved since the run.

    Returns the page's path. Accuracies of other networks and scores come from `ddfast evaluate`.
    Errors: FileNotFoundError if there is no run, ValueError for a damaged one.
    """
    record = read(run)
    path = record.path / "report.html" if output is None else Path(output)
    expect_place(path)
    images, why_not = looks(record, neighbours, dataset, data_root)
    transfer, summary = record.transfer, record.summary
    write_page(
        "report.html",
        path,
        title=record.title,
        where=str(record.path),
        shell_path=record.shell_path,
        shell_config=shlex.quote(str(record.path / "config.json")),
        useless=summary.get("useless"),
        finished=bool(summary),
        done=record.metrics[-1]["iteration"] if record.metrics else 0,
        iterations=record.config.get("iterations"),
        facts=_facts(record),
        rows=accuracy_rows(record.accuracy),
        transfer=transfer.get("rows", []),
        protocol=transfer.get("protocol", ""),
        own=transfer.get("own"),
        others=transfer.get("others"),
        scores=_flat({name: v for name, v in transfer.get("scores", {}).items() if not isinstance(v, list)}),
        steps=steps(record),
        looks=images,
        why_not=why_not,
        charts=charts({record.name: record}),
        cost=cost(record),
        settings=record.settings,
    )
    return path


def cost(record: Record) -> dict[str, Any]:
    """Time, memory, versions and the size of the set."""
    found: dict[str, Any] = {"iterations": record.metrics[-1]["iteration"] if record.metrics else 0}
    seconds = [one["seconds"] for one in record.metrics]
    if seconds:
        found["time of the iterations"] = words_of_time(sum(seconds))
        found["milliseconds per iteration"] = 1000 * sum(seconds) / len(seconds)
        found["peak memory in MiB"] = max(one["peak_bytes"] for one in record.metrics) / 2**20
    if record.synthetic is not None:
        found["bytes of the images"] = f"{record.synthetic.bytes:,}"
    found["device"] = record.config.get("device", "")
    found |= {name: str(version) for name, version in record.config["versions"].items()}
    return found


def _facts(record: Record) -> list[tuple[str, str]]:
    accuracy, found = record.accuracy, []
    for key, words in (("distilled", "Distilled"), ("random_real", "Random real"), ("full_data", "Full data")):
        if key in accuracy:
            found.append((words, f"{accuracy[key]['mean']:.1f}% ± {accuracy[key]['std']:.1f}"))
    spent = cost(record)
    if "time of the iterations" in spent:
        found.append(("Iterations", f"{spent['iterations']:,} in {spent['time of the iterations']}"))
        found.append(("Peak memory", f"{spent['peak memory in MiB']:.0f} MiB"))
    if "bytes of the images" in spent:
        found.append(("Images", f"{spent['bytes of the images']} bytes"))
    return found


def _flat(scores: dict[str, Any]) -> dict[str, Any]:
    """Scores by readable name, with one entry per class or corruption."""
    flat: dict[str, Any] = {}
    for name, value in scores.items():
        words = name.replace("_", " ")
        flat |= {f"{words}: {one}": v for one, v in value.items()} if isinstance(value, dict) else {words: value}
    return flat
