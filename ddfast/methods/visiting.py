"""A set of which an outer step uses a part: it stays in host memory, and the images of a step visit the device."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ddfast.methods.descent import Learned


class VisitingRows:
    """Tensors [I, …] on the CPU, of which U rows at a time lie in tensors [U, …] on the device, to be learned there.

    Momentum moves an image on in steps that do not use it: x − rate (m + m² + … + mᵏ) v after k of them, which is
    made up for when it visits next, so that the result is that of SGD on all images in every step.
    """

    def __init__(
        self,
        all_rows: Sequence[Tensor],  # [I, …] each: images, labels
        visitors: Sequence[Tensor],  # [U, …] each, on the device
        learned: Sequence[Learned],  # some of `visitors` among others, by SGD
        slots: Sequence[Sequence[Tensor]],  # of `learned`
    ):
        self.rows = [tensor.detach().clone() for tensor in all_rows]
        self._visitors = visitors
        count = len(self.rows[0])
        self._learned: list[tuple[int, Tensor, Tensor, Learned]] = []  # its place, velocity [I, …], its visitor
        for entry, (velocity, *_) in zip(learned, slots, strict=True):
            places = [i for i, visitor in enumerate(visitors) if visitor is entry.tensor]
            if places:
                (place,) = places
                self._learned.append((place, torch.zeros_like(self.rows[place]), velocity, entry))
        self._updates = torch.zeros((), dtype=torch.int64)  # made so far
        self._seen = torch.zeros(count, dtype=torch.int64)  # of them, before a row's last visit
        self._chosen: Tensor | None = None  # int64 [U], the rows on the device
        self._before: list[Tensor] = []  # what `leave` overwrote since the mark
        self._update: list[Tensor] = []  # what the last update overwrote, until a loss after it was finite
        self._marked_update: list[Tensor] = []

    @torch.no_grad()
    def visit(self, batches: Tensor) -> Tensor:  # int64 [T, B], U = T B distinct rows -> int64 [T, B]
        """Bring rows to the device; the batches as places there."""
        self._chosen = chosen = batches.flatten().cpu()
        values = [rows[chosen] for rows in self.rows]
        for place, velocities, on_device, entry in self._learned:
            values[place], velocity = self._moved_on(values[place], velocities[chosen], self._seen[chosen], entry)
            on_device.copy_(velocity)
        for visitor, value in zip(self._visitors, values, strict=True):
            visitor.copy_(value)
        return torch.arange(len(chosen), device=batches.device).view_as(batches)

    @torch.no_grad()
    def leave(self, updated: bool, skipped: bool) -> None:
        """Take them back, after an update, or one that was left out, be it (skipped) for it was not finite."""
        chosen = self._chosen
        self._before = [chosen, self._updates.clone(), *(tensor[chosen] for tensor in self._by_row)]
        if not skipped:
            self._update = self._before if updated else []
        self._updates += int(updated)
        visitors = [*self._visitors, *(on_device for _, _, on_device, _ in self._learned), self._updates]
        for tensor, visitor in zip(self._by_row, visitors, strict=True):
            tensor[chosen] = visitor.detach().cpu()

    @property
    def _by_row(self) -> list[Tensor]:
        return [*self.rows, *(velocities for _, velocities, _, _ in self._learned), self._seen]

    def _moved_on(
        self, x: Tensor, v: Tensor, seen: Tensor, entry: Learned
    ) -> tuple[Tensor, Tensor]:  # rows and their velocities, now
        m = entry.rule.momentum
        share = (m ** (self._updates - seen).double()).to(x.dtype).view(-1, *[1] * (x.dim() - 1))  # mᵏ
        return x - entry.rate * (m * (1 - share) / (1 - m)) * v, share * v

    @torch.no_grad()
    def now(self) -> list[Tensor]:  # [I, …] each
        """All rows as they are."""
        rows = list(self.rows)
        for place, velocities, _, entry in self._learned:
            rows[place], _ = self._moved_on(rows[place], velocities, self._seen, entry)
        return rows

    def mark(self) -> None:
        """What `undo` goes back to."""
        self._before, self._marked_update = [], self._update

    def undo(self) -> None:
        """Go back to the mark, of one visit at most."""
        self._write_back(self._before)
        self._before, self._update = [], self._marked_update

    @torch.no_grad()
    def undo_update(self) -> None:
        """Go back to before the last update, where no loss was finite since it. Of rows that visited later, k is −1
        then, and the same formula takes their momentum's last step back."""
        self._write_back(self._update)
        self._update = []

    def _write_back(self, before: list[Tensor]) -> None:
        if before:
            chosen, updates, *values = before
            self._updates.copy_(updates)
            for tensor, value in zip(self._by_row, values, strict=True):
                tensor[chosen] = value

    def state_dict(self) -> dict[str, Any]:
        """The tensors themselves: to be saved, not to be kept."""
        return {"rows": [*self._by_row, self._updates], "update": self._update}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a `state_dict`."""
        for tensor, value in zip([*self._by_row, self._updates], state["rows"], strict=True):
            tensor.copy_(value)
        self._update = state["update"]
        self.mark()
