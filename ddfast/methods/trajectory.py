"""What the methods share: draw experts' segments, unroll a student over them, compare, and descend."""

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from ddfast import seeds
from ddfast.adjoints import Adjoint, CheckpointedUnroll
from ddfast.data import DSA, SyntheticSet
from ddfast.data.augment import Draws
from ddfast.data.texture import Crops, draw_rolls
from ddfast.distances import distance
from ddfast.experts import SegmentReader, Segments, TrajectoryStore
from ddfast.matching import unroll
from ddfast.methods.cuda_graph import Replayed, why_not_replayed
from ddfast.methods.descent import Adam, Descent, Learned, Momentum
from ddfast.methods.settings import MatchingSettings
from ddfast.methods.visiting import VisitingRows
from ddfast.planner import Plan
from ddfast.ranks import ALONE, Ranks
from ddfast.students import RankBatches, student_of, why_not_fused

log = logging.getLogger("ddfast")

RULES = {"sgd": Momentum(0.5), "adam": Adam((0.5, 0.999))}  # of the images
LABEL_RULE = Momentum(0.9)


class TrajectoryMatching:
    """One outer step draws experts' segments, unrolls a student over them, and descends on what is learned.

    A method is a subclass: its Settings, and what it does differently in `adjoint_of`, `targets` and `compare`.
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
        if (reason := why_not_fused(network)) is not None:
            log.info("the network runs by autograd: %s", reason)
        if ranks.size > 1 and settings.segments == 1:
            self.student = RankBatches(self.student, ranks)
        self._part = ranks.part(settings.segments) if settings.segments > 1 else slice(None)  # this process's segments
        self._drops = any(isinstance(module, nn.modules.dropout._DropoutNd) for module in network.modules())
        self.augment = DSA(settings.dsa_strategy)
        count = settings.on_device(len(synthetic))
        self.images = synthetic.images[:count].detach().clone().to(device).requires_grad_()
        self.labels = synthetic.labels[:count].detach().clone().to(device)
        self.lr = synthetic.lr.detach().clone().to(device).requires_grad_()
        self.segments = SegmentReader(
            experts,
            generator,
            num_experts=self.num_experts,
            start_epochs=settings.start_epochs,
            in_turn=settings.starts == "in_turn",
            expert_epochs=settings.expert_epochs,
            segments=settings.segments,
            device=self.images.device,
            part=self._part,
        )
        image_rule = RULES[settings.img_optimizer]
        learned = [Learned(self.images, settings.lr_img, image_rule), Learned(self.lr, settings.lr_lr, Momentum(0.5))]
        if settings.lr_label:
            learned.append(Learned(self.labels.requires_grad_(), settings.lr_label, LABEL_RULE))
        self.descent = Descent(learned, self.lr, settings.threshold, settings.ema_decay)
        self.visiting: VisitingRows | None = None  # where a step uses a part of the set
        if count < len(synthetic):
            everything, visitors = (synthetic.images, synthetic.labels), (self.images, self.labels)
            self.visiting = VisitingRows(everything, visitors, learned, self.descent.slots)
            images, labels = self.visiting.rows  # a large set is kept once
            self.synthetic = replace(synthetic, images=images, labels=labels)
        why_not = None
        if cuda_graph:
            alone = ranks.size == 1
            why_not = why_not_replayed(self.student, self.images.device, chooses=self.compares_states, alone=alone)
        if why_not is not None:
            log.warning("cuda_graph: not used, %s", why_not)
        self._replays = cuda_graph and why_not is None
        self.use_plan(plan)
        self.mark()

    def adjoint_of(self, plan: Plan | None) -> Adjoint:
        """How the meta-gradient is formed."""
        return CheckpointedUnroll(plan=plan)

    def targets(self, target: Tensor) -> Tensor:  # [S, P] -> int64 [I], or target weights [I, K]
        """What the student is trained towards."""
        return self.labels if self.synthetic.is_hard else self.labels.softmax(1)

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

    def use_plan(self, plan: Plan | None) -> None:
        """Compute the next outer steps like this; None: keep no activations."""
        self.adjoint = self.adjoint_of(plan)
        changed = [*self.descent.state, *([] if self.labels.requires_grad else [self.labels])]
        self._run = Replayed(self._iteration, changed, self.images.device) if self._replays else self._iteration

    def current(self) -> SyntheticSet:
        """The synthetic set as it is now."""
        images, labels = (self.images, self.labels) if self.visiting is None else self.visiting.now()
        return self._set(images, labels)

    def averaged(self) -> SyntheticSet | None:
        """The set with the average of its images over the iterations; None where none is kept."""
        return None if self.descent.average is None else self._set(self.descent.average, self.labels)

    def _set(self, images: Tensor, labels: Tensor) -> SyntheticSet:
        return self.synthetic.with_values(images, labels, self.lr)

    @property
    def skipped(self) -> int:
        """Updates left out so far, for they were not finite."""
        return self.descent.counts()["skipped"]

    def restore(self) -> None:
        """Go back to the last state whose loss and gradient were finite."""
        self.descent.restore()
        if self.visiting is not None:
            self.visiting.undo_update()

    def mark(self) -> None:
        """What `rollback` goes back to: the end of an outer step."""
        self._marked = self._own_state()
        if self.visiting is not None:
            self.visiting.mark()

    def rollback(self) -> None:
        """Undo what a step after `mark` did."""
        self._load_own(self._marked)
        if self.visiting is not None:
            self.visiting.undo()

    def state_dict(self) -> dict[str, Any]:
        """All that the next step depends on, or counts from, as it is between two steps: what a checkpoint holds."""
        return {**self._own_state(), "visiting": None if self.visiting is None else self.visiting.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a `state_dict`, on this device; ValueError for another kind of one."""
        if "visiting" not in state or (state["visiting"] is None) != (self.visiting is None):
            raise ValueError("checkpoint.pt: written by another version of ddfast; begin the run anew")
        self._load_own(state)
        if self.visiting is not None:
            self.visiting.load_state_dict(state["visiting"])
        self.mark()

    def _own_state(self) -> dict[str, Any]:
        return {
            "descent": self.descent.state_dict(),
            "labels": None if self.labels.requires_grad else self.labels.clone(),
            "generator": self.generator.get_state(),
            "segments": self.segments.state(),
        }

    def _load_own(self, state: dict[str, Any]) -> None:
        self.descent.load_state_dict(state["descent"])
        if state["labels"] is not None:
            self.labels.copy_(state["labels"])
        self.generator.set_state(state["generator"])
        self.segments.load_state(state["segments"])

    def step(self) -> dict[str, Any]:
        """One outer iteration; what it did, for the metrics. What comes out not finite, changes nothing."""
        skipped = self.skipped
        segments, drawn = self.draw()
        with self.dropout():
            loss, updated = self._run(*drawn)
        if self.visiting is not None:
            self.visiting.leave(bool(updated), self.skipped > skipped)
        return {
            "loss": loss.item(),
            "lr": self.lr.item(),
            **segments.names(),
            **self.descent.counts(),
            "updated": bool(updated),
        }

    def draw(self) -> tuple[Segments, tuple[Tensor | None, ...]]:
        """The segments of the next outer step, and what `meta_gradient` takes, all drawn beforehand."""
        segments, batches = self.segments.next(), self._batches()
        if self.visiting is not None:
            batches = self.visiting.visit(batches)
        batches = None if batches is None else batches.to(self.images.device)
        count = len(self.images) if batches is None else batches.shape[1]
        augmentation = self._augmentations(count)
        return segments, (self._noisy(segments.start), segments.start, segments.target, batches, *augmentation)

    def _iteration(self, *drawn: Tensor | None) -> tuple[Tensor, Tensor]:  # loss [], updated bool []
        """Unroll, compare, and descend; nothing is drawn here, and nothing waits for the device."""
        loss, gradients = self.meta_gradient(*drawn)
        loss, *gradients = self.ranks.mean([loss, *gradients])
        return loss, self.descent(loss, gradients)

    def meta_gradient(
        self,
        begin: Tensor,  # [S, P], the student's start
        start: Tensor,  # [S, P]
        target: Tensor,  # [S, P]
        batches: Tensor | None,  # int64 [T, B]
        rows: Tensor | None,  # [T, B, 16], of the augmentation
        rolls: Tensor | None,  # int64 [T, B, 2], of canvases
    ) -> tuple[Tensor, Sequence[Tensor]]:  # loss [], gradients of what is learned
        """The loss of a step, and its gradients in `descent.tensors`."""
        student = self.unrolled(begin, target, batches, rows, rolls)
        loss = self.compare(student, target, start).mean()
        return loss.detach(), torch.autograd.grad(loss, self.descent.tensors)

    def unrolled(
        self, begin: Tensor, target: Tensor, batches: Tensor | None, rows: Tensor | None, rolls: Tensor | None
    ) -> Tensor:  # [S, P], or all states [T + 1, S, P] where `compares_states`
        """The student's parameters after its steps; arguments as `meta_gradient` has them."""
        augment = None if rows is None else Draws(rows)
        if rolls is not None:
            augment = Crops(rolls, self.synthetic.image_size, augment)
        steps = {"syn_steps": self.settings.syn_steps} if batches is None else {"batches": batches}
        return unroll(
            self.student,
            begin,
            self.images,
            self.targets(target),
            self.lr,
            **steps,
            augment=augment,
            momentum=self.settings.syn_momentum,
            adjoint=self.adjoint,
            return_states=self.compares_states,
        )

    @contextmanager
    def dropout(self) -> Iterator[None]:
        """In it dropout draws from the run's own seed; nothing is drawn for networks that have none."""
        if not self._drops:
            yield
            return
        drawn = int(torch.randint(2**62, (), generator=self.generator))
        stream = seeds.generator(drawn, *([self.ranks.rank] if self.ranks.size > 1 else []))
        with seeds.dropout_from(stream, self.images.device):
            yield

    def _noisy(self, start: Tensor) -> Tensor:  # [S, P] -> [S, P]
        """Robust learning, a comparison of the FTD paper: Gaussian noise on the student's start."""
        if not self.settings.start_noise:
            return start
        noise = torch.randn(self.settings.segments, start.shape[1], generator=self.generator)
        return start + self.settings.start_noise * noise[self._part].to(start)

    def _augmentations(self, count: int) -> tuple[Tensor | None, Tensor | None]:  # [T, count, 16], [T, count, 2]
        """One draw per inner step, made beforehand: the backward replays them. None where nothing is augmented."""
        T, size = self.settings.syn_steps, self.synthetic.image_size
        draws = self.augment.draw_steps(T, count, size, self.generator)
        rows = None if draws is None else draws.rows.to(self.images)
        if self.settings.canvas == 1:
            return rows, None
        canvas = tuple(self.images.shape[2:])
        rolls = [draw_rolls(count, canvas, self.generator) for _ in range(T)]
        return rows, torch.stack(rolls).to(self.images.device)

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
