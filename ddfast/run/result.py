"""What `distill` returns."""

from collections.abc import Mapping
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

from ddfast.data import SyntheticSet
from ddfast.runtime.html import html_table

ROWS = {
    "random_real": "random real images",
    "random_real_plain": "random real images, not augmented",
    "random_real_labelled": "random real images, labelled by experts",
    "distilled": "distilled images",
    "averaged": "averaged distilled images",
    "best": "best iteration by held-out images",
    "full_data": "full data",
}


def accuracy_rows(accuracy: Mapping[str, Any], names: Mapping[str, str] = ROWS) -> list[dict[str, Any]]:
    """Rows of `DistillResult.accuracy`, by training set and network: name, network, mean, std, n, lr, at_chance."""
    rows = []
    for key, name in names.items():
        for network, row in accuracy.get(key, {}).get("networks", {}).items():
            more = {"n": len(row["accuracies"]), "lr": row.get("lr"), "at_chance": row.get("at_chance", False)}
            rows.append({"name": name, "network": network, "mean": row["mean"], "std": row["std"], **more})
    return rows


@dataclass(frozen=True)
class DistillResult:
    """What `distill` returns."""

    synthetic: SyntheticSet
    history: list[dict[str, Any]]  # one record per iteration
    path: Path  # the run folder
    # empty with num_eval 0; distilled, averaged (with ema_decay), best (with held-out images), random_real, other
    # `baselines`, full_data: mean, std, n, and results by network
    accuracy: dict[str, dict[str, Any]]
    averaged: SyntheticSet | None = None  # with the average of the images over the iterations (ema_decay)
    useless: str | None = None  # reason and advice if the set is no better than random real images

    def _repr_html_(self) -> str:
        """Accuracies and images, for notebooks."""
        rows = [
            (row["name"], row["network"], f"{row['mean']:.1f}% ± {row['std']:.1f}", str(row["n"]))
            for row in accuracy_rows(self.accuracy)
        ]
        table = html_table(("trained on", "network", "test accuracy", "n"), rows)
        useless = "" if self.useless is None else f"<p><b>useless:</b> {escape(self.useless)}</p>"
        return f"{table}{useless}{self.synthetic._repr_html_()}<p>run: <code>{escape(str(self.path))}</code></p>"
