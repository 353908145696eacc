"""The outer update: SGD with momentum that leaves out what is not finite, decided where the tensors are."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

MOMENTUM = 0.5  # of everything that is learned
LR_FLOOR = 1e-6  # the learned learning rate is projected to at least this


class Descent:
    """SGD with momentum 0.5 on what an outer step learns: images, the student's learning rate, soft labels.

        v ← 0.5 v + g,  x ← x − rate · v,  α ← max(α, 1e-6)

    An update whose loss, gradient or result is not finite changes nothing, and is counted. Nothing here waits for the
    device, so that a CUDA graph can hold it.
    """

    def __init__(
        self,
        learned: Sequence[Tensor],  # leaves; changed in place
        rates: Sequence[float],
        lr: Tensor,  # [], the one of them that is α
    ):
        self.learned, self.rates = list(learned), list(rates)
        self._at = next(i for i, tensor in enumerate(learned) if tensor is lr)  # of α among them
        self._velocities = [torch.zeros_like(tensor) for tensor in learned]
        self._good = [tensor.detach().clone() for tensor in self._moving]  # where loss and gradient were finite last
        self._counts = torch.zeros(2, dtype=torch.int64, device=lr.device)  # updates left out, projections of α

    @property
    def _moving(self) -> list[Tensor]:
        return [*self.learned, *self._velocities]

    @property
    def state(self) -> list[Tensor]:
        """Every tensor that an update changes in place."""
        return [*self._moving, *self._good, self._counts]

    @torch.no_grad()
    def __call__(
        self,
        loss: Tensor,  # []
        gradients: Sequence[Tensor],  # of `learned`
    ) -> Tensor:  # bool []: whether anything was changed
        """One update."""
        velocities = [MOMENTUM * v + g for v, g in zip(self._velocities, gradients, strict=True)]
        values = [x - rate * v for x, rate, v in zip(self.learned, self.rates, velocities, strict=True)]
        finite = _finite([loss, *gradients])
        updated = finite & _finite([*values, *velocities])
        below = values[self._at] < LR_FLOOR
        values[self._at] = values[self._at].clamp(min=LR_FLOOR)
        _replace(self._good, self._moving, finite)
        _replace(self._moving, [*values, *velocities], updated)
        self._counts += torch.stack([~updated, updated & below])
        return updated

    def restore(self) -> None:
        """Go back to where loss and gradient were finite last."""
        self._copy(self._moving, self._good)

    def counts(self) -> tuple[int, int]:
        """Updates left out, and projections of α, so far."""
        skipped, floored = self._counts.tolist()
        return skipped, floored

    def state_dict(self) -> dict[str, Any]:
        """Copies of all that the next update depends on."""
        return {"state": [tensor.detach().clone() for tensor in self.state]}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a `state_dict`, on this device."""
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
