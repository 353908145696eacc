"""Conversion of files whose format is recognised, to a format that is named."""

import logging
from collections.abc import Callable
from dataclasses import fields
from functools import partial
from pathlib import Path
from typing import Any

from ddfast.compat import dc, idc
from ddfast.compat.arrays import SUFFIXES, read_arrays, write_arrays
from ddfast.compat.dc import experiments, read_dc, write_dc
from ddfast.compat.dd_ranking import read_dd_ranking, write_dd_ranking
from ddfast.compat.idc import read_idc, write_idc
from ddfast.compat.mtt import read_mtt, write_mtt
from ddfast.compat.placing import placing
from ddfast.compat.png import read_png, write_png
from ddfast.compat.recognise import EXPERTS, EXPERTS_OF_OTHERS, OWN, SET, Found, find, set_of
from ddfast.compat.replay_buffers import read_replay_buffers, write_replay_buffers
from ddfast.compat.state_dicts import read_state_dicts, write_state_dict
from ddfast.compat.tensors import Use
from ddfast.compat.torch_files import load
from ddfast.data import READING, Dataset, SyntheticSet, known_name, load_dataset, set_of_release
from ddfast.experts import TrajectoryStore
from ddfast.runtime.arguments import takes_old_names

log = logging.getLogger("ddfast")

READERS: dict[str, Callable[..., SyntheticSet]] = {
    "mtt": read_mtt,
    "dc": read_dc,
    "idc": read_idc,
    "dd-ranking": read_dd_ranking,
    **dict.fromkeys(SUFFIXES, read_arrays),
    "png": read_png,
}
WRITERS: dict[str, Callable[..., Any]] = {
    "mtt": write_mtt,
    "dc": write_dc,
    "idc": write_idc,
    "dd-ranking": write_dd_ranking,
    **{format: partial(write_arrays, format=format) for format in SUFFIXES},
    "png": write_png,
}
EXPERT_READERS = {"replay-buffer": read_replay_buffers, "state-dict": read_state_dicts}
FORMATS = (OWN, *EXPERT_READERS, *READERS)

DATA = {"dataset", "data_root", "image_size", "resize", "zca", "preprocessing", "download", *READING}
TRAINING = {"train_lr", "mom", "l2", "batch_train", "dsa_strategy", "optimizer", "rho", "alpha", "schedule"}
USE = {field.name for field in fields(Use)}
OF_EXPERTS, OF_SET = DATA | TRAINING | {"network", "check"}, DATA | USE
READING = {  # the options that each source takes
    EXPERTS: DATA - {"zca", "preprocessing"},
    SET: set(),
    **dict.fromkeys(EXPERT_READERS, OF_EXPERTS),
    **dict.fromkeys(READERS, OF_SET),
    "dc": OF_SET | {"experiment"},
    "idc": OF_SET | {"factor"},
    "png": OF_SET - {"labels", "values"},
}
WRITING = {  # and each format
    "replay-buffer": {"per_file"},
    "state-dict": {"expert", "epoch"},
    **{format: {"labels"} for format in WRITERS if format != "png"},
}
NEVER_WHITENED = ("dc", "idc", "png")  # unless it is said: their files hold pixels, or their code has no whitening
HINTS = {"dc": dc.hints, "idc": idc.hints}
ALL = "all"


def recognise(path: str | Path) -> str:
    """What a file or a folder is: one of READING.

    Errors: FileNotFoundError where there is nothing; ValueError for nothing known, or for several things in a folder.
    """
    return find(path).kind


@takes_old_names(root="data_root", lr_teacher="train_lr")
def convert(
    source: str | Path,
    output: str | Path,
    format: str | None = None,
    *,
    source_format: str | None = None,
    preset: dict[str, Any] | None = None,
    **options: Any,
) -> Path:
    """Convert what `source` is recognised as to a format; options that are None are not given.

    Args:
        source: a file or folder of one of FORMATS, a run folder, or a synthetic set's path.
        output: the folder or file that is written; of a synthetic set of ddfast the path without an ending.
        format: one of FORMATS; None for ddfast's own, where the source is not.
        source_format: what the source is taken for, one of FORMATS; None to recognise it.
        preset: settings of a preset, of which network and zca count where the source needs them and they are not given.
        options: dataset and the options of load_dataset; network, check and those of
            ExpertTraining: of read_replay_buffers; the fields of Use: of all readers of sets; experiment: of read_dc,
            or "all", for a set each in the folder `output`; factor: of read_idc; per_file: of write_replay_buffers;
            expert, epoch: of write_state_dict.

    Returns: what was written, the folder, the file or the set's path.
    Errors: OSError or ValueError of one sentence; FileExistsError where `output` holds something else.
    """
    source, output = Path(source), Path(output)
    found = find(source, source_format)
    kind = found.kind
    given = {name: value for name, value in options.items() if value is not None}
    if format is None and kind == EXPERTS and given.keys() & WRITING["state-dict"]:
        format = "state-dict"
    to = _target(found, source, format)
    for name in given:
        if name not in READING[kind] | WRITING.get(to, set()):
            raise ValueError(f"{name}: has no meaning in a conversion of {kind} to {to}")
    given = _only(preset or {}, {"network", "zca"} & READING[kind]) | _hinted(found, given) | given
    if kind == EXPERTS:
        store = TrajectoryStore(found.path)
        data = _data(given, kind, store.settings.get("dataset"))
        write = write_replay_buffers if to == "replay-buffer" else write_state_dict
        write(store, output, data, **_only(given, WRITING[to]))
    elif kind in EXPERT_READERS:
        data, training = _data(given, kind), _only(given, TRAINING)
        training = {"lr_teacher" if name == "train_lr" else name: value for name, value in training.items()}
        read = EXPERT_READERS[kind]
        read(found.path, output, data, **_only(given, {"network", "check"}), training=training)
    elif given.get("experiment") == ALL:
        for number in range(len(experiments(load(found.path)) or ())):
            _convert_set(found, output / f"experiment_{number}", to, given | {"experiment": number})
    else:
        _convert_set(found, output, to, given)
    return output


def _target(found: Found, source: Path, format: str | None) -> str:
    """The format that is written; ValueError where it is not what the source can become."""
    kind = found.kind
    now = OWN if kind in (EXPERTS, SET) else kind
    to = OWN if format is None and now != OWN else format
    if kind == EXPERTS:
        possible = EXPERTS_OF_OTHERS
    elif kind in EXPERT_READERS:
        possible = (OWN,)
    else:
        possible = tuple(name for name in (OWN, *READERS) if name != now)
    if to not in possible:
        got = "say which" if to is None else f"got {to}"
        raise ValueError(f"format: {source} is {kind}, which can become {', '.join(possible)}; {got}")
    return to


def _hinted(found: Found, given: dict[str, Any]) -> dict[str, Any]:
    """The options that are not given, and that names or files beside the source say; a line of the log says which."""
    hints = HINTS.get(found.kind, lambda path: {})(found.path)
    hints = {name: value for name, value in hints.items() if name not in given}
    if "dataset" in hints and not known_name(hints["dataset"]):
        del hints["dataset"]
    if hints:
        log.info("%s: %s, as its name or the arguments beside it say", found.path, _words(hints))
    return hints


def _convert_set(found: Found, output: Path, to: str, given: dict[str, Any]) -> None:
    synthetic = _read_set(found, given)
    if to == OWN:
        _save_set(synthetic, output)
    else:
        WRITERS[to](synthetic, output, **_only(given, WRITING.get(to, set()) if found.kind == SET else set()))


def _read_set(found: Found, given: dict[str, Any]) -> SyntheticSet:
    if found.kind == SET:
        return SyntheticSet.load(set_of(found.path))
    made = READERS[found.kind](found.path, _data(given, found.kind), **_only(given, READING[found.kind] - DATA))
    if made.network is None:
        log.info(
            "%s: the files do not say which network this was made for; pass --network to record it (else evaluation "
            "uses convnet)",
            found.path,
        )
    return made


def _data(given: dict[str, Any], kind: str, recorded: str | None = None) -> Dataset:
    """The data set that is given or recorded, preprocessed as it is given."""
    options = _only(given, DATA)
    dataset = options.pop("dataset", set_of_release(recorded or ""))
    if dataset is None:
        raise ValueError("dataset: expected the data set that this was made from; no file records it")
    if not {"zca", "preprocessing"} & set(options) and kind not in (EXPERTS, *NEVER_WHITENED):
        raise ValueError("zca: expected True or False: whether this was made with whitened images; no file records it")
    return load_dataset(dataset, **options)


def _save_set(synthetic: SyntheticSet, output: Path) -> None:
    if output.is_dir():
        raise FileExistsError(f"{output}: is a folder; name the set that is written, such as {output / 'synthetic'}")
    with placing(output.parent, alone=False) as folder:
        synthetic.save(folder / output.name)


def _only(given: dict[str, Any], names: set[str]) -> dict[str, Any]:
    return {name: value for name, value in given.items() if name in names}


def _words(options: dict[str, Any]) -> str:
    return ", ".join(f"{name} {value}" for name, value in options.items())
