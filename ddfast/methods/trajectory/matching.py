"""What the methods of the family share: draw experts' segments, unroll a student over them, compare, and descend."""

import logging
from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor

from ddfast.data import SyntheticSet
from ddfast.data.augment import Draws
from ddfast.data.parameterisation import Seen
from ddfast.engine.adjoints import Adjoint, CheckpointedUnroll
from ddfast.engine.distances import distance
from ddfast.engine.planner import Plan
from ddfast.engine.students import RankBatches, student_of
from ddfast.engine.unroll import unroll
from ddfast.experts import SegmentReader, Segments
from ddfast.methods.base import Method, Needs, Resources
from ddfast.methods.learned_set import IMAGES, LearnedSet
from ddfast.methods.trajectory.cuda_graph import Replayed, why_not_replayed
from ddfast.methods.trajectory.settings import TrajectorySettings
from ddfast.runtime.devices import to_device

log = logging.getLogger("ddfast")


class TrajectoryMatching(Method):
    """One outer step draws experts' segments, unrolls a student over them, and descends on what is learned.

    A method is a subclass: its Settings, and what it does differently in `adjoint_of`, `relabelled` and `compare`.
    """

    Settings: ClassVar[type[TrajectorySettings]] = TrajectorySettings
    needs: ClassVar[Needs] = Needs(experts=True, unroll=True)
    masks: ClassVar[bool] = False  # whether the gradient in the images has a mask; on_device of its Settings says all

    def __init__(self, settings: TrajectorySettings, synthetic: SyntheticSet, resources: Resources) -> None:
        experts, ranks, network = resources.experts, resources.ranks, resources.network
        count = experts.num_experts if resources.num_experts is None else resources.num_experts
        if not 1 <= count <= experts.num_experts:
            raise ValueError(f"num_experts: expected 1 to the {experts.num_experts} in {experts.path}, got {count}")
        super().__init__(settings, synthetic, resources)
        seen = len(synthetic.preprocessing.mean), *synthetic.image_size  # [C, H, W]
        self.student = student_of(network.to(self.device), resources.precision, torch.Size(seen))
        if ranks.size > 1 and settings.segments == 1:
            self.student = RankBatches(self.student, ranks)
        self._part = ranks.part(settings.segments) if settings.segments > 1 else slice(None)  # this process's segments
        self.mask: Tensor | None = None  # by which the gradient in the images is multiplied, like it or broadcasting
        self.segments = self.reader(
            generator=self.generator,
            num_experts=count,
            start_epochs=settings.start_epochs,
            in_turn=settings.starts == "in_turn",
            expert_epochs=settings.expert_epochs,
            segments=settings.segments,
            device=self.device,
            part=self._part,
        )
        why_not = None
        if resources.cuda_graph:
            alone = ranks.size == 1
            chooses = self.compares_states or self.masks
            why_not = why_not_replayed(self.student, self.device, chooses=chooses, alone=alone)
        if why_not is not None:
            log.warning("cuda_graph: not used, %s", why_not)
        self._replays = resources.cuda_graph and why_not is None
        self.use_plan(resources.plan)

    def reader(self, **options: Any) -> SegmentReader:
        """What draws the segments of the experts."""
        return SegmentReader(self.resources.experts, **options)

    def learn(self, synthetic: SyntheticSet) -> LearnedSet:
        """Images, the student's learning rate, and label logits where they are learned."""
        in_a_step = self.settings.on_device(len(synthetic))
        return LearnedSet(synthetic, self.settings, self.device, lr_lr=self.settings.lr_lr, in_a_step=in_a_step)

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

    def own_state(self) -> dict[str, Any]:
        """Where the reader of segments is."""
        return {"segments": self.segments.state()}

    def load_own_state(self, state: dict[str, Any]) -> None:
        """Read on from there."""
        self.segments.load_state(state["segments"])

    def _step(self) -> dict[str, Any]:
        segments, batches = self.segments.next(), self._batches()
        taken = self.learned.take(batches)
        count = len(taken.values[IMAGES]) if taken.batches is not None else len(self.learned)
        drawn = self._drawn(segments, taken.batches, count)
        flat = [slot for each in taken.slots for slot in each]
        with self.dropout():
            packed, labels, *after = self._run(*drawn, taken.labels, *taken.values, *flat)
        verdict, measured = self.learned.commit(taken, packed, self.learned.slots_of(after), labels)
        return {**self.learned.record(verdict), **segments.names(), **self.record(measured)}

    def draw(self) -> tuple[Tensor | None, ...]:
        """What `meta_gradient` takes of the next outer step, as a step draws it; not where a part of the set visits."""
        return self._drawn(self.segments.next(), self._batches(), len(self.learned))

    def _drawn(self, segments: Segments, batches: Tensor | None, count: int) -> tuple[Tensor | None, ...]:
        batches = None if batches is None else to_device(batches, self.device)
        augmentation = self._augmentations(count if batches is None else batches.shape[1])
        return self._noisy(segments.start), segments.start, segments.target, batches, *augmentation

    def _iteration(
        self,
        begin: Tensor,  # [S, P], the student's start
        start: Tensor,  # [S, P]
        target: Tensor,  # [S, P]
        batches: Tensor | None,  # int64 [T, B]
        rows: Tensor | None,  # [T, B, 16], of the augmentation
        rolls: Tensor | None,  # [T, B, …], of a parameterisation that is random
        labels: Tensor | None,  # those that are not learned
        *learned: Tensor,  # what is learned, and after it the slots of each
    ) -> tuple[Tensor | None, ...]:  # what Verdict.read takes and `measured`, [7 + n]; other labels; the slots after it
        """Unroll, compare, and propose an update; nothing is drawn or changed, and nothing waits for the device."""
        descent = self.learned.descent
        now = [tensor.detach().requires_grad_() for tensor in learned[: len(descent.learned)]]
        slots = self.learned.slots_of(learned[len(now) :])
        loss, gradients, changed = self.meta_gradient(now, labels, begin, start, target, batches, rows, rolls)
        loss, *gradients = self.ranks.mean([loss, *gradients])
        if self.mask is not None:
            gradients[IMAGES] = gradients[IMAGES] * self.mask
        packed, after = descent.propose(now, slots, loss, gradients)
        packed = torch.cat([packed, *(values.double() for values in self.measured())])
        return packed, changed, *(slot for each in after for slot in each)

    def meta_gradient(
        self, now: Sequence[Tensor], labels: Tensor | None, begin: Tensor, start: Tensor, target: Tensor, *others: Any
    ) -> tuple[Tensor, Sequence[Tensor], Tensor | None]:  # loss [], its gradients in `now`, other labels
        """The loss and its gradients in `now`, what is learned; `labels`, if they are not; then what `draw` gives."""
        student, changed = self.unrolled(now, labels, begin, target, *others)
        loss = self.compare(student, target, start).mean()
        return loss.detach(), torch.autograd.grad(loss, now), changed

    def unrolled(
        self,
        now: Sequence[Tensor],
        labels: Tensor | None,
        begin: Tensor,
        target: Tensor,
        batches: Tensor | None,
        rows: Tensor | None,
        rolls: Tensor | None,
    ) -> tuple[Tensor, Tensor | None]:  # [S, P], or all states [T + 1, S, P] where `compares_states`; other labels
        """The student's parameters after its steps; arguments as of `meta_gradient` and `_iteration`."""
        augment = None if rows is None else Draws(rows)
        if rolls is not None:
            augment = Seen(self.parameterisation, rolls, augment)
        images = now[IMAGES] if self.parameterisation.is_random else self.learned.see(now, self.generator)
        used = self.learned.labels_of(now, labels)
        changed = self.relabelled(used, images, target)
        used = used if changed is None else changed
        steps = {"syn_steps": self.settings.syn_steps} if batches is None else {"batches": batches}
        student = unroll(
            self.student,
            begin,
            images,
            used if self.learned.about.is_hard else used.softmax(1),
            now[self.learned.lr_at],
            **steps,
            augment=augment,
            momentum=self.settings.syn_momentum,
            adjoint=self.adjoint,
            return_states=self.compares_states,
        )
        return student, changed

    def at_rate(self, rate: float) -> tuple[list[Tensor], Tensor | None]:
        """What is learned, as it is, with another learning rate of the student; and labels that are not learned."""
        now, labels = self.learned.values()
        now[self.learned.lr_at] = torch.full_like(now[self.learned.lr_at], rate)
        return [tensor.detach().requires_grad_() for tensor in now], labels

    def _noisy(self, start: Tensor) -> Tensor:  # [S, P] -> [S, P]
        """Robust learning, a comparison of the FTD paper: Gaussian noise on the student's start."""
        if not self.settings.start_noise:
            return start
        noise = torch.randn(self.settings.segments, start.shape[1], generator=self.generator)
        return start + self.settings.start_noise * to_device(noise[self._part].to(start.dtype), start.device)

    def _augmentations(self, count: int) -> tuple[Tensor | None, Tensor | None]:  # [T, count, 16], [T, count, …]
        """One draw per inner step, made beforehand: the backward replays them. None where nothing is augmented."""
        T, (H, W) = self.settings.syn_steps, self.learned.about.image_size
        draws = self.augment.draw_steps(T, count, (H, W), self.generator)
        rows = None if draws is None else to_device(draws.rows.to(self.learned.about.images.dtype), self.device)
        if not self.parameterisation.is_random:
            return rows, None
        H, W = self.learned.about.images.shape[2:]
        places = [self.parameterisation.draw(count, (H, W), self.generator) for _ in range(T)]
        return rows, to_device(torch.stack(places), self.device)

    def _batches(self) -> Tensor | None:  # int64 [T, B]
        """Random permutations of the set, one after another, cut into minibatches; None for all images every step.

        Where batch_syn does not divide the set, a minibatch takes the rest of a permutation and the first of the next
        (the published code makes it a shorter one).
        """
        size, count = self.settings.batch_syn, len(self.learned)
        if size is None or size >= count:
            return None
        needed = self.settings.syn_steps * size
        orders = [torch.randperm(count, generator=self.generator) for _ in range(-(-needed // count))]
        return torch.cat(orders)[:needed].view(-1, size)
