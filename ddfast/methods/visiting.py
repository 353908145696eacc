"""A set of which an outer step uses a part: it stays in host memory, and the images of a step visit the device."""

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from ddfast.methods.descent import Learned, Verdict
from ddfast.runtime.devices import to_device


@dataclass(frozen=True)
class Visit:
    """What a step leaves behind of the rows that it used, until they are written back."""

    chosen: Tensor  # int64 [U], which rows
    values: dict[int, Tensor]  # [U, …] each, that the step's loss was computed with
    velocities: dict[int, Tensor]  # [U, …], of those that are learned, after the step
    moving: bool  # whether an update is still to be added to the values, as in descent.Point
    seen: int  # updates so far, this one too


@dataclass(frozen=True)
class Rows:
    """All rows. Writing a Visit back may be interrupted and done again; nothing else changes a tensor in place."""

    values: dict[int, Tensor]  # [I, …] each
    velocities: dict[int, Tensor]  # [I, …], of those that are learned
    seen: Tensor  # int64 [I], updates before and with a row's last one
    moving: Tensor  # bool [I]: the row's last update is still to be added to it
    updates: int = 0  # made so far
    last: Visit | None = None  # that is not written back yet


class VisitingRows:
    """Tensors [I, …] on the CPU, of which U rows at a time visit the device, to be learned there. All by their places.

    Momentum moves an image on in steps that do not use it: x − rate (m + m² + … + mᵏ) v after k of them, which is
    made up for when it visits next, so that the result is that of SGD on all images in every step.
    """

    def __init__(
        self,
        values: dict[int, Tensor],  # [I, …] each; given up, for rows are written back in place
        learned: dict[int, Learned],  # those of them that are learned, by SGD
        device: torch.device,
    ) -> None:
        count = len(next(iter(values.values())))
        velocities = {place: torch.zeros_like(values[place]) for place in learned}
        seen, moving = torch.zeros(count, dtype=torch.int64), torch.zeros(count, dtype=torch.bool)
        self.rows = Rows(values, velocities, seen, moving)
        self.learned, self._device = learned, device
        self._visiting: Visit | None = None  # as they were brought

    @torch.no_grad()
    def visit(
        self,
        batches: Tensor,  # int64 [T, B], U = T B distinct rows
    ) -> tuple[Tensor, dict[int, Tensor], dict[int, Tensor]]:  # int64 [T, B], [U, …] each
        """Bring rows to the device: the batches as places there, the rows as they are now, and their velocities."""
        if self.rows.last is not None:
            _write(self.rows, self.rows.last)
            self.rows = replace(self.rows, last=None)
        rows, chosen = self.rows, batches.flatten()
        values, velocities = {place: tensor[chosen] for place, tensor in rows.values.items()}, {}
        steps, moving = rows.updates - rows.seen[chosen], rows.moving[chosen]
        for place, entry in self.learned.items():
            velocity = rows.velocities[place][chosen]
            values[place], velocities[place] = _moved_on(values[place], velocity, steps, moving, entry)
        self._visiting = Visit(chosen, values, velocities, False, rows.updates)
        brought, moved = (
            {place: to_device(tensor, self._device) for place, tensor in tensors.items()}
            for tensors in (values, velocities)
        )
        return torch.arange(len(chosen)).view_as(batches), brought, moved

    def leave(self, verdict: Verdict, velocities: dict[int, Tensor], changed: dict[int, Tensor]) -> None:
        """Take note of an update: the velocities after it, and what else was changed, by their places, on the CPU."""
        visit, self._visiting = self._visiting, None
        if not verdict.finite:
            return
        if verdict.updated:
            visit = Visit(visit.chosen, visit.values | changed, velocities, True, visit.seen + 1)
        self.rows = replace(self.rows, updates=visit.seen, last=visit)

    @torch.no_grad()
    def now(self) -> dict[int, Tensor]:  # [I, …] each
        """All rows as they are."""
        rows = self._written()
        values = dict(rows.values)
        for place, entry in self.learned.items():
            values[place], _ = _moved_on(
                values[place], rows.velocities[place], rows.updates - rows.seen, rows.moving, entry
            )
        return values

    @torch.no_grad()
    def restore(self) -> None:
        """Go back to before the last update; momentum begins anew."""
        rows = self._written()
        undone = rows.moving & (rows.seen == rows.updates)
        updates = rows.updates - 1
        steps = (updates - rows.seen).clamp(min=0)  # 0 of what is undone
        values, velocities = dict(rows.values), {}
        for place, entry in self.learned.items():
            values[place], _ = _moved_on(values[place], rows.velocities[place], steps, rows.moving & ~undone, entry)
            velocities[place] = torch.zeros_like(values[place])
        seen, moving = torch.full_like(rows.seen, updates), torch.zeros_like(rows.moving)
        self.rows = Rows(values, velocities, seen, moving, updates)

    def _written(self) -> Rows:
        """The rows with what the last visit left; copies where there is something to write."""
        rows = self.rows
        if rows.last is None:
            return rows
        rows = replace(
            rows,
            values={place: tensor.clone() for place, tensor in rows.values.items()},
            velocities={place: tensor.clone() for place, tensor in rows.velocities.items()},
            seen=rows.seen.clone(),
            moving=rows.moving.clone(),
        )
        _write(rows, rows.last)
        return rows

    def state_dict(self) -> dict[str, Any]:
        """The tensors themselves: to be saved, not to be kept."""
        state = vars(self.rows).copy()
        return {**state, "last": None if state["last"] is None else vars(state["last"]).copy()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a `state_dict`."""
        rows = self.rows
        mine = [*rows.values.values(), *rows.velocities.values(), rows.seen, rows.moving]
        theirs = [*state["values"].values(), *state["velocities"].values(), state["seen"], state["moving"]]
        for tensor, value in zip(mine, theirs, strict=True):
            tensor.copy_(value)
        last = None if state["last"] is None else Visit(**state["last"])
        self.rows = replace(rows, updates=state["updates"], last=last)


def _moved_on(
    x: Tensor,  # [N, …]
    v: Tensor,  # like x
    steps: Tensor,  # int64 [N], k
    moving: Tensor,  # bool [N]
    entry: Learned,
) -> tuple[Tensor, Tensor]:  # rows and their velocities, now
    m, column = entry.rule.momentum, (-1, *[1] * (x.dim() - 1))
    x = torch.where(moving.view(column), entry.rule.moved(x, entry.rate, v), x)  # type: ignore[call-arg]  # rows are learned by SGD alone
    share = (m ** steps.double()).to(x.dtype).view(column)  # mᵏ
    return x - entry.rate * (m * (1 - share) / (1 - m)) * v, share * v


@torch.no_grad()
def _write(rows: Rows, visit: Visit) -> None:
    """Write a visit back, in place; the same again changes nothing."""
    for place, value in visit.values.items():
        rows.values[place][visit.chosen] = value
    for place, velocity in visit.velocities.items():
        rows.velocities[place][visit.chosen] = velocity
    rows.moving[visit.chosen] = visit.moving
    rows.seen[visit.chosen] = visit.seen
