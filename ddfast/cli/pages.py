"""The commands `report` and `compare`: web pages of runs."""

from pathlib import Path
from typing import Any

import click

from ddfast.cli.commands import cli
from ddfast.cli.options import PATH, Command, option


@cli.command(cls=Command)
@click.argument("run", type=PATH)
@option("--output", type=PATH, help="File of the page.  [default: report.html in the run folder]")
@option("--neighbours/--no-neighbours", default=True, help="Show the nearest training image of each distilled one.")
@option("--dataset", help="The data, if it has moved since the run.")
@option("--data-root", type=PATH, help="Where named data sets are.  [default: DDFAST_DATA, or the cache]")
def report(run: Path, **options: Any) -> None:
    """Write a run (folder RUN) as one HTML page that needs no network."""
    from ddfast.pages import report

    click.echo(f"page: {report(run, **options)}")


@cli.command(cls=Command)
@click.argument("runs", type=PATH, nargs=-1, required=True, metavar="RUN RUN …")
@option("--output", type=PATH, default=Path("compare.html"), help="File of the page.")
def compare(runs: tuple[Path, ...], output: Path) -> None:
    """Write runs side by side as one HTML page: settings that differ, curves, accuracies, images."""
    from ddfast.pages import compare

    click.echo(f"page: {compare(runs, output)}")
