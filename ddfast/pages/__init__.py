"""Web pages of runs: one file each, which needs no network."""

from ddfast.pages.compare import compare
from ddfast.pages.report import report

__all__ = ["compare", "report"]
