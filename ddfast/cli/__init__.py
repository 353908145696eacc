"""The command line: the only place that prints."""

from ddfast.cli.commands import USELESS, cli, main

__all__ = ["USELESS", "cli", "main"]
