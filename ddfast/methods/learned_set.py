"""The synthetic set while it is learned: its tensors, their optimisers, the average, and going back."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ddfast.data import SyntheticSet
from ddfast.methods.descent import Adam, Descent, Learned, Momentum, Point, Verdict
from ddfast.methods.settings import SetSettings
from ddfast.methods.visiting import Rows, VisitingRows
from ddfast.runtime.devices import to_host

LABEL_RULE = Momentum(0.9)
IMAGES = 0  # the place of the images among what is learned


class Taken(NamedTuple):
    """What an outer step begins with, all on the device."""

    values: list[
        Tensor
    ]  # what is learned: images [I, C, …] or those that the step uses [U, C, …], α [], logits, others
    slots: list[tuple[Tensor, ...]]  # of their optimisers
    labels: Tensor | None  # those that are not learned; None for learned ones
    batches: Tensor | None  # int64 [T, B], where the images of each inner step are in `values`


class Mark(NamedTuple):
    """Where a set is, between two steps. It holds what is there, and copies nothing on the device."""

    descent: Point
    labels: Tensor | None
    visiting: Rows | None


class LearnedSet:
    """A synthetic set whose images are learned, and its learning rate α and label logits where they have rates.

    A step takes what it needs (`take`), forms gradients in `Taken.values`, and has an update made of them (`update`).
    An update whose loss, gradient or result is not finite changes nothing; `mark` and `rollback` undo a step. Where a
    step uses a part of the images only, all of them stay in host memory, and those visit the device.
    """

    def __init__(
        self,
        synthetic: SyntheticSet,
        settings: SetSettings,
        device: torch.device,
        *,
        lr_lr: float | None = None,  # rate of α; None: it is not learned
        in_a_step: int | None = None,  # images that a step uses; None: all
        more: Mapping[str, tuple[Tensor, Learned]] | None = None,  # learned beside what a set has
    ) -> None:
        if synthetic.is_hard != (settings.labels == "hard"):
            has = "classes" if synthetic.is_hard else "label logits"
            raise ValueError(f"labels: expected a set of {settings.labels} labels, got one of {has}")
        self.device = device
        self.parameterisation = synthetic.parameterisation
        visits = in_a_step is not None and in_a_step < len(synthetic) and self.parameterisation.by_rows

        def taken(tensor: Tensor) -> Tensor:
            return tensor.detach().clone() if visits else tensor.detach().clone().to(device)

        rule = Momentum(0.5) if settings.img_optimizer == "sgd" else Adam(settings.BETAS)
        images, labels = taken(synthetic.images), taken(synthetic.labels)
        tensors, learned = [images], [Learned(settings.lr_img, rule)]
        self.lr_at = self.labels_at = None  # the places of those that are learned
        if lr_lr is not None:
            self.lr_at = len(tensors)
            tensors.append(synthetic.lr.detach().clone().to(device))
            learned.append(Learned(lr_lr, Momentum(0.5)))
        self._labels_row = len(tensors)  # the place that labels have, learned or not
        if settings.lr_label:
            self.labels_at = self._labels_row
            tensors.append(labels)
            learned.append(Learned(settings.lr_label, LABEL_RULE))
        self._others_at: dict[str, int] = {}  # the places of those beside the images that are learned
        self._constant: dict[str, Tensor] = {}
        for name, tensor in synthetic.others.items():
            if tensor.is_floating_point():
                self._others_at[name] = len(tensors)
                tensors.append(taken(tensor))
                rate = settings.lr_img if settings.lr_weights is None else settings.lr_weights
                learned.append(Learned(rate, rule))
            else:
                self._constant[name] = taken(tensor)
        self.more_at: dict[str, int] = {}  # the places of those
        for name, (tensor, how) in (more or {}).items():
            self.more_at[name] = len(tensors)
            tensors.append(taken(tensor))
            learned.append(how)
        of_images = [IMAGES] if self.labels_at is None else [IMAGES, self.labels_at]
        elsewhere = of_images if visits else []
        self.descent = Descent(tensors, learned, self.lr_at, settings.threshold, settings.ema_decay, elsewhere)
        self.visiting: VisitingRows | None = None
        if visits:
            rows = {IMAGES: images, self._labels_row: labels}
            self.visiting = VisitingRows(rows, {place: learned[place] for place in elsewhere}, device)
        self._labels = labels if not visits and self.labels_at is None else None
        # what the set says beside its tensors; the images that it began with would only take room
        self.about = replace(synthetic, images=synthetic.images.new_zeros(()).expand_as(synthetic.images))

    def __len__(self) -> int:
        return len(self.about)

    def take(self, batches: Tensor | None = None) -> Taken:  # int64 [T, B] on the CPU: the images of each inner step
        """What a step begins with; without `batches` all images."""
        values, slots, labels = self.descent.now(), list(self.descent.point.slots), self._labels
        if self.visiting is not None:
            batches, rows, velocities = self.visiting.visit(batches)
            for place, velocity in velocities.items():
                values[place], slots[place] = rows[place], (velocity,)
            labels = rows[self._labels_row] if self.labels_at is None else None
        return Taken(values, slots, labels, batches)

    def others_of(self, values: Sequence[Tensor]) -> dict[str, Tensor]:
        """What the parameterisation decodes beside the images, of what is learned and what is not."""
        return self._constant | {name: values[place] for name, place in self._others_at.items()}

    def labels_of(
        self,
        values: Sequence[Tensor],  # as `Taken` has them
        labels: Tensor | None,  # those that are not learned
    ) -> Tensor:
        """The labels: learned ones, or those."""
        return labels if self.labels_at is None else values[self.labels_at]

    def see(
        self,
        values: Sequence[Tensor],  # as `Taken` has them
        generator: torch.Generator,
    ) -> Tensor:  # [J, C, H, W]
        """What networks see in one use, differentiable in what is learned."""
        others = self.others_of(values)
        return self.parameterisation.see(
            values[IMAGES], generator, [others[name] for name in self.parameterisation.others]
        )

    def slots_of(self, flat: Sequence[Tensor]) -> list[tuple[Tensor, ...]]:
        """The slots of each learned tensor, from all of them one after another."""
        slots: Iterator[Tensor] = iter(flat)
        return [tuple(next(slots) for _ in range(entry.rule.num_slots)) for entry in self.descent.learned]

    def update(
        self,
        taken: Taken,
        loss: Tensor,  # []
        gradients: list[Tensor],  # of taken.values; given up
        labels: Tensor | None = None,  # that take the place of those that are not learned; None: the same
    ) -> Verdict:
        """Make an update, or not, where something is not finite."""
        packed, slots = self.descent.propose(taken.values, taken.slots, loss, gradients)
        verdict, _ = self.commit(taken, packed, slots, labels)
        return verdict

    def commit(
        self, taken: Taken, packed: Tensor, slots: list[tuple[Tensor, ...]], labels: Tensor | None = None
    ) -> tuple[Verdict, list[float]]:
        """Make an update that `descent.propose` packed, perhaps with other numbers behind it, which come back. The
        device is waited for once."""
        velocities, changed = {}, {}
        if self.visiting is not None:
            velocities = {place: slots[place][0] for place in self.visiting.learned}
            changed = {} if labels is None else {self._labels_row: labels}
        numbers, *read = to_host([packed, *velocities.values(), *changed.values()])
        numbers, read = numbers.tolist(), iter(read)
        velocities, changed = {p: next(read) for p in velocities}, {p: next(read) for p in changed}
        count = len(Verdict._fields)
        verdict = Verdict.read(numbers[:count])
        if self.visiting is not None:
            self.visiting.leave(verdict, velocities, changed)
        elif verdict.updated and labels is not None:
            self._labels = labels
        self.descent.commit(taken.values, slots, verdict)
        return verdict, numbers[count:]

    def record(self, verdict: Verdict) -> dict[str, Any]:
        """What an update says of itself in the metrics."""
        rate = {} if self.lr_at is None else {"lr": verdict.lr}
        return {"loss": verdict.loss, **rate, **self.counts(), "updated": verdict.updated}

    def values(self) -> tuple[list[Tensor], Tensor | None]:
        """What is learned, as it is now, and labels that are not learned; not where a part of the set visits."""
        return self.descent.now(), self._labels

    def current(self) -> SyntheticSet:
        """The synthetic set as it is now."""
        return self._set_of()

    def _set_of(self, average: Tensor | None = None) -> SyntheticSet:
        """The set as it is now, or with the average in the place of its images."""
        now = self.descent.now()
        images = now[IMAGES] if average is None else average
        labels = self._labels if self.labels_at is None else now[self.labels_at]
        if self.visiting is not None:
            images, labels = self.visiting.now().values()
        lr = self.about.lr if self.lr_at is None else now[self.lr_at]
        return self.about.with_values(images, labels, lr, self.others_of(now))

    def averaged(self) -> SyntheticSet | None:
        """The set with the average of its images over the iterations; None where none is kept."""
        average = self.descent.average()
        return None if average is None else self._set_of(average)

    def counts(self) -> dict[str, int]:
        """Updates left out as not finite, projections of α, and updates above the threshold, so far."""
        return self.descent.counts()

    @property
    def skipped(self) -> int:
        """Updates left out so far, for they were not finite."""
        return self.counts()["skipped"]

    def set_rate(self, rate: float) -> None:
        """Learn the images at another rate from here on; not where a part of the set visits."""
        self.descent.set_rate(IMAGES, rate)

    def clamp(self, low: Tensor, high: Tensor) -> None:
        """Bring the images within bounds, which broadcast to them; not where a part of the set visits."""
        self.descent.put(IMAGES, self.descent.now()[IMAGES].clamp(low, high))

    def restore(self) -> None:
        """Go back to the tensors that the last finite loss was computed with."""
        if self.visiting is not None and self.descent.point.moving:
            self.visiting.restore()
        self.descent.restore()

    def mark(self) -> Mark:
        """What `rollback` takes: where it is now, the end of an outer step."""
        return Mark(self.descent.point, self._labels, None if self.visiting is None else self.visiting.rows)

    def rollback(self, mark: Mark) -> None:
        """Undo what a step after `mark` did; one step at most where a part of the set visits."""
        self.descent.point, self._labels = mark.descent, mark.labels
        if self.visiting is not None:
            self.visiting.rows = mark.visiting

    def state_dict(self) -> dict[str, Any]:
        """All that the next update depends on, or counts from, as it is between two steps: what a checkpoint holds."""
        visiting = None if self.visiting is None else self.visiting.state_dict()
        return {"descent": self.descent.state_dict(), "labels": self._labels, "visiting": visiting}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a `state_dict`, on this device; ValueError for another kind of one."""
        mine = {"visiting": self.visiting, "labels": self._labels}
        if any((state[name] is None) != (value is None) for name, value in mine.items()):
            raise ValueError(
                "checkpoint.pt: written by another version of ddfast, or for other settings; start the run again"
            )
        self.descent.load_state_dict(state["descent"])
        self._labels = None if state["labels"] is None else state["labels"].to(self.device)
        if self.visiting is not None:
            self.visiting.load_state_dict(state["visiting"])
