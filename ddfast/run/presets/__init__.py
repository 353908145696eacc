"""Settings found to work, as data: one TOML file per method, a table per data set and images per class."""

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from importlib.resources import files
from typing import Any

from ddfast.methods import METHODS
from ddfast.runtime.files import parse_toml
from ddfast.runtime.options import did_you_mean, options_of

WITHOUT_PRESETS = {"network": "convnet", "zca": False, "iterations": 1000}  # settings of a method that has none


@dataclass(frozen=True)
class Preset:
    """One row of a method's settings."""

    name: str  # <method>/<dataset>/ipc<n>
    dataset: str
    ipc: int
    side: int  # pixels
    classes: int
    channels: int
    settings: dict[str, Any]

    @property
    def method(self) -> str:
        """Whose settings they are."""
        return self.name.partition("/")[0]


def load_presets(method: str) -> dict[str, Preset]:
    """All presets of a method, by name: `<method>/<dataset>/ipc<n>`; none of a method that brings none.

    A file's [defaults] are under each of its rows. Its [inherit] takes the rows of another method, those of `datasets`
    or all, with [inherit.settings] over them; a row of the file itself then changes the inherited one of its name (not
    its side, classes and channels).
    """
    file = files("ddfast.run.presets").joinpath(f"{method}.toml")
    of_method = METHODS[method].presets if method in METHODS else None
    text = of_method or (file.read_text(encoding="utf-8") if file.is_file() else "")
    tables = parse_toml(text)
    defaults, inherit = tables.pop("defaults", {}), tables.pop("inherit", None)
    presets = {} if inherit is None else {preset.name: preset for preset in _inherited(method, **inherit)}
    for dataset, key, table in _rows(tables):
        name, ipc, channels = f"{method}/{dataset}/{key}", int(key.removeprefix("ipc")), table.get("channels", 3)
        under = presets.get(name) or Preset(name, dataset, ipc, table["side"], table["classes"], channels, defaults)
        presets[name] = replace(under, settings=under.settings | table[key])
    return presets


def _inherited(
    to: str, *, method: str, datasets: list[str] | None = None, settings: dict[str, Any] | None = None
) -> Iterator[Preset]:
    """The rows of `method` as those of `to`, these settings over theirs; of the method's own those that both have."""
    theirs, mine = (set(options_of(METHODS[name].Settings)) for name in (method, to))
    for preset in load_presets(method).values():
        if datasets is None or preset.dataset in datasets:
            name = preset.name.replace(method, to, 1)
            shared = {key: value for key, value in preset.settings.items() if key in mine or key not in theirs}
            yield replace(preset, name=name, settings=shared | (settings or {}))


def _rows(tables: dict[str, Any]) -> Iterator[tuple[str, str, dict[str, Any]]]:
    """Data set, ipc<n> and the table that holds it; joined tables are one row per data set."""
    for names, table in tables.items():
        for dataset in names.split():
            for key in table:
                if key.startswith("ipc"):
                    yield dataset, key, table


def choose_preset(
    method: str,
    dataset: str,
    ipc: float,
    name: str | None = None,
    *,
    side: int = 32,
    classes: int = 10,
) -> Preset:
    """The preset called `name`; None for that of (method, dataset, ipc), else the nearest.

    Nearest is the data set's own row of the nearest ipc; for a data set without rows that of the nearest side, then of
    the nearest number of classes, then of the nearest ipc, in ratios. Errors: ValueError that lists the names, for an
    unknown one.
    """
    presets = load_presets(method)
    if name is not None:
        if name not in presets:
            listed = ", ".join(presets) or f"none, for {method} has no presets"
            raise ValueError(f"preset: expected one of {listed}, got {name!r}{did_you_mean(name, presets)}")
        return presets[name]
    if not presets:
        return Preset(f"{method}/defaults", dataset, max(1, round(ipc)), side, classes, 3, WITHOUT_PRESETS)

    def distance(preset: Preset) -> tuple[bool, float, float, float]:
        pairs = ((preset.side, side), (preset.classes, classes), (preset.ipc, ipc))
        return preset.dataset != dataset, *(abs(math.log(has / wanted)) for has, wanted in pairs)

    return min(presets.values(), key=distance)
