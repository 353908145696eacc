"""The outer update: what a step learns, by rules that leave out what is not finite, decided where the tensors are."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ddfast.data.synthetic import LARGEST

LR_FLOOR = 1e-6  # the learned learning rate is projected to at least this
LEFT_OUT, FLOORED, GATED = range(3)  # what is counted


@dataclass(frozen=True)
class Momentum:
    """SGD: v ← momentum · v + g,  x ← x − rate · v."""

    momentum: float

    def slots(self, x: Tensor) -> list[Tensor]:
        """What is kept beside x from one update to the next."""
        return [torch.zeros_like(x)]

    def __call__(self, x: Tensor, g: Tensor, rate: float, v: Tensor) -> tuple[Tensor, ...]:
        """x and its slots after an update; a function, nothing is changed in place."""
        v = self.momentum * v + g
        return x - rate * v, v


@dataclass(frozen=True)
class Adam:
    """Adam (Kingma & Ba 2015) with ε = 1e-8."""

    betas: tuple[float, float]

    def slots(self, x: Tensor) -> list[Tensor]:
        """Both moments, and how many updates they have seen."""
        return [torch.zeros_like(x), torch.zeros_like(x), x.new_zeros(())]

    def __call__(self, x: Tensor, g: Tensor, rate: float, m: Tensor, s: Tensor, t: Tensor) -> tuple[Tensor, ...]:
        """x and its slots after an update."""
        (a, b), t = self.betas, t + 1
        m, s = a * m + (1 - a) * g, b * s + (1 - b) * g.square()
        return x - rate * (m / (1 - a**t)) / ((s / (1 - b**t)).sqrt() + 1e-8), m, s, t


class Learned(NamedTuple):
    """One tensor that is learned, at which rate, by which rule."""

    tensor: Tensor  # a leaf; changed in place
    rate: float
    rule: Momentum | Adam


class Descent:
    """One update after another of what an outer step learns: images, the student's learning rate α, soft labels.

    An update whose loss, gradient or result is not finite, or whose result is larger than 1e9, changes nothing, and is
    counted; so is one whose loss is above `threshold` (DATM's gate). α ← max(α, 1e-6) after it. With `ema_decay` β an
    average of the first tensor follows: ema ← β ema + (1 − β) x, after every call (FTD). Nothing here waits for the
    device, so that a CUDA graph can hold it.
    """

    def __init__(
        self,
        learned: Sequence[Learned],
        lr: Tensor,  # [], the one of them that is α
        threshold: float | None = None,
        ema_decay: float | None = None,
    ):
        self.learned, self._threshold, self._decay = list(learned), threshold, ema_decay
        self._at = next(i for i, entry in enumerate(learned) if entry.tensor is lr)  # of α among them
        self.slots = [entry.rule.slots(entry.tensor.detach()) for entry in learned]
        self.average = None if ema_decay is None else learned[0].tensor.detach().clone()
        self._good = [tensor.detach().clone() for tensor in self._moving]  # where loss and gradient were finite last
        self._counts = torch.zeros(3, dtype=torch.int64, device=lr.device)  # LEFT_OUT, FLOORED, GATED

    @property
    def tensors(self) -> list[Tensor]:
        """What is learned."""
        return [entry.tensor for entry in self.learned]

    @property
    def _moving(self) -> list[Tensor]:
        averages = [] if self.average is None else [self.average]
        return [*self.tensors, *(slot for slots in self.slots for slot in slots), *averages]

    @property
    def state(self) -> list[Tensor]:
        """Every tensor that an update changes in place."""
        return [*self._moving, *self._good, self._counts]

    @torch.no_grad()
    def __call__(
        self,
        loss: Tensor,  # []
        gradients: Sequence[Tensor],  # of `tensors`
    ) -> Tensor:  # bool []: whether anything was changed
        """One update."""
        finite = _finite([loss, *gradients])
        after = [
            list(rule(x, g, rate, *slots))
            for (x, rate, rule), g, slots in zip(self.learned, gradients, self.slots, strict=True)
        ]
        below = after[self._at][0] < LR_FLOOR
        after[self._at][0] = after[self._at][0].clamp(min=LR_FLOOR)
        gated = finite & (loss > self._threshold) if self._threshold is not None else torch.zeros_like(finite)
        within = torch.stack([(values[0].abs() <= LARGEST).all() for values in after]).all()
        computable = finite & within & _finite([slot for _, *slots in after for slot in slots])
        updated = computable & ~gated
        _replace(self._good, self._moving, finite)
        before = [[x, *slots] for x, slots in zip(self.tensors, self.slots, strict=True)]
        for tensors, values in zip(before, after, strict=True):
            _replace(tensors, values, updated)
        if self.average is not None:
            self.average.lerp_(self.tensors[0], 1 - self._decay)
        self._counts += torch.stack([~computable & ~gated, updated & below, gated])
        return updated

    def restore(self) -> None:
        """Go back to where loss and gradient were finite last."""
        self._copy(self._moving, self._good)

    def counts(self) -> dict[str, int]:
        """Updates left out as not finite, projections of α, and updates above the threshold, so far."""
        counts = self._counts.tolist()
        named = {"skipped": counts[LEFT_OUT], "floored": counts[FLOORED]}
        return named if self._threshold is None else {**named, "gated": counts[GATED]}

    def state_dict(self) -> dict[str, Any]:
        """Copies of all that the next update depends on."""
        return {"state": [tensor.detach().clone() for tensor in self.state]}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a `state_dict`, on this device; ValueError for that of another kind of descent."""
        if [tensor.shape for tensor in state["state"]] != [tensor.shape for tensor in self.state]:
            raise ValueError("checkpoint.pt: written by another version of ddfast; begin the run anew")
        self._copy(self.state, state["state"])

    @staticmethod
    @torch.no_grad()
    def _copy(to: Sequence[Tensor], values: Sequence[Tensor]) -> None:
        for tensor, value in zip(to, values, strict=True):
            tensor.copy_(value)


def _finite(tensors: Sequence[Tensor]) -> Tensor:  # bool []
    return torch.stack([tensor.isfinite().all() for tensor in tensors]).all()


def _replace(tensors: Sequence[Tensor], values: Sequence[Tensor], where: Tensor) -> None:  # bool []
    for tensor, value in zip(tensors, values, strict=True):
        tensor.copy_(torch.where(where, value, tensor))
