"""What the command line prints of a run: its accuracies."""

from collections.abc import Sequence
from typing import Any

import click

from ddfast.data.ipc import in_words
from ddfast.run.folder import RunFolder
from ddfast.run.result import accuracy_rows


def words_of_storage(result: Any) -> str:
    """How many images per class there are, and the bytes that they take."""
    synthetic, stored = result.synthetic, RunFolder(result.path).read_config()["ipc"]
    said = "" if synthetic.parameterisation.images_per_stored == 1 else f", the storage of {in_words(stored)} as pixels"
    return f"{in_words(synthetic.ipc)} in {synthetic.bytes:,} bytes{said}"


def print_table(result: Any) -> None:
    """The accuracies of a run, where it was evaluated."""
    if not result.accuracy:
        click.echo("\nnot evaluated (num_eval 0)\n")
        return
    accuracy, full = result.accuracy, result.accuracy.get("full_data", {"epochs": "", "source": ""})
    ipc = RunFolder(result.path).read_config()["ipc"]
    count, best = in_words(ipc), accuracy.get("best", {}).get("iteration")
    random_real = f"random real images, {in_words(accuracy['random_real'].get('ipc', ipc))}"
    rows = {
        "random_real": random_real,
        "random_real_plain": f"{random_real}, not augmented",
        "random_real_labelled": f"{random_real}, labelled by experts",
        "distilled": f"distilled images, {count}",
        "averaged": f"averaged distilled images, {count}",
        "best": f"distilled images, iteration {best}, best on held-out images",
        "full_data": f"full data, {full['epochs']} epochs ({full['source']})",
    }
    rows = {key: label for key, label in rows.items() if key in accuracy}
    several = len({network for row in accuracy.values() for network in row["networks"]}) > 1
    width = max(44, 2 + max(map(len, rows.values())))
    click.echo(f"\n{'test accuracy of a network trained on':<{width}}{'mean':>8}{'std':>7}{'n':>4}")
    for row in accuracy_rows(accuracy, rows):
        name = f"{row['name']}: {row['network']}" if several else row["name"]
        click.echo(f"{name:<{width}}{row['mean']:>7.1f}%{row['std']:>7.1f}{row['n']:>4}")
    click.echo("")


def print_columns(rows: Sequence[Sequence[str]], left: int) -> None:
    """Rows of cells, each column as wide as its widest: so many of them flush left, the others right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for cells in rows:
        placed = [str.ljust if n < left else str.rjust for n in range(len(cells))]
        parts = [place(cell, width) for place, cell, width in zip(placed, cells, widths, strict=True)]
        click.echo("  ".join(parts).rstrip())


def print_transfer(table: dict[str, Any]) -> None:
    """The networks of a transfer table, what they were trained on, and the scores."""
    rows = [
        (
            row["network"],
            row["trained_on"],
            f"{row['mean']:.1f}% ± {row['std']:.1f}{' (at chance)' if row.get('at_chance') else ''}",
            str(row["n"]),
            f"{row['lr']:g}",
            f"{row['seconds']:.1f}",
            f"{row['parameters']:,}",
            f"{row['flops'] / 1e6:,.1f}",
        )
        for row in table["rows"]
    ]
    head = ("network", "trained on", "test accuracy", "n", "rate", "seconds", "parameters", "MFLOPs")
    print_columns([head, *rows], left=3)
    others = table.get("others")
    if others is not None:
        best = f"{others['best']['network']} {others['best']['mean']:.1f}%"
        click.echo(f"other networks than {table['own']}: mean {others['mean']:.1f}%, best {best}")
    for name, value in table.get("scores", {}).items():
        if isinstance(value, list):
            continue  # the confusion matrix, which the file has
        click.echo(f"{name.replace('_', ' ')}: {_score(value)}")


def _score(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{name.replace('_', ' ')} {_score(one)}" for name, one in value.items())
    return value if isinstance(value, str) else f"{value:.4g}"
