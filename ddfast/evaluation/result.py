"""The accuracies of an evaluation, by network, and what is known beside them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from statistics import fmean, stdev
from typing import Any

from ddfast import networks as all_networks
from ddfast.runtime.html import html_table


@dataclass(frozen=True)
class Evaluation:
    """Test accuracies in percent, by network: one per training."""

    accuracies: dict[str, list[float]]
    rates: dict[str, float] = field(default_factory=dict)  # that the networks were trained at
    chance: float = 0.0  # percent: an accuracy up to it is no better than guessing
    records: Mapping[str, Sequence[dict[str, Any]]] = field(default_factory=dict, compare=False)  # of each training

    @property
    def mean(self) -> float:
        """Mean accuracy over all trainings of all networks."""
        return fmean(a for values in self.accuracies.values() for a in values)

    @property
    def std(self) -> float:
        """Standard deviation over the trainings (n − 1); 0 for a single one."""
        values = [a for row in self.accuracies.values() for a in row]
        return stdev(values) if len(values) > 1 else 0.0

    @property
    def n(self) -> int:
        """Number of trainings."""
        return sum(len(values) for values in self.accuracies.values())

    @property
    def at_chance(self) -> list[str]:
        """The networks that learned nothing."""
        return [name for name, values in self.accuracies.items() if fmean(values) <= self.chance]

    def of(self, network: Any) -> "Evaluation":
        """That of one network, as it was given to `evaluate`."""
        name = all_networks.name_of(network)
        rates = {name: self.rates[name]} if name in self.rates else {}
        records = {name: self.records[name]} if name in self.records else {}
        return Evaluation({name: self.accuracies[name]}, rates, self.chance, records)

    def others(self, network: Any) -> "Evaluation | None":
        """That of the networks but this one; None where there are none."""
        own = all_networks.name_of(network)
        names = [name for name in self.accuracies if name != own]
        rates = {name: self.rates[name] for name in names if name in self.rates}
        return Evaluation({name: self.accuracies[name] for name in names}, rates, self.chance) if names else None

    def summary(self) -> dict:
        """As a row of summary.json: the first network, and all by name."""
        first = next(iter(self.accuracies))
        row = {"mean": self.of(first).mean, "std": self.of(first).std, "n": self.of(first).n}
        if all("held_out" in record for record in self.records.get(first, ({},))):
            row["held_out"] = fmean(record["held_out"] for record in self.records[first])
        return {**row, "networks": {name: self._row(name) for name in self.accuracies}}

    def _repr_html_(self) -> str:
        """For notebooks: a row per network."""
        rows = []
        for name, values in self.accuracies.items():
            one, rate = self.of(name), self.rates.get(name)
            chance = " (at chance)" if name in self.at_chance else ""
            cells = (name, f"{one.mean:.1f}% ± {one.std:.1f}{chance}", str(len(values)), f"{rate:g}" if rate else "")
            rows.append(cells)
        return html_table(("network", "test accuracy", "n", "rate"), rows)

    def _row(self, name: str) -> dict[str, Any]:
        values, one = self.accuracies[name], self.of(name)
        row: dict[str, Any] = {"mean": one.mean, "std": one.std, "accuracies": values}
        if name in self.rates:
            row["lr"] = self.rates[name]
        if name in self.at_chance:
            row["at_chance"] = True
        return row
