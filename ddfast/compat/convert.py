"""Conversion of files whose format is recognised, to a format that is named."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from ddfast.compat.dd_ranking import NAMES, read_dd_ranking, write_dd_ranking
from ddfast.compat.mtt import images_file, read_mtt, write_mtt
from ddfast.compat.placing import placing
from ddfast.compat.png import picture_files, read_png, write_png
from ddfast.compat.replay_buffers import BUFFER, read_replay_buffers, write_replay_buffers
from ddfast.data import Dataset, SyntheticSet, load_dataset, set_of_release
from ddfast.experts import TrajectoryStore

OWN = "ddfast"
EXPERTS, SET = "ddfast's experts", "ddfast's synthetic set"  # what can be converted, beside FORMATS
FORMATS = (OWN, "replay-buffer", "mtt", "dd-ranking", "png")
READERS: dict[str, Callable[..., SyntheticSet]] = {"mtt": read_mtt, "dd-ranking": read_dd_ranking, "png": read_png}
WRITERS: dict[str, Callable[..., Any]] = {"mtt": write_mtt, "dd-ranking": write_dd_ranking, "png": write_png}

DATA = {"dataset", "root", "image_size", "resize", "zca", "download", "test_folder", "value_range", "skip_unreadable"}
TRAINING = {"lr_teacher", "mom", "l2", "batch_train", "dsa_strategy", "optimizer", "rho", "alpha", "schedule"}
SET_OPTIONS = {"lr", "dsa_strategy", "canvas"}
READING = {  # the options that each source takes
    EXPERTS: DATA - {"zca"},
    SET: set(),
    "replay-buffer": DATA | TRAINING | {"network"},
    "mtt": DATA | SET_OPTIONS | {"labels"},
    "dd-ranking": DATA | SET_OPTIONS | {"labels"},
    "png": DATA | SET_OPTIONS,
}
WRITING = {"replay-buffer": {"per_file"}, "mtt": {"labels"}, "dd-ranking": {"labels"}}  # and each format


def recognise(path: str | Path) -> str:
    """What a file or a folder is: one of READING.

    Errors: FileNotFoundError where there is nothing; ValueError for nothing known, or for several things in a folder.
    """
    path = Path(path)
    if not path.exists() and not _set_of(path):
        raise FileNotFoundError(f"{path}: no such file or folder")
    if not path.is_dir():
        if _set_of(path):
            return SET
        if path.suffix != ".pt":
            raise ValueError(f"{path}: expected a folder, a .pt file or a set of ddfast")
        return "dd-ranking" if path.name == NAMES[0] else "mtt" if images_file(path) else "replay-buffer"
    of_folder = {
        EXPERTS: (path / "experts.json").is_file(),
        SET: bool(_set_of(path)),
        "replay-buffer": any(BUFFER.fullmatch(file.name) for file in path.iterdir()),
        "mtt": images_file(path) is not None,
        "dd-ranking": (path / NAMES[0]).is_file(),
    }
    found = [name for name, is_there in of_folder.items() if is_there] or ["png"] * bool(picture_files(path))
    if len(found) != 1:
        raise ValueError(f"{path}: expected files of one known format, got {' and '.join(found) or 'none'}")
    return found[0]


def convert(
    source: str | Path,
    output: str | Path,
    format: str | None = None,
    *,
    preset: dict[str, Any] | None = None,
    **options: Any,
) -> Path:
    """Convert what `source` is recognised as to a format; options that are None are not given.

    Args:
        source: a file or folder of one of FORMATS, a run folder, or a synthetic set's path.
        output: the folder that is written; of a synthetic set of ddfast the path without an ending.
        format: one of FORMATS; None for ddfast's own, where the source is not.
        preset: settings of a preset, of which network and zca count where the source needs them and they are not given.
        options: dataset and the options of load_dataset; network and those of ExpertTraining:
            of read_replay_buffers; lr, labels, dsa_strategy, canvas: of read_mtt; per_file: of write_replay_buffers.

    Returns: what was written, the folder or the set's path.
    Errors: OSError or ValueError of one sentence; FileExistsError where `output` holds something else.
    """
    source, output = Path(source), Path(output)
    kind = recognise(source)
    given = {name: value for name, value in options.items() if value is not None}
    now = OWN if kind in (EXPERTS, SET) else kind
    to = OWN if format is None and now != OWN else format
    of_experts = (OWN, "replay-buffer")
    possible = (
        of_experts if kind in (EXPERTS, "replay-buffer") else [name for name in FORMATS if name != "replay-buffer"]
    )
    possible = [name for name in possible if name != now]
    if to not in possible:
        got = "say which" if to is None else f"got {to}"
        raise ValueError(f"format: {source} is {kind}, which can become {', '.join(possible)}; {got}")
    for name in given:
        if name not in READING[kind] | WRITING.get(to, set()):
            raise ValueError(f"{name}: has no meaning in a conversion of {kind} to {to}")
    given = _only(preset or {}, {"network", "zca"} & READING[kind]) | given
    if kind == EXPERTS:
        store = TrajectoryStore(source)
        data = _data(given, kind, store.settings.get("dataset"))
        write_replay_buffers(store, output, data, **_only(given, WRITING[to]))
    elif kind == "replay-buffer":
        data, training = _data(given, kind), _only(given, TRAINING)
        read_replay_buffers(source, output, data, **_only(given, {"network"}), training=training)
    else:
        synthetic = _read_set(source, kind, given)
        if to == OWN:
            _save_set(synthetic, output)
        else:
            WRITERS[to](synthetic, output, **_only(given, WRITING.get(to, set())))
    return output


def _read_set(source: Path, kind: str, given: dict[str, Any]) -> SyntheticSet:
    if kind == SET:
        return SyntheticSet.load(_set_of(source))
    return READERS[kind](source, _data(given, kind), **_only(given, READING[kind] - DATA))


def _data(given: dict[str, Any], kind: str, recorded: str | None = None) -> Dataset:
    """The data set that is given or recorded, preprocessed as it is given."""
    options = _only(given, DATA)
    dataset = options.pop("dataset", set_of_release(recorded or ""))
    if dataset is None:
        raise ValueError("dataset: say on which data set this was made; no file tells it")
    if "zca" not in options and kind not in (EXPERTS, "png"):
        raise ValueError("zca: say whether it was made with whitened images or not; no file tells it")
    return load_dataset(dataset, **options)


def _save_set(synthetic: SyntheticSet, output: Path) -> None:
    if output.is_dir():
        raise FileExistsError(f"{output}: is a folder; name the set that is written, such as {output / 'synthetic'}")
    with placing(output.parent, alone=False) as folder:
        synthetic.save(folder / output.name)


def _set_of(path: Path) -> Path | None:
    """The synthetic set that a run folder or a path means; None for none."""
    path = path / "synthetic" if path.is_dir() else path
    name = str(path).removesuffix(".safetensors").removesuffix(".json")
    return path if Path(f"{name}.json").is_file() or Path(f"{name}.safetensors").is_file() else None


def _only(given: dict[str, Any], names: set[str]) -> dict[str, Any]:
    return {name: value for name, value in given.items() if name in names}
