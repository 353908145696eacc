"""The .pt files of others: read without running anything that they hold, written whole or not at all."""

import functools
import logging
import re
import zipfile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ddfast.runtime.files import fault_of_machine, write_archive

log = logging.getLogger("ddfast")

WIDENED = (torch.float32, torch.float16, torch.bfloat16)  # float32 holds all of their values


def load(path: Path) -> Any:
    """What torch.save wrote to a file, its tensors on the CPU and mapped, not read.

    Files from before PyTorch 1.6 cannot be mapped and are read whole.
    Errors: OSError; ValueError that names the file, where it is damaged, or holds more than tensors in lists and
    dictionaries, such as code, which is not run.
    """
    with open(path, "rb") as file:
        begins = file.read(2)
    mapped = _is_zip(path)
    if not mapped and begins != b"\x80\x02":  # how the older format begins
        what = "its end is missing or damaged" if begins == b"PK" else repr(begins)
        raise ValueError(f"{path}: not a whole file of torch.save: {what}")
    if not mapped:
        log.info("%s: written by PyTorch before 1.6, so it is read into memory as a whole", path)
    try:
        with torch.serialization.safe_globals(_numbers_of_numpy()):
            return torch.load(path, map_location="cpu", weights_only=True, mmap=mapped)
    except Exception as error:  # a damaged file raises many kinds
        if fault := fault_of_machine(path, error):
            raise fault from None
        said = str(error).strip() or type(error).__name__
        if named := re.search(r"GLOBAL ([\w.]+)|(?:class|function) ([\w.]*\w\.\w+)", said):
            raise ValueError(
                f"{path}: not read, for it holds more than tensors: objects of {named[1] or named[2]}, whose code "
                f"would be run; save its tensors, or their state_dict(), instead"
            ) from None
        why = "it holds more than tensors" if "weights_only" in said.lower() else "it is damaged"
        reason = said.split("WeightsUnpickler error:")[-1].strip().splitlines() or ["an unknown object"]
        raise ValueError(f"{path}: not read, for {why} ({reason[0].strip()})") from None


def _is_zip(path: Path) -> bool:
    try:
        return zipfile.is_zipfile(path)
    except zipfile.BadZipFile:  # a damaged end: of several disks
        return False


@functools.cache
def _numbers_of_numpy() -> list[Any]:
    """What numpy's numbers and arrays are pickled as, by numpy before 2 and since: plain data, of which nothing is run.

    DC's code keeps its accuracies as such, beside the images.
    """
    from numpy import _core, dtype, ndarray

    calls = (_core.multiarray.scalar, _core.multiarray._reconstruct)
    both = [(call, f"numpy.{core}.multiarray.{call.__name__}") for call in calls for core in ("core", "_core")]
    return [*both, dtype, ndarray, *{type(dtype(code)) for code in "?bBhHiIlLqQefd"}]


def save(value: Any, path: Path) -> None:
    """Write a file as torch.save does: the same bytes for the same value, whatever the file is called."""
    write_archive(path, value)


def expect_floats(value: Any, what: str) -> Tensor:
    """`value`, detached; ValueError unless it is a dense tensor whose values float32 can hold."""
    if not isinstance(value, Tensor):
        raise ValueError(f"{what}: expected a tensor, got {type(value).__name__}")
    expect_held(value, what)
    if value.dtype not in WIDENED:
        raise ValueError(f"{what}: expected float32, or a narrower float, got {value.dtype}")
    return value.detach()


def expect_held(tensor: Tensor, what: str) -> None:
    """ValueError for a tensor that is not dense, or whose shape claims more than its file holds."""
    if tensor.layout != torch.strided or tensor.is_quantized:
        raise ValueError(f"{what}: expected a dense tensor, got {tensor.layout}")
    if tensor.numel() * tensor.element_size() > tensor.untyped_storage().nbytes():
        raise ValueError(f"{what}: its shape {list(tensor.shape)} claims more values than the file holds")
