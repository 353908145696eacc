"""Images per class (ipc): one number for all classes, or one for each."""

import difflib
from collections.abc import Mapping, Sequence
from numbers import Integral
from pathlib import Path
from typing import Any

import numpy
from torch import Tensor

from ddfast.runtime.arguments import plain
from ddfast.runtime.files import parse_toml, read_json

DEFAULT = "default"  # the entry of classes that are not named


def images_per_class(
    ipc: Any,
    class_names: Sequence[str],  # [K]
    least: int = 1,
) -> int | list[int]:  # of all classes; or [K]
    """A number where all classes have as many images, else one for each class in their order.

    ipc: a number; K numbers; a mapping from classes to numbers; or the path of a .json or .toml file that holds one of
    these. The key of a class is its name, or its index where no class has that name; `default` is for the others.

    Errors: ValueError or TypeError that names the class; OSError for a file that cannot be read.
    """
    if isinstance(ipc, str | Path):
        ipc = _read(ipc)
    if isinstance(ipc, Tensor | numpy.ndarray):
        ipc = ipc.tolist()
    ipc = plain(ipc)
    if isinstance(ipc, Mapping):
        counts = _of_mapping(ipc, class_names)
    elif isinstance(ipc, Sequence) and not isinstance(ipc, str | bytes):
        counts = [plain(count) for count in ipc]
        if len(counts) != len(class_names):
            raise ValueError(f"ipc: expected a number for each of the {len(class_names)} classes, got {len(counts)}")
    else:
        _expect_count("", ipc, least)
        return ipc
    for name, count in zip(class_names, counts, strict=True):
        _expect_count(f" for class {name!r}", count, least)
    return counts[0] if len(set(counts)) == 1 else counts


def counts_of(ipc: int | Sequence[int], num_classes: int) -> list[int]:  # [K]
    """How many images each class has, of what `images_per_class` returns."""
    return [ipc] * num_classes if isinstance(ipc, int) else list(ipc)


def in_words(ipc: int | Sequence[int]) -> str:
    """As a line of the log has it."""
    return f"{ipc} per class" if isinstance(ipc, int) else f"{min(ipc)} to {max(ipc)} per class, {sum(ipc)} in all"


def _expect_count(where: str, count: Any, least: int) -> None:
    is_whole = isinstance(count, Integral) and not isinstance(count, bool)
    if not is_whole or count < least:
        raise ValueError(f"ipc: expected a whole number of at least {least}{where}, got {count!r}")


def _of_mapping(ipc: Mapping[Any, Any], class_names: Sequence[str]) -> list[Any]:  # [K]
    found: dict[int, tuple[Any, Any]] = {}
    default = None
    for key, count in ipc.items():
        k = _class_of(plain(key), class_names)
        if k is None:
            default = plain(count)
        elif k in found:
            raise ValueError(f"ipc: {found[k][0]!r} and {key!r} are the same class, {class_names[k]!r}")
        else:
            found[k] = key, plain(count)
    lacking = [name for k, name in enumerate(class_names) if k not in found]
    if lacking and default is None:
        more = f" and {len(lacking) - 5} more" if len(lacking) > 5 else ""
        raise ValueError(
            f"ipc: no number for class {', '.join(lacking[:5])}{more}; name every class, or give a {DEFAULT!r}"
        )
    return [found[k][1] if k in found else default for k in range(len(class_names))]


def _class_of(key: Any, class_names: Sequence[str]) -> int | None:
    """The index of the class that a key means; None for the default."""
    name = str(key)
    if name in class_names:
        return list(class_names).index(name)
    if name == DEFAULT:
        return None
    if name.isdecimal() and int(name) < len(class_names):
        return int(name)
    near = difflib.get_close_matches(name, class_names, 1)
    hint = f"; did you mean {near[0]!r}?" if near else ""
    some = ", ".join(class_names[:5]) + (", …" if len(class_names) > 5 else "")
    raise ValueError(f"ipc: expected classes out of {some}, their indices, or {DEFAULT}; got {key!r}{hint}")


def _read(path: str | Path) -> Any:
    """What a file holds."""
    path = Path(path).expanduser()
    if path.suffix.lower() not in (".json", ".toml"):
        raise ValueError(f"ipc: expected a whole number, or a .json or .toml file, got {str(path)!r}")
    if not path.is_file():
        raise FileNotFoundError(f"ipc: no file {path}")
    held = read_json(path) if path.suffix.lower() == ".json" else _read_toml(path)
    if not isinstance(held, list | dict):
        raise ValueError(f'{path}: expected a number per class, as {{"cat": 10, "default": 5}} or a list of them')
    return held


def _read_toml(path: Path) -> dict[str, Any]:
    try:
        return parse_toml(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path}: no TOML ({error})") from None
