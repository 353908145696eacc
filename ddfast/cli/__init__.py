"""The command line: the only place that prints."""

from ddfast.cli import pages, share, studies, tools, tuning  # noqa: F401, whose commands are the group's
from ddfast.cli.commands import USELESS, cli, main

__all__ = ["USELESS", "cli", "main"]
