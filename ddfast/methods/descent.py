"""The outer update: what a step learns, by rules that leave out what is not finite. Nothing is changed in place."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor

from ddfast.data.synthetic import LARGEST

LR_FLOOR = 1e-6  # the learned learning rate is projected to at least this


@dataclass(frozen=True)
class Momentum:
    """SGD: v ← momentum · v + g,  x ← x − rate · v."""

    momentum: float
    num_slots: ClassVar[int] = 1

    def slots(self, x: Tensor) -> tuple[Tensor, ...]:
        """What is kept beside x from one update to the next."""
        return (torch.zeros_like(x),)

    def follow(self, g: Tensor, v: Tensor) -> tuple[Tensor, ...]:
        """The slots after a gradient."""
        return ((self.momentum * v).add_(g),)

    def moved(self, x: Tensor, rate: float, v: Tensor) -> Tensor:
        """x after the update that led to these slots."""
        step = rate * v
        return torch.sub(x, step, out=step)


@dataclass(frozen=True)
class Adam:
    """Adam (Kingma & Ba 2015) with ε = 1e-8."""

    betas: tuple[float, float]
    num_slots: ClassVar[int] = 3

    def slots(self, x: Tensor) -> tuple[Tensor, ...]:
        """Both moments, and how many updates they have seen."""
        return torch.zeros_like(x), torch.zeros_like(x), x.new_zeros(())

    def follow(self, g: Tensor, m: Tensor, s: Tensor, t: Tensor) -> tuple[Tensor, ...]:
        """The slots after a gradient."""
        a, b = self.betas
        return (a * m).add_((1 - a) * g), (b * s).add_(g.square().mul_(1 - b)), t + 1

    def moved(self, x: Tensor, rate: float, m: Tensor, s: Tensor, t: Tensor) -> Tensor:
        """x after the update that led to these slots."""
        a, b = self.betas
        scale = (s / (1 - b**t)).sqrt_().add_(1e-8)
        step = (m / (1 - a**t)).mul_(rate).div_(scale)
        return torch.sub(x, step, out=step)


class Learned(NamedTuple):
    """How a tensor is learned: at which rate, by which rule."""

    rate: float
    rule: Momentum | Adam


class Verdict(NamedTuple):
    """What came of an update, on the host."""

    loss: float
    lr: float  # α after it; 0 where none is learned
    finite: bool  # loss and gradient were
    updated: bool
    skipped: bool  # left out, for it was not finite or too large
    floored: bool  # α was projected
    gated: bool  # left out, for the loss was above the threshold

    @classmethod
    def read(cls, packed: Sequence[float]) -> "Verdict":
        """From the numbers that `propose` packs."""
        loss, lr, *flags = packed
        return cls(loss, lr, *map(bool, flags))


@dataclass(frozen=True)
class Point:
    """Where a descent is. Its tensors are never changed in place: who holds a Point can go back to it.

    The last update is kept as not yet made: `tensors` are those that the last finite loss was computed with, and if
    `moving`, what is learned is now `rule.moved` of them. So going back to them after divergence needs no copy.
    """

    tensors: tuple[Tensor | None, ...]  # None for what is kept elsewhere
    slots: tuple[tuple[Tensor, ...] | None, ...]
    moving: bool = False
    average: Tensor | None = None  # of the first tensor, before the last update
    behind: int = 0  # how often it has not followed yet
    skipped: int = 0
    floored: int = 0
    gated: int = 0


class Descent:
    """One update after another of what an outer step learns: images, the student's learning rate α, soft labels.

    An update whose loss, gradient or result is not finite, or whose result is larger than 1e9, changes nothing, and is
    counted; so is one whose loss is above `threshold` (DATM's gate). α ← max(α, 1e-6) after it. With `ema_decay` β an
    average of the first tensor follows: ema ← β ema + (1 − β) x, after every call (FTD).

    `propose` computes an update without waiting for the device, so that a CUDA graph can hold it; `commit` makes it, in
    one assignment, from what the host has read of it.
    """

    def __init__(
        self,
        tensors: Sequence[Tensor],  # as they begin
        learned: Sequence[Learned],  # how each of them is learned
        at: int | None,  # the place of α among them; None: not learned
        threshold: float | None = None,
        ema_decay: float | None = None,
        elsewhere: Sequence[int] = (),  # the places of those that VisitingRows keep
    ) -> None:
        self.learned, self._at, self._threshold, self._decay = list(learned), at, threshold, ema_decay
        self._elsewhere = set(elsewhere)
        tensors = [tensor.detach() for tensor in tensors]
        slots = [entry.rule.slots(tensor) for entry, tensor in zip(learned, tensors, strict=True)]
        self.point = Point(self._kept(tensors), self._kept(slots), average=None if ema_decay is None else tensors[0])

    def _kept(self, values: Sequence[Any]) -> tuple[Any, ...]:
        return tuple(None if place in self._elsewhere else value for place, value in enumerate(values))

    @torch.no_grad()
    def now(self) -> list[Tensor | None]:
        """What is learned, as it is now; None for what is kept elsewhere."""
        values = zip(range(len(self.learned)), self.point.tensors, self.point.slots, strict=True)
        return [x if x is None or not self.point.moving else self._moved(place, x, slots) for place, x, slots in values]

    def _moved(self, place: int, x: Tensor, slots: Sequence[Tensor]) -> Tensor:
        rate, rule = self.learned[place]
        x = rule.moved(x, rate, *slots)
        return x.clamp_(min=LR_FLOOR) if place == self._at else x

    def average(self) -> Tensor | None:
        """The average as it is now; None where none is kept."""
        return None if self._decay is None else self._followed(self.now()[0])

    @torch.no_grad()
    def _followed(self, x: Tensor) -> Tensor:
        average = self.point.average
        for _ in range(self.point.behind):
            average = average.lerp(x, 1 - self._decay)
        return average

    @torch.no_grad()
    def propose(
        self,
        now: Sequence[Tensor],
        slots: Sequence[Sequence[Tensor]],  # of each
        loss: Tensor,  # []
        gradients: list[Tensor],  # of `now`; given up
    ) -> tuple[Tensor, list[tuple[Tensor, ...]]]:  # float64 [7], what Verdict.read takes; the slots after the update
        """What an update comes to."""
        finite, after, within = _finite([loss, *gradients]), [], []
        below, lr = torch.zeros_like(finite), torch.zeros_like(loss)  # where no learning rate is learned
        for place, x in enumerate(now):
            rate, rule = self.learned[place]
            after.append(rule.follow(gradients[place], *slots[place]))
            gradients[place] = None
            if place == self._at:
                lr = rule.moved(x, rate, *after[place])
                below, lr = lr < LR_FLOOR, lr.clamp(min=LR_FLOOR)
                within.append(lr.abs() <= LARGEST)
            else:
                within.append((_ends(rule.moved(x, rate, *after[place])).abs() <= LARGEST).all())
        gated = finite & (loss > self._threshold) if self._threshold is not None else torch.zeros_like(finite)
        computable = finite & torch.stack(within).all() & _finite([slot for slots in after for slot in slots])
        updated = computable & ~gated
        lr = lr if self._at is None else torch.where(updated, lr, now[self._at])
        flags = [finite, updated, ~computable & ~gated, updated & below, gated]
        return torch.stack([number.double() for number in (loss, lr, *flags)]), after

    def commit(self, now: Sequence[Tensor], slots: Sequence[tuple[Tensor, ...]], verdict: Verdict) -> None:
        """Make an update, of which `now` was the beginning and `slots` is the end."""
        point = self.point
        if not verdict.finite:
            self.point = replace(point, behind=point.behind + 1, skipped=point.skipped + 1)
            return
        self.point = Point(
            self._kept([x.detach() for x in now]),
            self._kept(slots) if verdict.updated else point.slots,
            verdict.updated,
            None if self._decay is None else self._followed(now[0].detach()),
            1,
            point.skipped + verdict.skipped,
            point.floored + verdict.floored,
            point.gated + verdict.gated,
        )

    def restore(self) -> None:
        """Go back to where loss and gradient were finite last; momentum begins anew, for the old one led away."""
        if self.point.moving:
            slots = [
                None if x is None else entry.rule.slots(x)
                for entry, x in zip(self.learned, self.point.tensors, strict=True)
            ]
            self.point = replace(self.point, slots=tuple(slots), moving=False)
        self.point = replace(self.point, behind=0)

    @torch.no_grad()
    def set_rate(self, place: int, rate: float) -> None:
        """Learn a tensor at another rate from here on."""
        if rate != self.learned[place].rate:
            self.point = replace(self.point, tensors=self._kept(self.now()), moving=False)
            self.learned[place] = self.learned[place]._replace(rate=rate)

    @torch.no_grad()
    def put(self, place: int, value: Tensor) -> None:
        """Set a tensor to another value; its momentum stays."""
        now = self.now()
        now[place] = value
        self.point = replace(self.point, tensors=self._kept(now), moving=False)

    def learn(self, place: int, rate: float, rule: Momentum | Adam) -> None:
        """Learn a tensor by another rule from the beginning on."""
        self.learned[place] = Learned(rate, rule)
        slots = list(self.point.slots)
        slots[place] = rule.slots(self.point.tensors[place])
        self.point = replace(self.point, slots=tuple(slots))

    def counts(self) -> dict[str, int]:
        """Updates left out as not finite, projections of α, and updates above the threshold, so far."""
        point = self.point
        named = {"skipped": point.skipped, "floored": point.floored}
        return named if self._threshold is None else {**named, "gated": point.gated}

    def state_dict(self) -> dict[str, Any]:
        """All that the next update depends on."""
        return vars(self.point).copy()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a `state_dict`, on this device; ValueError for that of another kind of descent."""
        point = Point(**{name: state[name] for name in Point.__dataclass_fields__})
        if _shapes(point) != _shapes(self.point):
            raise ValueError(
                "checkpoint.pt: written by another version of ddfast, or for other settings; start the run again"
            )
        there = next(x.device for x in self.point.tensors if x is not None)

        def moved(values: Sequence[Tensor | None]) -> tuple[Tensor | None, ...]:
            return tuple(None if value is None else value.to(there) for value in values)

        (average,) = moved([point.average])
        slots = tuple(None if each is None else moved(each) for each in point.slots)
        self.point = replace(point, tensors=moved(point.tensors), slots=slots, average=average)


def _ends(x: Tensor) -> Tensor:  # [2]: the least and the largest, or NaN
    return torch.stack(torch.aminmax(x))


def _finite(tensors: Sequence[Tensor]) -> Tensor:  # bool []
    return torch.stack([end for x in tensors for end in torch.aminmax(x.detach())]).isfinite().all()


def _shapes(point: Point) -> list[Any]:
    values = [*point.tensors, *(slot for slots in point.slots for slot in slots or [None]), point.average]
    return [None if value is None else value.shape for value in values]
