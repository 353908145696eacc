"""Web pages of runs, each one file that needs no network."""

from ddfast.pages.compare import compare
from ddfast.pages.report import report

__all__ = ["compare", "report"]
