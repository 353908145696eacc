"""TrajectoryStore: the parameter snapshots of trained experts, one file per expert, read one snapshot at a time."""

import hashlib
import json
import logging
import shutil
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ddfast.experts.snapshots import (
    FORMATS,
    WHOLE,
    kept_epochs,
    predicted_bytes,
    rounding_error,
    storage_settings,
    words,
)
from ddfast.experts.state_dicts import state_dict
from ddfast.runtime.files import (
    UNREADABLE,
    lock_of,
    locking,
    not_whole,
    read_json,
    read_tensors,
    remove_leftovers,
    write_json,
    write_safetensors,
    write_tensors,
)

log = logging.getLogger("ddfast")

PLAIN = "ddfast-trajectories-1"  # all epochs, float32
FORMAT = "ddfast-trajectories-2"  # of those in the settings
CHECKSUMS, ABOUT = "sha256", "about"  # the one entry of a file's metadata (their order is not fixed): plain or rounded


class TrajectoryStore:
    """A folder of experts: `experts.json` says what they are, `expert_0000.safetensors` … hold snapshots [E + 1, P].

    Snapshot 0 is the initialisation, snapshot e the parameters after epoch e. Some epochs may not be kept, and
    snapshots may be rounded (ddfast.experts.snapshots); what is read is float32. Files are mapped, never read whole,
    and what is stored of each snapshot is checked against its checksum when it is first read.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        about = self.path / "experts.json"
        if not about.is_file():
            raise FileNotFoundError(f"{self.path}: no trained experts here (experts.json is missing)")
        self.about: dict[str, Any] = read_json(about)
        whole = isinstance(self.about, dict) and isinstance(self.about.get("settings"), dict)
        if (
            not whole
            or self.about.get("format") not in (PLAIN, FORMAT)
            or type(self.about.get("epochs")) is not int
            or not isinstance(self.settings.get("preprocessing") or {}, dict)
        ):
            raise ValueError(f"{about}: not a ddfast trajectory store")
        if self.snapshots not in FORMATS:
            raise ValueError(f"{about}: expected snapshots as {', '.join(FORMATS)}, got {self.snapshots!r}")
        self._format = FORMATS[self.snapshots]
        self._rows = {
            epoch: row for row, epoch in enumerate(kept_epochs(self.epochs, self.settings.get("keep_epochs")))
        }
        self._checked: set[tuple[int, int]] = set()  # snapshots whose checksum was right

    @classmethod
    def create(
        cls,
        path: str | Path,
        settings: dict[str, Any],
        epochs: int,
        *,
        keep_epochs: tuple[int, int] | None = None,
        snapshots: str = WHOLE,
    ) -> "TrajectoryStore":
        """A store in `path` for experts of these settings: the one that is there, or a new, empty one.

        keep_epochs: the first and the last epoch whose snapshots are kept, beside the very last; None for all.
        snapshots: how they are kept, one of ddfast.experts.FORMATS. Both become part of the settings.

        Errors: ValueError where the folder holds experts of other settings, or for epochs or a format that are not.
        """
        storage = storage_settings(epochs, keep_epochs, snapshots)
        settings = json.loads(json.dumps({**settings, **storage}))
        path = Path(path)
        if (path / "config.json").exists():
            raise FileExistsError(f"{path}: holds a run; choose another folder for experts")
        path.mkdir(parents=True, exist_ok=True)
        about = {"format": FORMAT if storage else PLAIN, "epochs": epochs, "settings": settings}
        if (path / "experts.json").exists():
            store = cls(path)
            has, wanted = ({"epochs": a["epochs"]} | a["settings"] for a in (store.about, about))
            differing = [key for key in {**has, **wanted} if has.get(key) != wanted.get(key)]
            if differing:
                raise ValueError(
                    f"{path}: holds experts with other settings ({', '.join(differing)}); choose another folder"
                )
            return store
        write_json(path / "experts.json", about)
        return cls(path)

    @property
    def settings(self) -> dict[str, Any]:
        """What the experts were trained with."""
        return self.about["settings"]

    @property
    def epochs(self) -> int:
        """E, epochs per expert; there are E + 1 snapshots, where all are kept."""
        return self.about["epochs"]

    @property
    def kept_epochs(self) -> list[int]:
        """The epochs whose snapshots are kept, in their order; E is always one."""
        return list(self._rows)

    @property
    def snapshots(self) -> str:
        """How snapshots are kept: one of ddfast.experts.FORMATS."""
        return self.settings.get("snapshots", WHOLE)

    @property
    def error(self) -> dict[str, float]:
        """How far what is read is from what was trained, relative, the mean and the largest over all experts: of a
        snapshot, and of what the parameters move between neighbouring kept epochs. All zero where nothing is rounded.

        Keys: snapshot_mean, snapshot_max, segment_mean, segment_max.
        """
        errors = [self._about(expert, "error") for expert in range(self.num_experts if self.snapshots != WHOLE else 0)]
        names = [f"{of}_{how}" for of in ("snapshot", "segment") for how in ("mean", "max")]
        return {
            name: (max if name.endswith("max") else _mean)([error[name] for error in errors] or [0.0]) for name in names
        }

    @property
    def num_experts(self) -> int:
        """How many experts are stored, counted from expert 0."""
        count = 0
        while self._file(count).exists():
            count += 1
        return count

    def missing(self, num_experts: int) -> list[int]:
        """Those of the experts 0 … num_experts − 1 that are not stored."""
        return [expert for expert in range(num_experts) if not self._file(expert).exists()]

    @contextmanager
    def claimed(self, expert: int, *, wait: bool) -> Iterator[None]:
        """Hold an expert that is missing, to train it; BlockingIOError where another process does, if not to wait.

        Nothing is held where it is stored meanwhile. The claim goes with the process, however it ends.
        """
        file = self._file(expert)
        with ExitStack() as held:
            if not file.exists():
                held.enter_context(locking(file, wait=wait))
                for path in (self._file(expert), self._unfinished_file(expert)):
                    remove_leftovers(self.path, path.name)
            yield
            if file.exists():
                lock_of(file).unlink(missing_ok=True)  # while it is held: who waits for it finds the expert

    def _file(self, expert: int) -> Path:
        return self.path / f"expert_{expert:04d}.safetensors"

    def room_for(self, experts: int, num_parameters: int) -> str:
        """The bytes that so many more experts will take, for people; OSError where their disk has less free.

        Beside them goes one expert in training, which is kept in float32.
        """
        kept, free = self.settings.get("keep_epochs"), shutil.disk_usage(self.path).free
        size = {"num_parameters": num_parameters, "epochs": self.epochs, "keep_epochs": kept}
        total = predicted_bytes(num_experts=experts, snapshots=self.snapshots, **size)
        if total + predicted_bytes(**size) > free:
            raise OSError(
                f"{self.path}: {experts} experts of {self.epochs} epochs take {words(total)} as {self.snapshots}, "
                f"{words(free)} are free; keep_epochs, other snapshots or fewer experts take less"
            )
        return f"{words(total)} as {self.snapshots} in {self.path}, {words(free)} are free"

    def add(self, expert: int, snapshots: Tensor) -> None:  # [E + 1, P], or those of the kept epochs
        """Store an expert, whole or not at all; what was kept of its unfinished training goes."""
        if snapshots.dim() != 2 or len(snapshots) != len(self._rows):
            raise ValueError(f"snapshots: expected [{len(self._rows)}, P], got {list(snapshots.shape)}")
        snapshots = snapshots.detach().cpu().float().contiguous()
        tensors = self._format.encode(snapshots)

        def read(row: int) -> list[Tensor]:
            return [tensors[name][place] for name, place in self._format.places(row)]

        checksums = [_checksum(read(row)) for row in range(len(snapshots))]
        metadata = {CHECKSUMS: json.dumps(checksums)}
        if self.snapshots != WHOLE:
            about = {CHECKSUMS: checksums, "originals": [_checksum([row]) for row in snapshots]}
            about["error"] = rounding_error(snapshots, lambda row: self._format.decode(read, row))
            metadata = {ABOUT: json.dumps(about)}
        write_safetensors(self._file(expert), tensors, metadata)
        self._unfinished_file(expert).unlink(missing_ok=True)

    def snapshot(self, expert: int, epoch: int) -> Tensor:  # float32 [P], on the CPU
        """The parameters of an expert after an epoch, the only bytes that are read, or with the one or two snapshots
        that it is the difference from.

        Errors: ValueError that names the file, for one that is truncated, altered or of another program, or an epoch
        that was not kept.
        """
        path = self._file(expert)
        if not path.exists():
            raise ValueError(f"{self.path}: expected an expert from 0 to {self.num_experts - 1}, got {expert}")
        if not 0 <= epoch <= self.epochs:
            raise ValueError(f"{self.path}: expected an epoch from 0 to {self.epochs}, got {epoch}")
        if epoch not in self._rows:
            raise ValueError(f"{self.path}: the snapshots of epoch {epoch} were not kept, {self.words_of_kept()} were")
        snapshot = self._read(expert, lambda file: self._format.decode(self._reader(file, expert), self._rows[epoch]))
        if not snapshot.isfinite().all():
            raise ValueError(f"{path}: the snapshot of epoch {epoch} holds values that are not finite")
        return snapshot

    def state_dict(self, expert: int, epoch: int | None = None, dataset: Any = None) -> dict[str, Tensor]:
        """The parameters of an expert after an epoch by their names, for `load_state_dict` of its network.

        Names are those of ddfast's networks; of the ConvNet they are the field's (features.0.weight …). Statistics of
        batch norm, which snapshots do not hold, are taken anew over all training images.

        Args:
            expert: from 0.
            epoch: None for the last.
            dataset: what the experts were trained on, as load_dataset takes it; None for the recorded name.

        Errors: as `snapshot`; ValueError for another data set than the experts' own.
        """
        snapshot = self.snapshot(expert, self.epochs if epoch is None else epoch)
        return state_dict(snapshot, self.settings, self.path, dataset)

    def note(self, name: str, value: Any) -> None:
        """Keep something that was found out about the experts, as about[name]; it is no setting."""
        if self.about.get(name) != value:
            self.about[name] = value
            write_json(self.path / "experts.json", self.about)

    def words_of_kept(self) -> str:
        """The kept epochs, for people."""
        first, last = self.settings.get("keep_epochs", (0, self.epochs))
        beside = "" if last == self.epochs else f" and {self.epochs}"
        return f"those of epochs {first} to {last}{beside}"

    def _reader(self, file: Any, expert: int) -> Callable[[int], list[Tensor]]:
        """What reads the stored rows of an open file, and checks each when it is first read."""
        checksums, epochs = _said(file, CHECKSUMS), self.kept_epochs

        def read(row: int) -> list[Tensor]:
            pieces = [file.get_slice(name)[place] for name, place in self._format.places(row)]
            if (expert, row) not in self._checked:
                if len(checksums) != len(epochs) or checksums[row] != _checksum(pieces):
                    raise _DamagedError(f"the snapshot of epoch {epochs[row]} is damaged: its checksum differs")
                self._checked.add((expert, row))
            return pieces

        return read

    def _read(self, expert: int, read: Callable[[Any], Any]) -> Any:
        """What `read` finds in an expert's file; errors are those of `not_whole`."""
        from safetensors import SafetensorError, safe_open

        path = self._file(expert)
        try:
            with safe_open(path, framework="pt") as file:
                return read(file)
        except _DamagedError as error:
            raise ValueError(f"{path}: {error}") from None
        except (SafetensorError, *UNREADABLE) as error:
            raise not_whole(path, "trajectory file", error) from None

    def _about(self, expert: int, name: str) -> Any:
        return self._read(expert, lambda file: _said(file, name))

    def segment(self, expert: int, start_epoch: int, target_epoch: int) -> tuple[Tensor, Tensor]:  # [P], [P]
        """The start and the target of one match; ValueError where they are equal, for their distance is divided by."""
        start, target = self.snapshot(expert, start_epoch), self.snapshot(expert, target_epoch)
        equal = (start - target).square().sum() == 0  # or nearer than their type can square
        if self.snapshots != WHOLE and not equal:  # rounded from different rows, equal ones may differ
            originals = self._about(expert, "originals")
            equal = originals[self._rows[start_epoch]] == originals[self._rows[target_epoch]]
        if equal:
            raise ValueError(
                f"{self._file(expert)}: the snapshots of epochs {start_epoch} and {target_epoch} are equal: "
                f"there is no trajectory to match (snapshots that were not copied when they were taken are all the "
                f"last one; a rate of 0 trains nothing)"
            )
        return start, target

    def keep_unfinished(self, expert: int, state: dict[str, Tensor]) -> None:
        """Keep what an expert in training needs to go on later."""
        write_tensors(self._unfinished_file(expert), state, {"expert": expert, "epochs": self.epochs})

    def unfinished(self, expert: int) -> dict[str, Tensor] | None:
        """What `keep_unfinished` kept last; None where there is nothing, or nothing whole."""
        file = self._unfinished_file(expert)
        try:
            state, about = read_tensors(file)
            if about != {"expert": expert, "epochs": self.epochs}:
                raise ValueError("of another training, or without a checksum")
        except FileNotFoundError:
            return None
        except ValueError as error:
            log.warning("%s: damaged, so expert %d is trained again (%s)", file, expert, error)
            return None
        return state

    def _unfinished_file(self, expert: int) -> Path:
        return self.path / f"unfinished_{expert:04d}.safetensors"


class _DamagedError(Exception):
    """Stored bytes are not those that were written."""


def _said(file: Any, name: str) -> Any:
    """An entry of an open file's metadata."""
    metadata = file.metadata()
    return json.loads(metadata[ABOUT])[name] if ABOUT in metadata else json.loads(metadata[name])


def _checksum(pieces: list[Tensor]) -> str:  # what is stored of a snapshot
    digest = hashlib.sha256()
    for piece in pieces:
        digest.update(piece.contiguous().view(torch.uint8).numpy())
    return digest.hexdigest()[:16]


def _mean(values: list[float]) -> float:
    return sum(values) / len(values)
