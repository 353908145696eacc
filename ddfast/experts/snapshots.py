"""How snapshots lie in an expert's file: which epochs are kept, whole or rounded, and how many bytes that takes."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad

from ddfast.runtime.arguments import expect_one_of, expect_whole

BLOCK = 256  # neighbouring parameters that share a scale
TINY = torch.finfo(torch.float32).tiny
WHOLE = "float32"


@dataclass(frozen=True)
class Format:
    """Snapshots of one expert as rows, each kept as it is, or as its rounded difference from an earlier row.

    Differences are whole numbers times a scale, their largest in 256 neighbouring parameters by the largest number. The
    first row is whole; every `sixteen`-th one is its difference from the first in 16 bits, the others are theirs from
    the last such row in 8. None: all rows are whole. Reading one row so needs at most two others.
    """

    sixteen: int | None = None

    def base(self, row: int) -> int | None:
        """The row that a row is the difference from; None for a whole one."""
        if self.sixteen is None or row == 0:
            return None
        return row - row % self.sixteen if row % self.sixteen else 0

    def places(self, row: int) -> list[tuple[str, int]]:
        """The tensors of the file that hold a row, and where in them."""
        if self.base(row) is None:
            return [("snapshots", row)]
        sixteens, rest = divmod(row, self.sixteen)
        bits, place = (8, row - sixteens - 1) if rest else (16, sixteens - 1)
        return [(f"differences{bits}", place), (f"scales{bits}", place)]

    def encode(self, snapshots: Tensor) -> dict[str, Tensor]:  # float32 [n, P] -> tensors of n rows in all
        """What the file holds; ValueError where there are numbers that are not finite, and are to be rounded."""
        if self.sixteen is None:
            return {"snapshots": snapshots}
        if not snapshots.isfinite().all():
            raise ValueError("snapshots: expected finite numbers, for they are to be rounded; float32 keeps any")
        rows: dict[str, list[Tensor]] = {"snapshots": [snapshots[0]]}

        def read(row: int) -> list[Tensor]:
            return [rows[name][place] for name, place in self.places(row)]

        for row in range(1, len(snapshots)):
            bits = torch.int8 if row % self.sixteen else torch.int16
            pieces = _rounded(snapshots[row] - self.decode(read, self.base(row)), bits)
            for (name, _), piece in zip(self.places(row), pieces, strict=True):
                rows.setdefault(name, []).append(piece)
        return {name: torch.stack(pieces) for name, pieces in rows.items()}

    def decode(self, read: Callable[[int], list[Tensor]], row: int) -> Tensor:  # float32 [P]
        """A snapshot; `read` gives what is at the places of a row."""
        pieces, base = read(row), self.base(row)
        if base is None:
            return pieces[0]
        numbers, scales = pieces  # [P], [P / 256]
        return self.decode(read, base) + numbers * scales.repeat_interleave(BLOCK)[: len(numbers)]

    def predicted_bytes(self, rows: int, num_parameters: int) -> int:
        """Bytes of the file of one expert, at most, and a few hundred less at least."""
        total = 1024 + 64 * rows  # its header: names, shapes, checksums
        scales = 4 * -(-num_parameters // BLOCK)
        for row in range(rows):
            if self.base(row) is None:
                total += 4 * num_parameters
            else:
                total += scales + num_parameters * (1 if row % self.sixteen else 2)
        return total


# 16 bits come within 1e-4 of what an epoch moves, 8 within a few hundredths. At two bytes bfloat16 would be off by
# several hundredths, for it rounds the parameters and not what they move; compressing without loss saves a fifth.
FORMATS = {WHOLE: Format(), "delta16": Format(sixteen=1), "delta8": Format(sixteen=4)}


def _rounded(difference: Tensor, bits: torch.dtype) -> tuple[Tensor, Tensor]:  # [P] -> whole [P], float32 [P / 256]
    most = torch.iinfo(bits).max
    blocks = pad(difference, (0, -len(difference) % BLOCK)).view(-1, BLOCK)
    scales = (blocks.abs().amax(1) / most).clamp_min(TINY)
    if not scales.isfinite().all():
        raise ValueError("snapshots: their differences are too large for float32; float32 snapshots keep any")
    numbers = (blocks / scales[:, None]).round().clamp(-most, most)
    return numbers.flatten()[: len(difference)].to(bits), scales


def kept_epochs(epochs: int, keep_epochs: tuple[int, int] | list[int] | None = None) -> list[int]:
    """The epochs whose snapshots are kept, of 0 … `epochs`: from the first to the last of `keep_epochs`, and the last
    of all, which labels and the comparison with full data read; None for all. ValueError for what is no such pair."""
    if keep_epochs is None:
        return list(range(epochs + 1))
    whole = isinstance(keep_epochs, tuple | list) and [type(epoch) for epoch in keep_epochs] == [int, int]
    if not whole or not 0 <= keep_epochs[0] <= keep_epochs[1] <= epochs:
        raise ValueError(f"keep_epochs: expected a first and a last epoch from 0 to {epochs}, got {keep_epochs!r}")
    first, last = keep_epochs
    return sorted({*range(first, last + 1), epochs})


def storage_settings(epochs: int, keep_epochs: tuple[int, int] | None, snapshots: str) -> dict[str, Any]:
    """What a store records of them: nothing of what is the default, so that stores from before they were stay valid.

    Errors: ValueError for epochs that are not there, or an unknown format.
    """
    expect_one_of("snapshots", snapshots, FORMATS)
    kept = kept_epochs(epochs, keep_epochs)
    recorded = {} if len(kept) == epochs + 1 else {"keep_epochs": list(keep_epochs)}
    return recorded | ({} if snapshots == WHOLE else {"snapshots": snapshots})


def predicted_bytes(
    num_parameters: int,
    *,
    epochs: int,
    num_experts: int = 1,
    keep_epochs: tuple[int, int] | None = None,
    snapshots: str = WHOLE,
) -> int:
    """What a store will take on disk, at most; a kilobyte or so less for each expert at least.

    Args are those of `train_experts`; num_parameters is P of the network. Errors: ValueError as there.
    """
    expect_one_of("snapshots", snapshots, FORMATS)
    expect_whole(num_parameters=num_parameters, num_experts=num_experts)
    rows = len(kept_epochs(epochs, keep_epochs))
    return num_experts * FORMATS[snapshots].predicted_bytes(rows, num_parameters)


def rounding_error(snapshots: Tensor, decoded: Callable[[int], Tensor]) -> dict[str, float]:  # [n, P]; row -> [P]
    """How far what is read is from what was stored, in float64 norms: of each snapshot, ‖θ' − θ‖/‖θ‖, and of what
    neighbouring ones move, ‖(θ'₂ − θ'₁) − (θ₂ − θ₁)‖/‖θ₂ − θ₁‖, where they move; the mean and the largest of each."""
    of_snapshots, of_segments, before = [], [], None
    for row, snapshot in enumerate(snapshots.double()):
        error = decoded(row).double() - snapshot
        of_snapshots.append(_ratio(error, snapshot))
        if before is not None and not snapshot.equal(before[0]):
            of_segments.append(_ratio(error - before[1], snapshot - before[0]))
        before = snapshot, error
    named = {"snapshot": of_snapshots, "segment": of_segments or [0.0]}
    return {
        f"{name}_{how}": of(ratios) for name, ratios in named.items() for how, of in (("mean", _mean), ("max", max))
    }


def _ratio(error: Tensor, whole: Tensor) -> float:
    return (error.norm() / whole.norm()).item() if error.any() else 0.0


def _mean(values: list[float]) -> float:
    return sum(values) / len(values)


def words(size: float) -> str:
    """Bytes, for people."""
    unit, name = next(((u, n) for u, n in ((1e9, "GB"), (1e6, "MB")) if size >= u), (1e3, "kB"))
    return f"{size / unit:.1f} {name}"
