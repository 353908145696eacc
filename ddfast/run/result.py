"""What `distill` returns."""

from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

from ddfast.data import SyntheticSet

ROWS = {
    "random_real": "random real images",
    "random_real_plain": "random real images, not augmented",
    "random_real_labelled": "random real images, labelled by experts",
    "distilled": "distilled images",
    "averaged": "averaged distilled images",
    "best": "best iteration by held-out images",
    "full_data": "full data",
}


@dataclass(frozen=True)
class DistillResult:
    """What `distill` returns."""

    synthetic: SyntheticSet
    history: list[dict[str, Any]]  # one record per iteration
    path: Path  # the run folder
    # distilled, averaged (with ema_decay), best (with held-out images), random_real, other `baselines`, full_data:
    # mean, std, n, and results by network
    accuracy: dict[str, dict[str, Any]]
    averaged: SyntheticSet | None = None  # with the average of the images over the iterations (ema_decay)
    useless: str | None = None  # reason and advice if the set is no better than random real images

    def _repr_html_(self) -> str:
        """Accuracies and images, for notebooks."""
        lines = []
        for key, words in ROWS.items():
            for network, row in self.accuracy.get(key, {}).get("networks", {}).items():
                cells = (words, network, f"{row['mean']:.1f}% ± {row['std']:.1f}", str(len(row["accuracies"])))
                lines.append("".join(f"<td>{escape(cell)}</td>" for cell in cells))
        head = "".join(f"<th>{name}</th>" for name in ("trained on", "network", "test accuracy", "n"))
        table = f"<table><tr>{head}</tr><tr>{'</tr><tr>'.join(lines)}</tr></table>"
        useless = "" if self.useless is None else f"<p><b>useless:</b> {escape(self.useless)}</p>"
        return f"{table}{useless}{self.synthetic._repr_html_()}<p>run: <code>{escape(str(self.path))}</code></p>"
