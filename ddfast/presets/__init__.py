"""Settings found to work, as data: one TOML file per method, a table per data set and images per class."""

import math
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.resources import files
from typing import Any


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


def load_presets(method: str) -> dict[str, Preset]:
    """All presets of a method, by name: `<method>/<dataset>/ipc<n>`."""
    if sys.version_info >= (3, 11):
        import tomllib
    else:
        import tomli as tomllib

    tables = tomllib.loads(files("ddfast.presets").joinpath(f"{method}.toml").read_text(encoding="utf-8"))
    return {preset.name: preset for preset in _rows(method, tables)}


def _rows(method: str, tables: dict[str, Any]) -> Iterator[Preset]:
    defaults = tables.pop("defaults")
    for names, table in tables.items():
        for dataset in names.split():
            for key, row in table.items():
                if key.startswith("ipc"):
                    ipc = int(key.removeprefix("ipc"))
                    name = f"{method}/{dataset}/{key}"
                    channels = table.get("channels", 3)
                    yield Preset(name, dataset, ipc, table["side"], table["classes"], channels, defaults | row)


def choose_preset(
    method: str,
    dataset: str,
    ipc: int,
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
            raise ValueError(f"preset: expected one of {', '.join(presets)}, got {name!r}")
        return presets[name]

    def distance(preset: Preset) -> tuple[bool, float, float, float]:
        pairs = ((preset.side, side), (preset.classes, classes), (preset.ipc, ipc))
        return preset.dataset != dataset, *(abs(math.log(has / wanted)) for has, wanted in pairs)

    return min(presets.values(), key=distance)
