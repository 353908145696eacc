"""What the methods share: draw experts' segments, unroll a student over them, compare, and descend."""

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor, nn

from ddfast.data import DSA, SyntheticSet
from ddfast.data.augment import Draws
from ddfast.data.texture import Crops, draw_rolls
from ddfast.engine.adjoints import Adjoint, CheckpointedUnroll
from ddfast.engine.distances import distance
from ddfast.engine.planner import Plan
from ddfast.engine.students import RankBatches, student_of
from ddfast.engine.unroll import unroll
from ddfast.experts import SegmentReader, Segments, TrajectoryStore
from ddfast.methods.trajectory.cuda_graph import Replayed, why_not_replayed
from ddfast.methods.trajectory.descent import Adam, Descent, Learned, Momentum, Point, Verdict
from ddfast.methods.trajectory.settings import MatchingSettings
from ddfast.methods.trajectory.visiting import Rows, VisitingRows
from ddfast.runtime import seeds
from ddfast.runtime.devices import to_device, to_host
from ddfast.runtime.ranks import ALONE, Ranks

log = logging.getLogger("ddfast")

RULES = {"sgd": Momentum(0.5), "adam": Adam((0.5, 0.999))}  # of the images
LABEL_RULE = Momentum(0.9)
IMAGES, LR, LABELS = range(3)  # the places of what is learned; labels may not be


class Mark(NamedTuple):
    """Where a method is, between two steps. It holds what is there, and copies nothing on the device."""

    descent: Point
    labels: Tensor | None  # those that are not learned
    visiting: Rows | None
    generator: Tensor  # states of random draws
    segments: dict[str, Any]


class TrajectoryMatching:
    """One outer step draws experts' segments, unrolls a student over them, and descends on what is learned.

    A method is a subclass: its Settings, and what it does differently in `adjoint_of`, `relabelled` and `compare`.
    """

    Settings: ClassVar[type[MatchingSettings]] = MatchingSettings
    gradient: ClassVar[str] = "exact"  # of the images, for people
    compares_states: ClassVar[bool] = False  # whether `compare` sees all states of the unroll, or the last

    def __init__(
        self,
        settings: MatchingSettings,
        synthetic: SyntheticSet,
        experts: TrajectoryStore,
        network: nn.Module,
        generator: torch.Generator,
        *,
        num_experts: int | None = None,
        device: str | torch.device | None = None,
        plan: Plan | None = None,
        precision: str = "default",
        cuda_graph: bool = False,
        ranks: Ranks = ALONE,
    ):
        self.num_experts = experts.num_experts if num_experts is None else num_experts
        if not 1 <= self.num_experts <= experts.num_experts:
            raise ValueError(
                f"num_experts: expected 1 to the {experts.num_experts} in {experts.path}, got {self.num_experts}"
            )
        if synthetic.is_hard != (settings.labels == "hard"):
            has = "classes" if synthetic.is_hard else "label logits"
            raise ValueError(f"labels: expected a set of {settings.labels} labels, got one of {has}")
        self.settings, self.generator, self.synthetic, self.ranks = settings, generator, synthetic, ranks
        self.student = student_of(network.to(device), precision)
        if ranks.size > 1 and settings.segments == 1:
            self.student = RankBatches(self.student, ranks)
        self._part = ranks.part(settings.segments) if settings.segments > 1 else slice(None)  # this process's segments
        self._drops = any(isinstance(module, nn.modules.dropout._DropoutNd) for module in network.modules())
        self.augment = DSA(settings.dsa_strategy)
        self.device = torch.device("cpu" if device is None else device)
        self._begin(synthetic)
        self.segments = SegmentReader(
            experts,
            generator,
            num_experts=self.num_experts,
            start_epochs=settings.start_epochs,
            in_turn=settings.starts == "in_turn",
            expert_epochs=settings.expert_epochs,
            segments=settings.segments,
            device=self.device,
            part=self._part,
        )
        why_not = None
        if cuda_graph:
            alone = ranks.size == 1
            why_not = why_not_replayed(self.student, self.device, chooses=self.compares_states, alone=alone)
        if why_not is not None:
            log.warning("cuda_graph: not used, %s", why_not)
        self._replays = cuda_graph and why_not is None
        self.use_plan(plan)

    def _begin(self, synthetic: SyntheticSet) -> None:
        """Take a set as what is learned: all of it to the device, or where a step uses a part, none."""
        settings, count = self.settings, len(synthetic)
        visits = settings.on_device(count) < count
        images, labels, lr = (
            tensor.detach().clone() if visits else tensor.detach().clone().to(self.device)
            for tensor in (synthetic.images, synthetic.labels, synthetic.lr)
        )
        tensors = [images, lr.to(self.device)]
        learned = [Learned(settings.lr_img, RULES[settings.img_optimizer]), Learned(settings.lr_lr, Momentum(0.5))]
        if settings.lr_label:
            tensors.append(labels)
            learned.append(Learned(settings.lr_label, LABEL_RULE))
        self._learns_labels = bool(settings.lr_label)
        elsewhere = [place for place in range(len(learned)) if place != LR] if visits else []
        self.descent = Descent(tensors, learned, LR, settings.threshold, settings.ema_decay, elsewhere)
        self.visiting = None
        if visits:
            rows = {IMAGES: images, LABELS: labels}
            self.visiting = VisitingRows(rows, {place: learned[place] for place in elsewhere}, self.device)
        self._labels = None if visits or self._learns_labels else labels
        # what the set says beside its tensors; the images that it began with would only take room
        self.synthetic = replace(synthetic, images=synthetic.images.new_zeros(()).expand_as(synthetic.images))

    def adjoint_of(self, plan: Plan | None) -> Adjoint:
        """How the meta-gradient is formed."""
        return CheckpointedUnroll(plan=plan)

    def relabelled(
        self,
        labels: Tensor,  # int64 [I], or logits [I, K]
        images: Tensor,  # [I, C, H, W]
        target: Tensor,  # [S, P]
    ) -> Tensor | None:  # like labels
        """Labels that take the place of those, where the step updates anything; None for the same ones."""
        return None

    def compare(
        self,
        student: Tensor,  # [S, P], or all states [T + 1, S, P] where `compares_states`
        target: Tensor,  # [S, P]
        start: Tensor,  # [S, P]
    ) -> Tensor:  # [S]
        """The losses: MTT's by default."""
        return self.distance(student, target, start)

    def distance(
        self, student: Tensor, target: Tensor, start: Tensor, weight: Tensor | None = None
    ) -> Tensor:  # [S, P] each -> [S]
        """The distance that the settings name."""
        return distance(student, target, start, self.settings.distance, weight=weight, layers=self.student.layer_sizes)

    def measured(self) -> list[Tensor]:  # [n] each, on the device
        """What `record` needs to know of the step beside its loss."""
        return []

    def record(self, measured: list[float]) -> dict[str, Any]:
        """What a method adds to the record of a step, from `measured`."""
        return {}

    def use_plan(self, plan: Plan | None) -> None:
        """Compute the next outer steps like this; None: keep no activations."""
        self.adjoint = self.adjoint_of(plan)
        self._run = Replayed(self._iteration, self.device) if self._replays else self._iteration

    def current(self) -> SyntheticSet:
        """The synthetic set as it is now."""
        now = self.descent.now()
        images, labels = now[IMAGES], now[LABELS] if self._learns_labels else self._labels
        if self.visiting is not None:
            images, labels = self.visiting.now().values()
        return self.synthetic.with_values(images, labels, now[LR])

    def averaged(self) -> SyntheticSet | None:
        """The set with the average of its images over the iterations; None where none is kept."""
        average = self.descent.average()
        if average is None:
            return None
        now = self.descent.now()
        return self.synthetic.with_values(average, now[LABELS] if self._learns_labels else self._labels, now[LR])

    @property
    def skipped(self) -> int:
        """Updates left out so far, for they were not finite."""
        return self.descent.counts()["skipped"]

    def restore(self) -> None:
        """Go back to the images, labels and learning rate that the last finite loss was computed with."""
        if self.visiting is not None and self.descent.point.moving:
            self.visiting.restore()
        self.descent.restore()

    def mark(self) -> Mark:
        """What `rollback` takes: where it is now, the end of an outer step."""
        rows = None if self.visiting is None else self.visiting.rows
        return Mark(self.descent.point, self._labels, rows, self.generator.get_state(), self.segments.state())

    def rollback(self, mark: Mark) -> None:
        """Undo what a step after `mark` did; one step at most where a part of the set visits."""
        self.descent.point, self._labels = mark.descent, mark.labels
        if self.visiting is not None:
            self.visiting.rows = mark.visiting
        self.generator.set_state(mark.generator)
        self.segments.load_state(mark.segments)

    def state_dict(self) -> dict[str, Any]:
        """All that the next step depends on, or counts from, as it is between two steps: what a checkpoint holds."""
        return {
            "descent": self.descent.state_dict(),
            "labels": self._labels,
            "visiting": None if self.visiting is None else self.visiting.state_dict(),
            "generator": self.generator.get_state(),
            "segments": self.segments.state(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a `state_dict`, on this device; ValueError for another kind of one."""
        mine = {"visiting": self.visiting, "labels": self._labels}
        if any((state[name] is None) != (value is None) for name, value in mine.items()):
            raise ValueError("checkpoint.pt: written by another version of ddfast; begin the run anew")
        self.descent.load_state_dict(state["descent"])
        self._labels = None if state["labels"] is None else state["labels"].to(self.device)
        if self.visiting is not None:
            self.visiting.load_state_dict(state["visiting"])
        self.generator.set_state(state["generator"])
        self.segments.load_state(state["segments"])

    def step(self) -> dict[str, Any]:
        """One outer iteration; what it did, for the metrics. What comes out not finite, changes nothing.

        The device is waited for once, for what the record says. An exception, Ctrl-C among them, leaves everything as
        it was before the step.
        """
        mark = self.mark()
        try:
            return self._step()
        except BaseException:
            self.rollback(mark)
            raise

    def _step(self) -> dict[str, Any]:
        segments, batches = self.segments.next(), self._batches()
        now, slots, labels = self.descent.now(), list(self.descent.point.slots), self._labels
        if self.visiting is not None:
            batches, rows, velocities = self.visiting.visit(batches)
            for place, velocity in velocities.items():
                now[place], slots[place] = rows[place], (velocity,)
            labels = None if self._learns_labels else rows[LABELS]
        drawn = self._drawn(segments, batches, len(now[IMAGES]))
        with self.dropout():
            flat = [slot for each in slots for slot in each]
            packed, labels, *after = self._run(*drawn, labels, *now, *flat)
        after = iter(after)
        slots = [tuple(next(after) for _ in each) for each in slots]
        numbers, changed = self._read(packed, labels, slots)
        verdict = Verdict.read(numbers[: len(Verdict._fields)])
        if self.visiting is not None:
            self.visiting.leave(verdict, *changed)
        elif verdict.updated and labels is not None:
            self._labels = labels
        self.descent.commit(now, slots, verdict)
        return {
            "loss": verdict.loss,
            "lr": verdict.lr,
            **segments.names(),
            **self.descent.counts(),
            "updated": verdict.updated,
            **self.record(numbers[len(Verdict._fields) :]),
        }

    def draw(self) -> tuple[Tensor | None, ...]:
        """What `meta_gradient` takes of the next outer step, as a step draws it; not where a part of the set visits."""
        return self._drawn(self.segments.next(), self._batches(), len(self.synthetic))

    def _drawn(self, segments: Segments, batches: Tensor | None, count: int) -> tuple[Tensor | None, ...]:
        batches = None if batches is None else to_device(batches, self.device)
        augmentation = self._augmentations(count if batches is None else batches.shape[1])
        return self._noisy(segments.start), segments.start, segments.target, batches, *augmentation

    def _read(
        self, packed: Tensor, labels: Tensor | None, slots: list[tuple[Tensor, ...]]
    ) -> tuple[list[float], tuple[dict[int, Tensor], dict[int, Tensor]]]:
        """The numbers of a step, and of rows that visited their velocities and other labels, with one wait for all."""
        velocities, changed = {}, {}
        if self.visiting is not None:
            velocities = {place: slots[place][0] for place in self.visiting.learned}
            changed = {} if labels is None else {LABELS: labels}
        numbers, *read = to_host([packed, *velocities.values(), *changed.values()])
        read = iter(read)
        return numbers.tolist(), ({p: next(read) for p in velocities}, {p: next(read) for p in changed})

    def _iteration(
        self,
        begin: Tensor,  # [S, P], the student's start
        start: Tensor,  # [S, P]
        target: Tensor,  # [S, P]
        batches: Tensor | None,  # int64 [T, B]
        rows: Tensor | None,  # [T, B, 16], of the augmentation
        rolls: Tensor | None,  # int64 [T, B, 2], of canvases
        labels: Tensor | None,  # those that are not learned
        *learned: Tensor,  # what is learned, and after it the slots of each
    ) -> tuple[Tensor | None, ...]:  # what Verdict.read takes and `measured`, [7 + n]; other labels; the slots after it
        """Unroll, compare, and propose an update; nothing is drawn or changed, and nothing waits for the device."""
        now = [tensor.detach().requires_grad_() for tensor in learned[: len(self.descent.learned)]]
        slots = iter(learned[len(now) :])
        slots = [tuple(next(slots) for _ in range(entry.rule.num_slots)) for entry in self.descent.learned]
        loss, gradients, changed = self.meta_gradient(now, labels, begin, start, target, batches, rows, rolls)
        loss, *gradients = self.ranks.mean([loss, *gradients])
        packed, after = self.descent.propose(now, slots, loss, gradients)
        packed = torch.cat([packed, *(values.double() for values in self.measured())])
        return packed, changed, *(slot for each in after for slot in each)

    def meta_gradient(
        self, now: Sequence[Tensor], labels: Tensor | None, begin: Tensor, start: Tensor, target: Tensor, *others
    ) -> tuple[Tensor, Sequence[Tensor], Tensor | None]:  # loss [], its gradients in `now`, other labels
        """The loss and its gradients in `now`, what is learned; `labels`, if they are not; then what `draw` gives."""
        student, changed = self.unrolled(now, labels, begin, target, *others)
        loss = self.compare(student, target, start).mean()
        return loss.detach(), torch.autograd.grad(loss, now), changed

    def unrolled(
        self, now: Sequence[Tensor], labels: Tensor | None, begin: Tensor, target: Tensor, batches, rows, rolls
    ) -> tuple[Tensor, Tensor | None]:  # [S, P], or all states [T + 1, S, P] where `compares_states`; other labels
        """The student's parameters after its steps; arguments as of `meta_gradient` and `_iteration`."""
        augment = None if rows is None else Draws(rows)
        if rolls is not None:
            augment = Crops(rolls, self.synthetic.image_size, augment)
        used = now[LABELS] if self._learns_labels else labels
        changed = self.relabelled(used, now[IMAGES], target)
        used = used if changed is None else changed
        steps = {"syn_steps": self.settings.syn_steps} if batches is None else {"batches": batches}
        student = unroll(
            self.student,
            begin,
            now[IMAGES],
            used if self.synthetic.is_hard else used.softmax(1),
            now[LR],
            **steps,
            augment=augment,
            momentum=self.settings.syn_momentum,
            adjoint=self.adjoint,
            return_states=self.compares_states,
        )
        return student, changed

    def at_rate(self, rate: float) -> tuple[list[Tensor], Tensor | None]:
        """What is learned, as it is, with another learning rate of the student; and labels that are not learned."""
        now = self.descent.now()
        now[LR] = torch.full_like(now[LR], rate)
        return [tensor.detach().requires_grad_() for tensor in now], self._labels

    @contextmanager
    def dropout(self) -> Iterator[None]:
        """In it dropout draws from the run's own seed; nothing is drawn for networks that have none."""
        if not self._drops:
            yield
            return
        drawn = int(torch.randint(2**62, (), generator=self.generator))
        stream = seeds.generator(drawn, *([self.ranks.rank] if self.ranks.size > 1 else []))
        with seeds.dropout_from(stream, self.device):
            yield

    def _noisy(self, start: Tensor) -> Tensor:  # [S, P] -> [S, P]
        """Robust learning, a comparison of the FTD paper: Gaussian noise on the student's start."""
        if not self.settings.start_noise:
            return start
        noise = torch.randn(self.settings.segments, start.shape[1], generator=self.generator)
        return start + self.settings.start_noise * to_device(noise[self._part].to(start.dtype), start.device)

    def _augmentations(self, count: int) -> tuple[Tensor | None, Tensor | None]:  # [T, count, 16], [T, count, 2]
        """One draw per inner step, made beforehand: the backward replays them. None where nothing is augmented."""
        T, size = self.settings.syn_steps, self.synthetic.image_size
        draws = self.augment.draw_steps(T, count, size, self.generator)
        rows = None if draws is None else to_device(draws.rows.to(self.synthetic.images.dtype), self.device)
        if self.settings.canvas == 1:
            return rows, None
        canvas = tuple(self.synthetic.images.shape[2:])
        rolls = [draw_rolls(count, canvas, self.generator) for _ in range(T)]
        return rows, to_device(torch.stack(rolls), self.device)

    def _batches(self) -> Tensor | None:  # int64 [T, B]
        """Random permutations of the set, one after another, cut into minibatches; None for all images every step.

        Where batch_syn does not divide the set, a minibatch takes the rest of a permutation and the first of the next
        (the published code makes it a shorter one).
        """
        size, count = self.settings.batch_syn, len(self.synthetic)
        if size is None or size >= count:
            return None
        needed = self.settings.syn_steps * size
        orders = [torch.randperm(count, generator=self.generator) for _ in range(-(-needed // count))]
        return torch.cat(orders)[:needed].view(-1, size)
