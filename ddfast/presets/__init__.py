"""Settings found to work, as data: one TOML file per method, a table per data set and images per class."""

import sys
from importlib.resources import files
from typing import Any


def load_presets(method: str) -> dict[str, dict[str, Any]]:
    """All presets of a method, by name: `<method>/<dataset>/ipc<n>`."""
    if sys.version_info >= (3, 11):
        import tomllib
    else:
        import tomli as tomllib

    tables = tomllib.loads(files("ddfast.presets").joinpath(f"{method}.toml").read_text(encoding="utf-8"))
    return {f"{method}/{dataset}/{ipc}": row for dataset, rows in tables.items() for ipc, row in rows.items()}


def choose_preset(method: str, dataset: str, ipc: int, name: str | None = None) -> tuple[str, dict[str, Any]]:
    """Name and settings of the preset called `name`; None for that of (method, dataset, ipc), or else the nearest ipc.

    Errors: ValueError that lists the names, for an unknown one.
    """
    presets = load_presets(method)
    if name is not None:
        if name not in presets:
            raise ValueError(f"preset: expected one of {', '.join(presets)}, got {name!r}")
        return name, presets[name]

    def distance(preset: str) -> tuple[bool, int]:
        _, row_dataset, row_ipc = preset.split("/")
        return row_dataset != dataset, abs(int(row_ipc.removeprefix("ipc")) - ipc)

    nearest = min(presets, key=distance)
    return nearest, presets[nearest]
