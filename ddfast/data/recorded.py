"""The preprocessing that a run, its experts or a synthetic set recorded."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ddfast.data.preprocessing import Preprocessing
from ddfast.data.synthetic import SyntheticSet
from ddfast.runtime.files import read_json

EXPECTED = "a run, experts, a synthetic set, or a .json file that has mean and std"


def recorded_preprocessing(source: Any) -> Preprocessing:
    """That of a Preprocessing, of an object that has one, of a mapping as JSON has it, or of what lies at a path: the
    folder of a run or of experts, a synthetic set, or a .json file.

    Errors: FileNotFoundError, ValueError or TypeError that names what was given.
    """
    where = f"preprocessing: {source}" if isinstance(source, str | Path) else "preprocessing"
    if isinstance(source, str | Path):
        source = _read(Path(source).expanduser())
    source = getattr(source, "preprocessing", source)
    if isinstance(source, Preprocessing):
        return source
    if not isinstance(source, Mapping):
        raise TypeError(f"preprocessing: expected {EXPECTED}, got {type(source).__name__}")
    for name in ("settings", "preprocessing"):  # experts have theirs in their settings
        source = source[name] if isinstance(source.get(name), Mapping) else source
    try:
        return Preprocessing.described(source)
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        why = f"{error} is missing" if isinstance(error, KeyError) else str(error)
        raise ValueError(f"{where}: not a description of a preprocessing: {why}") from None


def _read(path: Path) -> Any:
    """What a file or a folder says."""
    said_in = next((path / name for name in ("config.json", "experts.json") if (path / name).is_file()), path)
    synthetic = path / "synthetic" if path.is_dir() else path
    if said_in == path and SyntheticSet.is_at(synthetic):
        return SyntheticSet.load(synthetic)
    if not said_in.is_file():
        raise FileNotFoundError(f"preprocessing: expected {EXPECTED}, found none at {path}")
    return read_json(said_in)
