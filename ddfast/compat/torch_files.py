"""The .pt files of others: read without running anything that they hold, written whole or not at all."""

import logging
import zipfile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ddfast.files import write_archive

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
    mapped = zipfile.is_zipfile(path)
    if not mapped and begins != b"\x80\x02":  # how the older format begins
        raise ValueError(
            f"{path}: not a whole file of torch.save: {'its end is missing' * (begins == b'PK') or begins}"
        )
    if not mapped:
        log.info("%s: written by a PyTorch before 1.6, read whole into memory", path)
    try:
        return torch.load(path, map_location="cpu", weights_only=True, mmap=mapped)
    except Exception as error:  # a damaged file raises many kinds
        why = "it holds more than tensors" if "weights_only" in str(error).lower() else "it is damaged"
        said = str(error).strip().splitlines() or [type(error).__name__]
        raise ValueError(f"{path}: not read, for {why} ({said[-1 if len(said) == 1 else 0].strip()})") from None


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
