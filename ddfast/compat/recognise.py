"""What a file or folder of others is: told by what it holds, not by what it is called."""

import logging
import re
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from ddfast.compat import arrays, dc, state_dicts
from ddfast.compat.dd_ranking import NAMES
from ddfast.compat.mtt import images_file
from ddfast.compat.png import picture_files
from ddfast.compat.replay_buffers import BUFFER, is_buffer
from ddfast.compat.torch_files import load
from ddfast.runtime.files import METADATA

log = logging.getLogger("ddfast")

OWN = "ddfast"
EXPERTS, SET = "ddfast's experts", "ddfast's synthetic set"
TORCH = (".pt", ".pth", ".pkl", ".tar", ".ckpt", ".bin")
SETS_OF_OTHERS = ("mtt", "dc", "idc", "dd-ranking", "npz", "safetensors", "tensors", "png")
EXPERTS_OF_OTHERS = ("replay-buffer", "state-dict")
NUMBERED = re.compile(r"data(?:_(\d+|init|best))?\.pt")  # of IDC's and NCFM's code
LONG = 6  # entries of a file that are named


@dataclass(frozen=True)
class Found:
    """What is there: EXPERTS, SET, or one of the formats of others; and the file or folder to be read."""

    kind: str
    path: Path


def find(path: str | Path, source_format: str | None = None) -> Found:
    """What `path` is.

    source_format: take it for this format, one of SETS_OF_OTHERS or EXPERTS_OF_OTHERS; None to recognise it.

    Errors: FileNotFoundError where there is nothing; ValueError that says what is in it for what is not known, or that
    names all readings of what can be read in several ways.
    """
    path = Path(path)
    if set_of(path) is None and not path.exists():
        raise FileNotFoundError(f"{path}: no such file or folder")
    if source_format is not None:
        return Found(source_format, _file_of(path, source_format))
    if not path.is_dir():
        return Found(SET, path) if set_of(path) else Found(_kind_of_file(path), path)
    return _of_folder(path)


def set_of(path: Path) -> Path | None:
    """The synthetic set of ddfast that a run folder or a path means; None for none."""
    path = path / "synthetic" if path.is_dir() else path
    stem = str(path).removesuffix(".safetensors").removesuffix(".json")
    if Path(f"{stem}.json").is_file():
        return path
    tensors = Path(f"{stem}.safetensors")
    return path if tensors.is_file() and (path.suffix != ".safetensors" or _is_ours(tensors)) else None


def _is_ours(path: Path) -> bool:
    """Whether a file of safetensors is a set of ddfast; damaged ones are said to be where they are read."""
    try:
        content = arrays.content_of(path)
    except ValueError:
        return True
    return METADATA in content


def _of_folder(path: Path) -> Found:
    found = [Found(EXPERTS, path)] if (path / "experts.json").is_file() else []
    found += [Found(SET, path)] if set_of(path) else []
    entries = sorted(path.iterdir())
    found += [Found("replay-buffer", path)] if any(BUFFER.fullmatch(entry.name) for entry in entries) else []
    found += [Found("mtt", path)] if images_file(path) is not None else []
    found += [Found("dd-ranking", path)] if (path / NAMES[0]).is_file() else []
    if not found:
        found = _of_files(path, [entry for entry in entries if entry.suffix in (*TORCH, ".npz", ".safetensors")])
    if not found and state_dicts.folders(path):
        found = [Found("state-dict", path)]
    if not found and picture_files(path):
        found = [Found("png", path)]
    if len(found) != 1:
        inside = ", ".join(entry.name for entry in entries[:LONG]) + " …" * (len(entries) > LONG)
        raise ValueError(
            f"{path}: expected files of one known format, got {' and '.join(one.kind for one in found) or 'none'} "
            f"({inside or 'an empty folder'}); name a file in it, or say its format with --from: {_formats()}"
        )
    return found[0]


def _of_files(folder: Path, files: list[Path]) -> list[Found]:
    """What a folder of files is that have no names of their own: a single set or buffer, or one state dict an epoch."""
    kinds, unknown = {}, {}
    for file in files:
        try:
            kinds[file] = _kind_of_file(file)
        except ValueError as error:
            unknown[file] = error
    if unknown and not kinds:
        raise next(iter(unknown.values()))
    if unknown:
        log.info("%s: skipped, unknown format: %s", folder, ", ".join(file.name for file in unknown))
    if kinds and set(kinds.values()) == {"state-dict"}:
        if unknown:  # an epoch that cannot be read would be missing from the trajectory
            raise next(iter(unknown.values()))
        return [Found("state-dict", folder)]
    if len(kinds) > 1 and set(kinds.values()) == {"idc"} and all(NUMBERED.fullmatch(file.name) for file in kinds):
        return [Found("idc", max(kinds, key=_number))]
    return [Found(kind, file) for file, kind in kinds.items()]


def _number(path: Path) -> int:
    """That of data_<n>.pt; of data_init.pt, before the first, −1; data.pt and data_best.pt are beyond all."""
    tag = NUMBERED.fullmatch(path.name)[1]
    return int(tag) if tag and tag.isdigit() else -1 if tag == "init" else sys.maxsize


def _kind_of_file(path: Path) -> str:
    """The format of a file; ValueError that says what it holds where it is none."""
    if path.suffix == ".npz" or path.suffix == ".safetensors":
        content = arrays.content_of(path)
        if arrays.names_of(content):
            return path.suffix[1:]
        if path.suffix == ".safetensors" and state_dicts.is_state_dict(content):
            return "state-dict"
        raise ValueError(f"{path}: {_unknown(content)}")
    if path.suffix not in TORCH:
        raise ValueError(
            f"{path}: expected a folder, a file of torch.save, .npz or .safetensors, or a set of ddfast; {_known()}"
        )
    value = load(path)
    kinds = [kind for kind, is_such in RULES.items() if is_such(value)]
    if kinds == ["images"]:
        return _of_images(path, value)
    if len(kinds) > 1:
        raise ValueError(f"{path}: can be read as {' or as '.join(kinds)}; say which with --from")
    if not kinds:
        raise ValueError(f"{path}: {_unknown(value)}")
    return kinds[0]


def _of_images(path: Path, images: Tensor) -> str:
    """The format of a file of images alone, whose labels are beside it."""
    if path.name == NAMES[0]:
        return "dd-ranking"
    if images_file(path) is not None:
        return "mtt"
    raise ValueError(
        f"{path}: a tensor {list(images.shape)}, images without labels; expected images_<tag>.pt with labels_<tag>.pt "
        f"beside it (--from mtt), or images.pt with labels.pt (--from dd-ranking)"
    )


def _is_dict_of_arrays(value: Any) -> bool:
    names = arrays.names_of(value) if isinstance(value, dict) else None
    return names is not None and all(isinstance(value[name], Tensor) for name in names)


RULES: dict[str, Callable[[Any], bool]] = {  # what each format looks like once it is loaded
    "dc": lambda value: dc.experiments(value) is not None,
    "idc": lambda value: dc.is_pair(value) and not is_buffer(value),
    "tensors": _is_dict_of_arrays,
    "replay-buffer": is_buffer,
    "state-dict": lambda value: state_dicts.experts_of(value) is not None,
    "images": lambda value: isinstance(value, Tensor) and value.dim() == 4,
}


def _file_of(path: Path, kind: str) -> Path:
    """The file of a folder that is read as a format, where that is one file."""
    if kind not in (*SETS_OF_OTHERS, *EXPERTS_OF_OTHERS):
        raise ValueError(f"--from: expected one of {_formats()}, got {kind!r}")
    if not path.is_dir() or kind in ("mtt", "dd-ranking", "png", *EXPERTS_OF_OTHERS):
        return path
    suffixes = {"npz": (".npz",), "safetensors": (".safetensors",)}.get(kind, TORCH)
    files = sorted(file for file in path.iterdir() if file.suffix in suffixes)
    if len(files) != 1:
        raise ValueError(f"{path}: expected one file to be read as {kind}, got {len(files)}; name the file")
    return files[0]


def _unknown(value: Any) -> str:
    return f"of no known format: {described(value)}; {_known()}"


def _known() -> str:
    return f"known are {_formats()} (docs/files.md)"


def _formats() -> str:
    return ", ".join((*EXPERTS_OF_OTHERS, *SETS_OF_OTHERS))


def described(value: Any) -> str:
    """What a file holds, for people."""
    if isinstance(value, Tensor):
        return f"a tensor {list(value.shape)} of {str(value.dtype).removeprefix('torch.')}"
    if isinstance(value, dict):
        names = [str(name) for name in value]
        shown = ", ".join(names[:LONG]) + " …" * (len(names) > LONG)
        return f"a dict with {'the entry' if len(names) == 1 else 'the entries'} {shown}" if names else "an empty dict"
    if isinstance(value, list | tuple):
        if not value:
            return "an empty list"
        first = described(value[0]) if not isinstance(value[0], list | tuple) else f"lists of {len(value[0])}"
        return (
            f"a list of {len(value)}, its first {first}" if "lists" not in first else f"a list of {len(value)} {first}"
        )
    return f"a {type(value).__name__}"
