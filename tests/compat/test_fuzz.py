"""Damaged and foreign files at every reader: the right value, or one sentence that names the file; no code is run.

`DDFAST_FUZZ=1000` tries as many damaged files of each kind with each reader, in a new random order.
"""

import errno
import json
import os
import pickle
import resource
import signal
import struct
import warnings

import pytest
import safetensors.torch
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ddfast.data import load_dataset
from ddfast.runtime.files import fault_of_machine
from tests.readers import READERS, Reader, same

EXAMPLES = int(os.environ.get("DDFAST_FUZZ", 0))
ROOM = 2**30  # bytes that reading a damaged file of some kB may ask for
MOST_SECONDS = 30
HARDLY = 10  # examples of each kind in continuous integration


class RunsCode:
    """Unpickled, it makes a file."""

    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return (open, (self.path, "w"))


class Damaged:
    """A reader's whole file, and what comes of reading others in its place."""

    def __init__(self, reader: Reader, folder):
        self.reader, self.folder, self.path = reader, folder, folder / reader.file
        reader.write(folder)
        self.files = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
        self.whole, self.value = self.files.pop(self.path), reader.read(folder)
        self.code = folder / "code-was-run"
        assert same(self.value, reader.read(folder))

    def __call__(self, content: bytes | None, *, other: bool = False) -> str:
        """Read with this content, None for no file; `other`: of a value that may well be read as it is."""
        for path, whole in self.files.items():
            path.write_bytes(whole)  # some readers write
        self.path.unlink(missing_ok=True)
        if content is not None:
            self.path.write_bytes(content)
        names = [self.reader.named or self.path.name] + ([str(self.folder)] if content is None else [])
        signal.setitimer(signal.ITIMER_REAL, MOST_SECONDS)
        try:
            value = self.reader.read(self.folder)
        except (ValueError, OSError) as error:
            sentence = str(error)
            assert any(name in sentence for name in names), f"does not name the file: {sentence}"
            assert "\n" not in sentence and len(sentence) < 1000, sentence
            return "refused"
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
            assert not self.code.exists(), "code was run"
        if value is None or same(self.value, value):
            return "same"
        # JSON whose checksum itself has lost its name counts as JSON without one, which earlier versions wrote
        unmarked = self.path.suffix == ".json" and b'"sha256"' not in content
        assert other or unmarked or not self.reader.checked, "another value was read"
        return "another"


@pytest.fixture(scope="module", autouse=True)
def little_room():
    """Large allocations fail, and what hangs is ended."""
    with open("/proc/self/statm", encoding="ascii") as file:
        now = int(file.read().split()[0]) * resource.getpagesize()
    limits = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (now + ROOM, limits[1]))

    def hangs(*_):
        raise AssertionError(f"reading took more than {MOST_SECONDS} s")

    handler = signal.signal(signal.SIGALRM, hangs)
    yield
    signal.signal(signal.SIGALRM, handler)
    resource.setrlimit(resource.RLIMIT_AS, limits)


@pytest.fixture(scope="module", params=READERS)
def damaged(request, tmp_path_factory):
    return Damaged(READERS[request.param], tmp_path_factory.mktemp("files"))


def trying(strategy):
    """Run a test on examples of a strategy: the same few, or as many new ones as were asked for."""
    return lambda test: settings(
        max_examples=EXAMPLES or HARDLY,
        derandomize=not EXAMPLES,
        deadline=None,
        database=None,
        suppress_health_check=list(HealthCheck),
    )(given(strategy)(test))


@trying(st.data())
def test_truncated_files(damaged, data):
    damaged(damaged.whole[: data.draw(st.integers(0, len(damaged.whole) - 1))])


@trying(st.data())
def test_flipped_bits(damaged, data):
    """Anywhere, and as often at the front, where most formats say what follows."""
    content = bytearray(damaged.whole)
    last = len(content) - 1
    for place in data.draw(st.lists(st.integers(0, min(last, 200)) | st.integers(0, last), min_size=1, max_size=4)):
        content[place] ^= 1 << data.draw(st.integers(0, 7))
    damaged(bytes(content))


@trying(st.data())
def test_pieces_that_are_missing_repeated_or_overwritten(damaged, data):
    whole = damaged.whole
    first, last = sorted(data.draw(st.tuples(*2 * [st.integers(0, len(whole))])))
    middle = data.draw(st.sampled_from([b"", 2 * whole[first:last], bytes(last - first), b"\xff" * (last - first)]))
    damaged(whole[:first] + middle + whole[last:])


@trying(st.binary(max_size=300))
def test_any_bytes(damaged, content):
    damaged(content, other=True)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda children: st.lists(children, max_size=3) | st.dictionaries(st.text(max_size=8), children, max_size=3),
    max_leaves=6,
)


@trying(st.data())
def test_values_of_another_type_in_a_file_of_the_right_form(damaged, data):
    """An entry, at any depth, that is gone or another; and no checksum that would tell."""
    name, whole = damaged.path.name, damaged.whole
    if name.endswith((".json", ".jsonl")):
        value = [json.loads(whole.splitlines()[0] if name.endswith("l") else whole)]
        inner, key = value, 0
        inner[0].pop("sha256", None)
        while isinstance(inner[key], dict | list) and inner[key] and data.draw(st.integers(0, 4)):
            inner = inner[key]
            key = data.draw(st.sampled_from(sorted(inner) if isinstance(inner, dict) else range(len(inner))))
        if data.draw(st.booleans()) and isinstance(inner, dict):
            del inner[key]
        else:
            inner[key] = data.draw(JSON)
        content = json.dumps(value[0]).encode()
    elif name.endswith(".safetensors"):
        tensors = safetensors.torch.load(whole)
        with safetensors.safe_open(_written(damaged, whole), framework="pt") as file:
            metadata = file.metadata()
        key = data.draw(st.sampled_from(sorted(tensors)))
        types = (torch.float64, torch.float16, torch.bfloat16, torch.int8, torch.bool, torch.complex64)
        kind = data.draw(st.sampled_from([*types, "gone", "scalar", "empty", "flat", "deep"]))
        changes = {"scalar": lambda t: t.flatten()[0].clone(), "empty": lambda t: t.flatten()[:0]}
        changes |= {"flat": lambda t: t.flatten(), "deep": lambda t: t[None, None]}
        if kind == "gone":
            del tensors[key]
        else:
            tensors[key] = changes[kind](tensors[key]) if kind in changes else tensors[key].to(kind)
        content = safetensors.torch.save(tensors, metadata if data.draw(st.booleans()) else None)
    else:
        return
    damaged(content, other=True)


def _written(damaged, whole):
    path = damaged.folder / "whole"
    path.write_bytes(whole)
    return path


def foreign(code) -> dict[str, bytes | None]:
    """Files of other kinds; `code`: what those make that run code."""

    def of_torch(value, **options):
        path = code.parent / "foreign"
        torch.save(value, path, **options)
        return path.read_bytes()

    def of_safetensors(header: bytes, payload: bytes = bytes(64), length: int | None = None) -> bytes:
        return struct.pack("<Q", len(header) if length is None else length) + header + payload

    huge = '{"%s":{"dtype":"F32","shape":[1000000,1000000],"data_offsets":[0,%d]}}'
    wrong = {"images": torch.zeros(2, 3), "labels": torch.zeros(2), "lr": torch.zeros(3), "snapshots": torch.zeros(3)}
    runs, ran = RunsCode(code), pickle.dumps(RunsCode(code))
    png = b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR" + struct.pack(">IIBBBBB", 30000, 30000, 8, 2, 0, 0, 0)
    return {
        "nothing there": None,
        "empty": b"",
        "zeros": bytes(5000),
        "text": b"no such thing\n" * 9,
        "latin-1": "für\n".encode("latin-1"),
        "JSON list": b"[]",
        "JSON number": b"3",
        "JSON object": b"{}",
        "JSON nested deeply": b"[" * 200_000,
        "JSON number of many digits": b'{"iteration": ' + b"9" * 5000 + b"}",
        "JSON of infinities": b'{"iteration": Infinity, "epochs": NaN}',
        "tensors of other names": safetensors.torch.save({"weights": torch.zeros(3)}),
        "tensors of other shapes": safetensors.torch.save(wrong),
        "tensors with another program's metadata": safetensors.torch.save(wrong, {"format": "pt"}),
        "tensors with foolish metadata": safetensors.torch.save(wrong, {"ddfast": "[[", "sha256": "7"}),
        "a header of 8 exabytes": of_safetensors(b"{}", length=2**63 - 1),
        "a header of 10^12 images": of_safetensors((huge % ("images", 64)).encode()),
        "10^12 images and as many bytes": of_safetensors((huge % ("images", 4 * 10**12)).encode()),
        "10^12 snapshots": of_safetensors((huge % ("snapshots", 4 * 10**12)).encode()),
        "a list of torch": of_torch([1, 2]),
        "a state dict": of_torch(torch.nn.Linear(2, 2).state_dict()),
        "a model": of_torch(torch.nn.Linear(2, 2)),
        "torch's older format": of_torch({"iteration": 1}, _use_new_zipfile_serialization=False),
        "code in torch's format": of_torch({"iteration": runs, "method": runs}),
        "code in torch's older format": of_torch({"iteration": runs}, _use_new_zipfile_serialization=False),
        "a pickle that runs code": ran,
        "a pickle of protocol 0 that runs code": pickle.dumps(RunsCode(code), 0),
        "a picture of 900 megapixels": png + struct.pack(">I", 0) + bytes(50),
        "a picture of no pixels": b"GIF89a" + bytes(7) + b"\x2c" + bytes(9) + b"\x02\x00;",
    }


def test_files_of_other_kinds(damaged):
    for name, content in foreign(damaged.code).items():
        try:
            damaged(content, other=True)
        except BaseException as error:
            raise AssertionError(f"{name}: {type(error).__name__}: {error}") from error


def test_a_whole_file_of_another_reader(damaged, tmp_path):
    for name, reader in READERS.items():
        folder = tmp_path / name
        folder.mkdir()
        reader.write(folder)
        try:
            damaged((folder / reader.file).read_bytes(), other=True)
        except BaseException as error:
            raise AssertionError(f"{name}: {type(error).__name__}: {error}") from error


def test_a_folder_in_the_place_of_a_file(damaged):
    damaged.path.unlink(missing_ok=True)
    damaged.path.mkdir()
    try:
        with pytest.raises((ValueError, OSError), match=damaged.reader.named or damaged.path.name):
            value = damaged.reader.read(damaged.folder)
            assert value is None or not damaged.reader.checked or same(value, damaged.value)
            raise ValueError(damaged.reader.named or damaged.path.name)
    finally:
        damaged.path.rmdir()


@pytest.mark.parametrize("name", ["MNIST/processed/training.pt", "MNIST/processed/test.pt"])
def test_no_code_is_run_from_the_files_of_mnist(tmp_path, name):
    for file in ("training.pt", "test.pt"):
        (tmp_path / "MNIST" / "processed").mkdir(parents=True, exist_ok=True)
        torch.save(RunsCode(tmp_path / "code"), tmp_path / "MNIST" / "processed" / file)
    with pytest.raises((ValueError, OSError), match="mnist: "):
        load_dataset("mnist", data_root=tmp_path)
    assert not (tmp_path / "code").exists()


@pytest.mark.parametrize("name, folder", [("cifar10", "cifar-10-batches-py"), ("cifar100", "cifar-100-python")])
def test_no_code_is_run_from_the_files_of_cifar(tmp_path, name, folder):
    """They are pickles: only those with the published checksums are read."""
    (tmp_path / folder).mkdir()
    files = [f"data_batch_{n}" for n in range(1, 6)] + ["test_batch", "batches.meta", "train", "test", "meta"]
    for file in files:
        (tmp_path / folder / file).write_bytes(pickle.dumps(RunsCode(tmp_path / "code")))
    with pytest.raises((ValueError, OSError), match=f"{name}: not found or damaged"):
        load_dataset(name, data_root=tmp_path)
    assert not (tmp_path / "code").exists()


def test_the_harness_notices_what_it_should(tmp_path):
    """Code that is run, another value, and a sentence without a name."""

    def unpickled(folder):
        return pickle.loads((folder / "a").read_bytes())

    def nameless(folder):
        raise ValueError("wrong")

    whole = Reader("a", lambda f: (f / "a").write_bytes(pickle.dumps(3)) and None, unpickled)
    damaged = Damaged(whole, tmp_path)
    with pytest.raises(AssertionError, match="another value"):
        damaged(pickle.dumps(4))
    with pytest.raises(AssertionError, match="code was run"):
        damaged(pickle.dumps(RunsCode(damaged.code)))
    damaged.code.unlink()
    damaged.reader = Reader("a", whole.write, nameless)
    with pytest.raises(AssertionError, match="does not name the file"):
        damaged(b"")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the file that the pickle left open
        del damaged


FAULTS = {  # of a machine, as the libraries that read files raise them
    "no memory to map": RuntimeError("unable to mmap 296744 bytes from file </a>: Cannot allocate memory (12)"),
    "no memory": MemoryError(),
    "no memory, of the system": OSError(errno.ENOMEM, "Cannot allocate memory"),
    "no memory, of safetensors": safetensors.SafetensorError("I/O error: Cannot allocate memory (os error 12)"),
    "a bad disk, of PyTorch": RuntimeError("unable to mmap 296744 bytes from file </a>: Input/output error (5)"),
    "not permitted": PermissionError(errno.EACCES, "Permission denied"),
    "a bad disk": OSError(errno.EIO, "Input/output error"),
    "too many open files": OSError(errno.EMFILE, "Too many open files"),
}
OPENED_BY = {
    "safetensors.safe_open": ("tensors", "trajectory", "unfinished expert", "whitening", "safetensors of others"),
    "torch.load": ("checkpoint", "replay buffer", "mtt images", "dd-ranking", "state dicts", "dc", "dict of tensors"),
    "numpy.load": ("npz",),
}


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("opener, name", [(opener, name) for opener, names in OPENED_BY.items() for name in names])
def test_what_the_machine_lacks_is_not_taken_for_a_damaged_file(tmp_path, monkeypatch, opener, name, fault):
    """Not even where damaged files are made anew, as unfinished experts are."""

    def fails(*_, **__):
        raise FAULTS[fault]

    reader = READERS[name]
    reader.write(tmp_path)
    monkeypatch.setattr(opener, fails)
    monkeypatch.setattr("ddfast.runtime.files.free_bytes", lambda device: 2**20)
    with pytest.raises((MemoryError, OSError)) as found:
        reader.read(tmp_path)
    assert str(found.value).startswith(f"{tmp_path}/")
    assert ("memory ran out while it was read" in str(found.value)) == fault.startswith("no memory")
    if fault.startswith("no memory"):  # a file that asks for more than there can be is a damaged one
        monkeypatch.setattr("ddfast.runtime.files.free_bytes", lambda device: 2**40)
        try:
            assert reader.read(tmp_path) is None
        except ValueError as error:
            assert str(error).startswith(f"{tmp_path}/") and "\n" not in str(error)


def test_a_number_at_the_end_of_a_damaged_files_error_is_not_taken_for_a_fault_of_the_machine(tmp_path):
    for number in (errno.ENOMEM, errno.EIO, errno.EACCES):
        assert fault_of_machine(tmp_path / "file", RuntimeError(f"the record has no shape ({number})")) is None
