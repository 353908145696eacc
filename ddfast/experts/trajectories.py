"""TrajectoryStore: the parameter snapshots of trained experts, one file per expert, read one snapshot at a time."""

import hashlib
import json
import logging
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ddfast.files import read_json, read_tensors, replacing, write_json, write_tensors

log = logging.getLogger("ddfast")

FORMAT = "ddfast-trajectories-1"


class TrajectoryStore:
    """A folder of experts: `experts.json` says what they are, `expert_0000.safetensors` … hold snapshots [E + 1, P].

    Snapshot 0 is the initialisation, snapshot e the parameters after epoch e. Files are mapped, never read whole, and
    each snapshot is checked against its checksum when it is first read.
    """

    def __init__(self, path: str | Path):
        self.path = Path(path)
        about = self.path / "experts.json"
        if not about.is_file():
            raise FileNotFoundError(f"{self.path}: no trained experts here (experts.json is missing)")
        self.about: dict[str, Any] = read_json(about)
        whole = isinstance(self.about, dict) and isinstance(self.about.get("settings"), dict)
        whole = whole and isinstance(self.settings.get("preprocessing") or {}, dict)
        if not whole or self.about.get("format") != FORMAT or type(self.about.get("epochs")) is not int:
            raise ValueError(f"{about}: not a ddfast trajectory store")
        self._checked: set[tuple[int, int]] = set()  # snapshots whose checksum was right

    @classmethod
    def create(cls, path: str | Path, settings: dict[str, Any], epochs: int) -> "TrajectoryStore":
        """A store in `path` for experts of these settings: the one that is there, or a new, empty one.

        Errors: ValueError where the folder holds experts of other settings.
        """
        path = Path(path)
        path.mkdir(parents=True, exist_ok=True)
        about = {"format": FORMAT, "epochs": epochs, "settings": json.loads(json.dumps(settings))}
        if (path / "experts.json").exists():
            store = cls(path)
            has, wanted = ({"epochs": a["epochs"], **a["settings"]} for a in (store.about, about))
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
        """E, epochs per expert; there are E + 1 snapshots."""
        return self.about["epochs"]

    @property
    def num_experts(self) -> int:
        """How many experts are stored, counted from expert 0."""
        count = 0
        while self._file(count).exists():
            count += 1
        return count

    def _file(self, expert: int) -> Path:
        return self.path / f"expert_{expert:04d}.safetensors"

    def add(self, expert: int, snapshots: Tensor) -> None:  # [E + 1, P]
        """Store an expert, whole or not at all; what was kept of its unfinished training goes."""
        if snapshots.dim() != 2 or len(snapshots) != self.epochs + 1:
            raise ValueError(f"snapshots: expected [{self.epochs + 1}, P], got {list(snapshots.shape)}")
        snapshots = snapshots.detach().cpu().contiguous()
        checksums = [_checksum(row) for row in snapshots]
        _save(self._file(expert), {"snapshots": snapshots}, {"sha256": json.dumps(checksums)})
        self._unfinished_file(expert).unlink(missing_ok=True)

    def snapshot(self, expert: int, epoch: int) -> Tensor:  # [P], on the CPU
        """The parameters of an expert after an epoch, the only bytes that are read.

        Errors: ValueError that names the file, for one that is truncated, altered or of another program.
        """
        from safetensors import SafetensorError, safe_open

        path = self._file(expert)
        if not path.exists():
            raise ValueError(f"{self.path}: expected an expert from 0 to {self.num_experts - 1}, got {expert}")
        if not 0 <= epoch <= self.epochs:
            raise ValueError(f"{self.path}: expected an epoch from 0 to {self.epochs}, got {epoch}")
        try:
            with safe_open(path, framework="pt") as file:
                snapshot = file.get_slice("snapshots")[epoch]
                checksums = json.loads(file.metadata()["sha256"])
        except (SafetensorError, OSError, KeyError, TypeError, ValueError, IndexError, RuntimeError) as error:
            raise ValueError(f"{path}: not a whole trajectory file ({error})") from None
        if snapshot.dim() != 1 or not snapshot.is_floating_point() or not isinstance(checksums, list):
            raise ValueError(f"{path}: not a whole trajectory file (expected snapshots [E + 1, P])")
        if (expert, epoch) not in self._checked:
            if len(checksums) != self.epochs + 1 or checksums[epoch] != _checksum(snapshot):
                raise ValueError(f"{path}: the snapshot of epoch {epoch} is damaged: its checksum differs")
            self._checked.add((expert, epoch))
        return snapshot

    def segment(self, expert: int, start_epoch: int, target_epoch: int) -> tuple[Tensor, Tensor]:  # [P], [P]
        """The start and the target of one match; ValueError where they are equal, for their distance is divided by."""
        start, target = self.snapshot(expert, start_epoch), self.snapshot(expert, target_epoch)
        if start.equal(target):
            raise ValueError(
                f"{self._file(expert)}: the snapshots of epochs {start_epoch} and {target_epoch} are equal: "
                f"there is no trajectory to match"
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
        except (ValueError, OSError) as error:
            log.warning("%s: not whole, expert %d is trained anew (%s)", file, expert, error)
            return None
        return state

    def _unfinished_file(self, expert: int) -> Path:
        return self.path / f"unfinished_{expert:04d}.safetensors"


def _checksum(snapshot: Tensor) -> str:  # [P]
    return hashlib.sha256(snapshot.contiguous().view(torch.uint8).numpy()).hexdigest()[:16]


def _save(path: Path, tensors: dict[str, Tensor], metadata: dict[str, str]) -> None:
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    with replacing(path) as temporary:
        try:
            save_file(tensors, temporary, metadata)
        except SafetensorError as error:
            raise OSError(str(error)) from None
