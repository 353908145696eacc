"""Files that are either whole or not there, and that show whether they are as they were written: JSON and tensors."""

import contextlib
import errno
import hashlib
import json
import logging
import math
import os
import platform
import re
import shutil
import signal
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor

from ddfast.runtime.devices import free_bytes, is_out_of_memory

log = logging.getLogger("ddfast")

CHECKSUM = "sha256"  # the entry of a JSON file that holds it
METADATA = "ddfast"  # the entry of a tensor file's metadata that is ours; a single one, for their order is not fixed
TEMPORARY = re.compile(r"\..*\.([^.]*)-(\d+)\.tmp")  # host and process
LOCK = ".lock"  # ending of the files that locks are on
OF_THE_MACHINE = (errno.EACCES, errno.EPERM, errno.EIO, errno.EMFILE, errno.ENFILE, errno.ESTALE)
OF_EVERY_FILE = (errno.EMFILE, errno.ENFILE)
# What reading a damaged file, or one of another program, may raise.
UNREADABLE = (OSError, KeyError, TypeError, ValueError, IndexError, RuntimeError, MemoryError)
ROOM_TO_READ, MOST_EXPANDED = 2**26, 8  # bytes that reading any file may take, and times its size
CANNOT_LOCK = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)


def cache_folder() -> Path:
    """Where what can be made again is kept: DDFAST_CACHE, else ~/.cache/ddfast."""
    named = os.environ.get("DDFAST_CACHE")
    return Path(named) if named else Path.home() / ".cache" / "ddfast"


def temporary_of(path: Path) -> Path:
    """What a file or folder is called until it is whole, by this process."""
    return path.with_name(f".{path.name}.{_host()}-{os.getpid()}.tmp")


def _host() -> str:
    return re.sub(r"[^\w-]", "_", platform.node())


@contextlib.contextmanager
def writing(path: Path) -> Iterator[None]:
    """Name the file in an OSError that comes out of the block, as that of a full disk does not."""
    try:
        yield
    except OSError as error:
        raise _numbered(error.errno, f"{path}: cannot be written ({error.strerror or error})") from error


def _numbered(number: int | None, sentence: str) -> OSError:
    """An error of the system that says just the sentence."""
    error = OSError(sentence)
    error.errno = number
    return error


def fault_of_machine(path: Path, error: Exception) -> Exception | None:
    """What to raise where a file could not be read for lack of memory, permission or the like, so that nobody takes it
    for a damaged one; None where the file is to blame, which may ask for more memory than anything it can hold."""
    if not isinstance(error, MemoryError | OSError | RuntimeError) and type(error).__name__ != "SafetensorError":
        return None
    number = getattr(error, "errno", None)
    if number is None:  # Rust and PyTorch say it in words
        number = next((n for n in (errno.ENOMEM, *OF_THE_MACHINE) if os.strerror(n) in str(error)), None)
    if number == errno.ENOMEM or is_out_of_memory(error):
        size = path.stat().st_size if path.is_file() else 0
        is_short = free_bytes(torch.device("cpu")) < ROOM_TO_READ + MOST_EXPANDED * size
        return MemoryError(f"{path}: memory ran out while it was read") if is_short else None
    return _numbered(number, f"{path}: cannot be read ({os.strerror(number)})") if number in OF_THE_MACHINE else None


def shortage_of_machine(path: Path, error: Exception) -> Exception | None:
    """`fault_of_machine` where the next file would meet it as well: no reason to leave out this one."""
    fault = fault_of_machine(path, error)
    return fault if isinstance(fault, MemoryError) or getattr(fault, "errno", None) in OF_EVERY_FILE else None


def not_whole(path: Path, what: str, error: Exception) -> Exception:
    """What to raise for a file that could not be read: a ValueError, which says that it is not a whole `what`, or the
    fault of the machine."""
    return fault_of_machine(path, error) or ValueError(f"{path}: not a whole {what} ({error})")


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`; when the block ends without an error it becomes `path`, to stay even where
    power is lost. OSError that names `path` where it cannot be written."""
    temporary = temporary_of(path)
    with writing(path):
        try:
            temporary.touch()
            mode = temporary.stat().st_mode  # what the user's umask gives; some writers make private files
            yield temporary
            temporary.chmod(mode)
            synchronise(temporary)
            os.replace(temporary, path)
            synchronise(path.parent)
        finally:
            with contextlib.suppress(OSError):  # it would hide the error that led here
                temporary.unlink(missing_ok=True)


def expect_writable(folder: Path) -> None:
    """Make a folder where there is none; OSError that names it where no files of ours can be: before anything that
    takes time."""
    try:
        str(folder.absolute()).encode()
    except UnicodeEncodeError:  # safetensors takes no others
        raise OSError(f"{folder}: expected a folder whose name is UTF-8") from None
    folder.mkdir(parents=True, exist_ok=True)
    with writing(folder), tempfile.TemporaryFile(dir=folder) as file:
        file.write(b"\0")


def synchronise(path: Path) -> None:
    """Have the system write a file, or the names in a folder, to the disk now."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno != errno.EINVAL or not path.is_dir():  # file systems that cannot do it for folders
            raise
    finally:
        os.close(descriptor)


def remove_leftovers(folder: Path, name: str = "*") -> None:
    """Delete the temporary files and folders of processes that were killed while they wrote, all or those of one name;
    the caller holds the folder's lock, or whatever else keeps others from writing. Those of other machines are left."""
    for path in folder.glob(f".{name}.*.tmp"):
        named = TEMPORARY.fullmatch(path.name)
        if named and named[1] == _host() and not _is_another_at_work(int(named[2])):
            if path.is_dir():
                shutil.rmtree(path, ignore_errors=True)
            else:
                path.unlink(missing_ok=True)


def is_leftover(path: Path) -> bool:
    """Whether a process left this half written, or is writing it, or it is a lock's file."""
    is_lock = path.name.startswith(".") and path.name.endswith(LOCK)
    return is_lock or TEMPORARY.fullmatch(path.name) is not None


def _is_another_at_work(process: int) -> bool:
    if process == os.getpid():
        return False
    try:
        os.kill(process, 0)  # only asks
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:  # that of another user
        return True
    return True


def lock_of(path: Path) -> Path:
    """The hidden file whose lock holds a folder, in it, or a file, beside it. It stays when the lock is given back."""
    return path / LOCK if path.is_dir() else path.with_name(f".{path.name}{LOCK}")


@contextlib.contextmanager
def locking(path: Path, *, wait: bool) -> Iterator[None]:
    """Hold a folder or file against other processes that lock it; not waiting, BlockingIOError where one does.

    The lock goes with the process, however it ends. A file system that has no locks is only warned of.
    """
    from filelock import FileLock, Timeout

    lock = FileLock(lock_of(path), timeout=-1 if wait else 0, is_singleton=False)
    try:
        lock.acquire()
    except Timeout:
        raise BlockingIOError(f"{path}: another process is at work here") from None
    except (OSError, NotImplementedError) as error:
        if not isinstance(error, NotImplementedError) and error.errno not in CANNOT_LOCK:
            raise
        log.warning("%s: this file system has no locks; make sure that no other process uses this path", path)
    try:
        yield
    finally:
        lock.release()


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
    path, size = temporary_of(folder / "mapped"), math.prod(shape)
    try:
        with open(path, "wb") as file:
            # a full disk is an error here, not a crash later
            os.posix_fallocate(file.fileno(), 0, size * dtype.itemsize)
        return torch.from_file(str(path), shared=True, size=size, dtype=dtype).view(shape)
    finally:
        path.unlink(missing_ok=True)  # the mapping keeps it until the process ends


def write_json(path: Path, value: Any, *, checksum: bool = True) -> None:
    """Write `value` as indented JSON, whole or not at all; an object gets a checksum of its other entries, where people
    are not to edit it."""
    if isinstance(value, dict) and checksum:
        value = json.loads(json.dumps(value))  # keys as they will be read
        value = {**value, CHECKSUM: _digest(value)}
    with replacing(path) as temporary:
        temporary.write_bytes(_encoded(json.dumps(value, indent=2, ensure_ascii=False) + "\n"))


def read_json(path: Path, *, checksum: bool = True) -> Any:
    """Read JSON, without its checksum; ValueError that names the file where it is not JSON, or not what was written,
    which of a file without a checksum is not known."""
    try:
        value = json.loads(path.read_bytes().decode("utf-8", "surrogateescape"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path}: not a JSON file ({error})") from None
    if isinstance(value, dict) and CHECKSUM in value and value.pop(CHECKSUM) != _digest(value) and checksum:
        raise ValueError(
            f"{path}: damaged, or edited by hand: its checksum differs (without the entry {CHECKSUM!r} it is read as "
            f"it is)"
        )
    return value


def parse_toml(text: str) -> dict[str, Any]:
    """What TOML says; ValueError where it is none."""
    if sys.version_info >= (3, 11):
        import tomllib
    else:
        import tomli as tomllib

    return tomllib.loads(text)


def _digest(value: Any) -> str:
    text = json.dumps(value, sort_keys=True, ensure_ascii=False)
    return hashlib.sha256(_encoded(text)).hexdigest()[:16]


def _encoded(text: str) -> bytes:
    """UTF-8; bytes of a file's name that are none are written as they were, and `read_json` reads them so."""
    return text.encode("utf-8", "surrogateescape")


def write_tensors(path: Path, tensors: dict[str, Tensor], about: dict[str, Any]) -> None:
    """Write tensors, on any device, as safetensors, with what is said about them and a checksum of it all; whole or not
    at all."""
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    about = json.loads(json.dumps(about))
    metadata = {METADATA: json.dumps({"about": about, CHECKSUM: digest_of_tensors(tensors, about)})}
    write_safetensors(path, tensors, metadata)


def remembered(path: Path, about: dict[str, Any], compute: Callable[[], dict[str, Tensor]]) -> dict[str, Tensor]:
    """What was computed before and is kept in a file that says the same of it; else computed and, where the folder can
    be written to, kept."""
    with contextlib.suppress(OSError, ValueError):  # none there, or damaged
        tensors, said = read_tensors(path)
        if said == about:
            return tensors
    tensors = compute()
    with contextlib.suppress(OSError):
        write_tensors(path, tensors, about)
    return tensors


def write_safetensors(path: Path, tensors: dict[str, Tensor], metadata: dict[str, str]) -> None:  # on the CPU
    """Write a file of safetensors, whole or not at all."""
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    with replacing(path) as temporary:
        try:
            save_file(tensors, temporary, metadata)
        except SafetensorError as error:
            raise OSError(str(error)) from None


def read_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, Any] | None]:
    """The tensors of a file, and what is said about them: None where the file has no metadata, and so no checksum.

    Errors: FileNotFoundError; ValueError that names the file, for one that is truncated, altered or of another program;
    as not_whole has it.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            tensors, metadata = {name: file.get_tensor(name) for name in file.keys()}, file.metadata()
        if not metadata:
            return tensors, None
        said = json.loads(metadata[METADATA])
        about, checksum = said["about"], said[CHECKSUM]
    except FileNotFoundError:
        raise FileNotFoundError(f"{path}: no such file") from None
    except (SafetensorError, *UNREADABLE) as error:
        raise not_whole(path, "file of ddfast", error) from None
    if not isinstance(about, dict) or checksum != digest_of_tensors(tensors, about):
        raise ValueError(f"{path}: damaged: its checksum differs")
    return tensors, about


def digest_of_tensors(tensors: dict[str, Tensor], about: dict[str, Any]) -> str:  # on the CPU
    """A checksum of names, types, shapes and values, and of what is said about them."""
    digest = hashlib.sha256(_digest(about).encode())
    for name in sorted(tensors):
        tensor = tensors[name]
        digest.update(repr((name, str(tensor.dtype), tuple(tensor.shape))).encode())
        digest.update(tensor.detach().contiguous().reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()


def write_archive(path: Path, value: Any) -> None:
    """Write what torch.save writes, with checksums; whole or not at all."""
    checksums = torch.serialization.get_crc32_options()
    with replacing(path) as temporary, open(temporary, "wb") as file:
        writer = _Writer(file)
        try:
            torch.serialization.set_crc32_options(True)
            torch.save(value, writer)
        except RuntimeError as error:
            raise writer.error or error from None
        finally:
            torch.serialization.set_crc32_options(checksums)


class _Writer:
    """A file that keeps the error of a write, of which torch makes another one that does not say why."""

    def __init__(self, file: BinaryIO) -> None:
        self._file, self.error = file, None

    def write(self, data: bytes | memoryview) -> int:
        try:
            return self._file.write(data)
        except OSError as error:
            self.error = error
            raise

    def flush(self) -> None:
        self._file.flush()
