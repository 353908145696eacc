"""The command `share`: upload a set to the Hugging Face Hub."""

from pathlib import Path
from typing import Any

import click

from ddfast.cli.commands import cli
from ddfast.cli.options import PATH, Command, option


@cli.command(cls=Command)
@click.argument("synthetic", type=PATH)
@click.argument("repo_id")
@option("--licence", "--license", "licence", help="Licence of the original data.  [default: looked up by its name]")
@option("--private", is_flag=True, help="Make the repository private.")
@option("--token", help="Access token.  [default: that of `hf auth login`]")
@option("--folder", type=PATH, help="Write the files to this folder instead of uploading them.")
def share(synthetic: Path, repo_id: str, folder: Path | None, licence: Any, **options: Any) -> None:
    """Upload SYNTHETIC, a run folder or a set's file, to REPO_ID (USER/NAME) on the Hugging Face Hub, with a card."""
    from ddfast.data import SyntheticSet
    from ddfast.data.hub import push, write_repository

    run = synthetic if synthetic.is_dir() else None
    loaded = SyntheticSet.load(synthetic if run is None else run / "synthetic")
    if folder is not None:
        write_repository(loaded, folder, repo_id, run=run, licence=licence)
        click.echo(f"written, not uploaded: {folder}")
    else:
        click.echo(f"uploaded: {push(loaded, repo_id, run=run, licence=licence, **options)}")
