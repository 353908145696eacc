"""The command `tune`: search settings on held-out training images."""

import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click

from ddfast.cli.commands import cli, download_option
from ddfast.cli.options import AT_LEAST_1, PATH, Command, declared, option
from ddfast.cli.printing import print_columns
from ddfast.run.config import run_options
from ddfast.runtime.options import Declared
from ddfast.tuning.begin import NOT_TUNED

SHOWN = 10  # trials in the table


def _declared() -> list[Declared]:
    """The options of `distill`, except those that tuning sets."""
    return declared(*(name for name in run_options() if name not in (*NOT_TUNED, "hold_out", "memory_budget")))


@cli.command(cls=Command, declared=_declared, takes_files=True)
@download_option
@option("--time", required=True, help="Time of the search, such as 20min or 2h.")
@option(
    "--memory", "--memory-budget", "memory_budget", help="Memory for a step: bytes, 8GiB, 0.5 or 50% of what is free."
)
@option("--output", type=PATH, default=Path("tuning"), help="Folder of the study; an existing study is continued.")
@option(
    "--hold-out",
    type=float,
    default=0.2,
    section="Data",
    help="Share of the training images on which trials are scored.",
)
@option("--trials", type=AT_LEAST_1, help="Most trials in the study.  [default: as many as fit in the time]")
def tune(**options: Any) -> None:
    """Search settings on held-out training images and write a file for `ddfast distill --config`.

    Options that you set stay fixed and are not searched. The same command in another process, or on another machine
    that shares the folder, joins the search; after a kill it continues.
    """
    import ddfast
    from ddfast.tuning.report import UNTOUCHED
    from ddfast.tuning.storage import expect_optuna

    for handler in logging.getLogger("ddfast").handlers:
        handler.addFilter(lambda record: record.name == "ddfast.tune" or record.levelno >= logging.ERROR)
    expect_optuna()
    import optuna

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    result = ddfast.tune(**options)
    click.echo("")
    print_columns(list(_table(result.rows)), left=2)
    best = result.rows[0]
    if not result.is_whole:
        click.echo(f"\nno trial finished: the best so far ran {_share(best)} of its iterations")
    click.echo(f"\n{UNTOUCHED}")
    click.echo("The best held-out accuracy is the maximum of many, and therefore slightly too high.")
    if result.picture is not None:
        click.echo(f"importance:    {result.picture}")
    click.echo(f"settings:      {result.config}")
    click.echo(f"next:          ddfast distill --config {result.config}")


def _share(row: dict[str, Any]) -> str:
    return ("a ninth", "a third", "all")[len(row["rungs"]) - 1]


def _table(rows: list[dict[str, Any]]) -> Iterator[list[str]]:
    """The best trials, and the defaults wherever they rank."""
    searched = list(rows[0]["params"])
    yield ["trial", "ended after", "held-out", "iterations", *searched]
    for place, row in enumerate(rows):
        if place < SHOWN or row["defaults"]:
            name = f"{row['trial']} (defaults)" if row["defaults"] else str(row["trial"])
            reached = "" if row["held_out"] is None else f"{row['held_out']:.1f}%"
            ended = _share(row) if row["rungs"] else row["state"][:40]
            params = [f"{value:.3g}" if isinstance(value, float) else str(value) for value in row["params"].values()]
            yield [name, ended, reached, str(row["iterations"] or ""), *params]
