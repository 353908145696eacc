"""The run folder: what `distill` writes, and what a killed run goes on from."""

import contextlib
import itertools
import json
import logging
import math
import re
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

import torch

from ddfast.data import SyntheticSet
from ddfast.runtime.files import (
    expect_writable,
    fault_of_machine,
    lock_of,
    locking,
    read_json,
    remove_leftovers,
    replacing,
    synchronise,
    write_archive,
    write_json,
    writing,
)

log = logging.getLogger("ddfast")


class RunFolder:
    """A folder for one run.

    config.json: every setting; metrics.jsonl: a line per iteration; evaluations.jsonl and checkpoints/<iteration>: the
    sets that were evaluated on the way; accuracies.jsonl: of every network that was trained for it; synthetic and
    initial: .safetensors and .json; images.png, initial.png and curves.png; thumbnails/<iteration>: the images at some
    checkpoints; checkpoint.pt: what `resume` goes on from; summary.json: the results. All but the .jsonl files are
    whole or not there.
    """

    writes: ClassVar[bool] = True

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)

    @classmethod
    def create(cls, path: str | Path | None, config: dict[str, Any], *, resume: bool = False) -> "RunFolder":
        """A new folder, claimed by its config.json; None for the next free number under runs/.

        To resume, a claim that is empty, of a run that was killed while it made it, is taken over.
        Errors: FileExistsError for a folder that holds a run, which is never written to.
        """
        path = cls._next_number(Path("runs")) if path is None else Path(path)
        if path.exists() and not path.is_dir():
            raise FileExistsError(f"{path}: is a file; choose another output folder")
        expect_writable(path)
        run = cls(path)
        run.expect_free()
        if resume and not run.has_config:
            with run.locked():
                (path / "config.json").unlink(missing_ok=True)
        with contextlib.suppress(FileExistsError):
            open(path / "config.json", "x").close()  # of two runs at once, one is first
            try:
                run.write_config(config)
            except BaseException:
                run.discard()
                raise
            return run
        raise run._occupied()

    def expect_free(self) -> None:
        """FileExistsError where the folder holds a run, or something else: before anything that takes time."""
        if self.has_config:
            raise self._occupied()
        for name, what in (("checkpoint.pt", "a run whose config.json is missing"), ("experts.json", "experts")):
            if (self.path / name).exists():
                raise FileExistsError(f"{self.path}: holds {what}; choose another output folder")

    def _occupied(self) -> FileExistsError:
        return FileExistsError(f"{self.path}: holds a run already; choose another output folder, or resume it")

    @staticmethod
    def _next_number(runs: Path) -> Path:
        runs.mkdir(exist_ok=True)
        taken = [int(p.name) for p in runs.iterdir() if p.name.isdigit()]
        for number in itertools.count(max(taken, default=0) + 1):
            with contextlib.suppress(FileExistsError):  # another run took it just now
                path = runs / f"{number:04d}"
                path.mkdir()
                return path
        raise AssertionError("numbers do not end")

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the folder for this process, and clear away what a killed one left; BlockingIOError where another one
        holds it."""
        with locking(self.path, wait=False):
            for folder in (self.path, self.path / "checkpoints", self.path / "thumbnails"):
                remove_leftovers(folder)
            yield

    def discard(self) -> None:
        """Undo `create`, for a run that ended before it had anything to keep."""
        (self.path / "config.json").unlink(missing_ok=True)
        lock_of(self.path).unlink(missing_ok=True)
        with contextlib.suppress(OSError):  # the folder holds other things
            self.path.rmdir()

    @property
    def has_config(self) -> bool:
        """Whether a run was begun here: claimed, and its settings written."""
        file = self.path / "config.json"
        return file.is_file() and file.stat().st_size > 0

    def read_config(self) -> dict[str, Any]:
        """What `write_config` wrote; FileNotFoundError or ValueError where there is no run."""
        file = self.path / "config.json"
        if not file.is_file():
            raise FileNotFoundError(f"{self.path}: no run here (config.json is missing)")
        config = read_json(file, checksum=False)  # edited, perhaps, by its owner
        types = {"dataset": str, "method": str, "versions": dict}
        if not isinstance(config, dict) or any(type(config.get(name)) is not kind for name, kind in types.items()):
            raise ValueError(f"{file}: not the settings of a run")
        return config

    def write_config(self, config: dict[str, Any]) -> None:
        """Write every setting, resolved."""
        write_json(self.path / "config.json", config, checksum=False)

    def append(self, name: str, record: dict[str, Any]) -> None:
        """Add one line to metrics or evaluations; a number that is not finite becomes null, as JSON has it."""
        path = self.path / f"{name}.jsonl"
        finite = {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in record.items()}
        with writing(path), open(path, "a", encoding="utf-8") as file:
            file.write(json.dumps(finite, allow_nan=False) + "\n")

    def keep_until(self, name: str, iteration: int) -> list[dict[str, Any]]:
        """The records of metrics or evaluations up to an iteration; later and broken lines are deleted."""
        path = self.path / f"{name}.jsonl"
        records, kept, text = self._until(name, iteration)
        if (whole := b"".join(kept)) != text:
            with replacing(path) as temporary:
                temporary.write_bytes(whole)
        return records

    def _until(self, name: str, iteration: int) -> tuple[list[dict[str, Any]], list[bytes], bytes]:
        """The records up to an iteration, their lines, and the whole file."""
        path, records, kept, broken = self.path / f"{name}.jsonl", [], [], 0
        text = path.read_bytes() if path.is_file() else b""
        for line in (lines := text.splitlines(keepends=True)):
            try:
                record = json.loads(line)
                if record["iteration"] <= iteration and line.endswith(b"\n"):
                    records.append(record)
                    kept.append(line)
            except (ValueError, KeyError, TypeError, RecursionError):
                broken += line is not lines[-1]  # the last one a kill may have cut off
        if broken:
            log.warning("%s: skipped %d damaged lines", path, broken)
        return records, kept, text

    def write_synthetic(self, synthetic: SyntheticSet, name: str = "synthetic") -> None:
        """Write the latest synthetic set, or another one by name."""
        (self.path / name).parent.mkdir(exist_ok=True)
        synthetic.save(self.path / name)

    def prune_checkpoints(self, keep: int | None) -> None:
        """Delete all but the last `keep` of the sets in checkpoints/; None: delete none. What a kill left of a set goes
        with it."""
        sets: dict[int, list[Path]] = {}
        for path in (self.path / "checkpoints").glob("*"):
            iteration = re.match(r"\d+(?=[.-])", path.name)
            if iteration is not None:
                sets.setdefault(int(iteration.group()), []).append(path)
        for iteration in sorted(sets)[: -keep if keep is not None else 0]:
            for path in sets[iteration]:
                path.unlink(missing_ok=True)

    def write_state(self, state: dict[str, Any]) -> None:
        """Write what the run goes on from, and before it to the disk what was logged."""
        for name in ("metrics", "evaluations"):
            if (self.path / f"{name}.jsonl").is_file():
                synchronise(self.path / f"{name}.jsonl")
        write_archive(self.path / "checkpoint.pt", state)

    def read_state(self) -> dict[str, Any] | None:
        """What `write_state` wrote; None where nothing was. ValueError for a damaged file."""
        file = self.path / "checkpoint.pt"
        if not file.is_file():
            return None
        try:
            with zipfile.ZipFile(file) as archive:  # torch does not look at the checksums
                damaged = archive.testzip()
            if damaged is not None:
                raise ValueError(f"the checksum of {damaged} differs")
            state = torch.load(file, map_location="cpu", weights_only=True)
            if not isinstance(state, dict) or type(state.get("iteration")) is not int:
                raise ValueError("not the state of a run")
        except Exception as error:  # a damaged archive raises many kinds
            if fault := fault_of_machine(file, error):
                raise fault from None
            raise ValueError(f"{file}: damaged, the run cannot be resumed ({_first_line(error)})") from None
        return state

    def saved_iteration(self) -> int | None:
        """The iteration of the checkpoint, without reading all of it; None where there is none, or it is damaged."""
        file = self.path / "checkpoint.pt"
        try:
            iteration = torch.load(file, map_location="cpu", weights_only=True, mmap=True)["iteration"]
        except Exception:  # a damaged archive raises many kinds
            return None
        return iteration if type(iteration) is int else None

    def write_summary(self, summary: dict[str, Any]) -> None:
        """Write the results."""
        write_json(self.path / "summary.json", summary)

    def read_summary(self) -> dict[str, Any] | None:
        """The results; None where the run has not ended, ValueError where they are not whole."""
        file = self.path / "summary.json"
        summary = read_json(file) if file.is_file() else None
        if summary is not None and not (isinstance(summary, dict) and isinstance(summary.get("accuracy"), dict)):
            raise ValueError(f"{file}: not the results of a run")
        return summary


class WatchedRunFolder(RunFolder):
    """A run folder as the other processes of a run have it: they read it, and the first one writes."""

    writes = False

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """The first process holds it."""
        yield

    def keep_until(self, name: str, iteration: int) -> list[dict[str, Any]]:
        """The records up to an iteration."""
        return self._until(name, iteration)[0]

    def _leave(self, *args: Any) -> None:
        """Write nothing."""

    discard = write_config = append = write_synthetic = write_state = write_summary = prune_checkpoints = _leave


def _first_line(error: Exception) -> str:
    return next(iter(str(error).splitlines()), type(error).__name__)
