"""Files that are either whole or not there: written under a temporary name, flushed, then renamed."""

import contextlib
import fcntl
import json
import math
import os
import signal
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch


def cache_folder() -> Path:
    """Where what can be made again is kept: DDFAST_CACHE, else ~/.cache/ddfast."""
    named = os.environ.get("DDFAST_CACHE")
    return Path(named) if named else Path.home() / ".cache" / "ddfast"


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`; when the block ends without an error it becomes `path`."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        temporary.touch()
        mode = temporary.stat().st_mode  # what the user's umask gives; some writers make private files
        yield temporary
        temporary.chmod(mode)
        with open(temporary, "rb+") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def locking(path: Path, *, wait: bool) -> Iterator[None]:
    """Hold a folder or file against other processes that lock it; not waiting, BlockingIOError where one does.

    The lock goes with the process, however it ends.
    """
    descriptor = os.open(path, os.O_RDONLY)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError:
            raise BlockingIOError(f"{path}: another process is at work here") from None
        yield
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def undisturbed() -> Iterator[None]:
    """A block that Ctrl-C, or a request to end, interrupts after its end only, or not at all where an error that ends
    the run is on its way already; in the main thread."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    came: list[int] = []
    ending = sys.exc_info()[0] is not None
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
    handlers = {number: handler for number, handler in handlers.items() if callable(handler)}
    for number in handlers:
        signal.signal(number, lambda number, frame: came.append(number))
    try:
        yield
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
        for number in came[:1] if not ending else ():
            handlers[number](number, None)


def mapped_tensor(folder: Path, shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:  # of this shape
    """Room outside of memory: a tensor in a mapped file in `folder`, which has no name and goes with the tensor.

    Errors: OSError where the disk is full.
    """
    path, size = folder / f".mapped.{os.getpid()}.tmp", math.prod(shape)
    try:
        with open(path, "wb") as file:
            # a full disk is an error here, not a crash later
            os.posix_fallocate(file.fileno(), 0, size * dtype.itemsize)
        return torch.from_file(str(path), shared=True, size=size, dtype=dtype).view(shape)
    finally:
        path.unlink(missing_ok=True)  # the mapping keeps it until the process ends


def write_json(path: Path, value: Any) -> None:
    """Write `value` as indented JSON, whole or not at all."""
    with replacing(path) as temporary:
        temporary.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def read_json(path: Path) -> Any:
    """Read JSON; ValueError that names the file where it is not JSON."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: not a JSON file ({error})") from None
