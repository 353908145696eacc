"""MTT: match a segment of an expert's trajectory (Cazenavette et al. 2022, Algorithm 1)."""

import logging
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ddfast.adjoints import CheckpointedUnroll
from ddfast.arguments import expect_whole
from ddfast.data import DSA, SyntheticSet
from ddfast.data.augment import FULL_STRATEGY, NO_STRATEGY, Draws
from ddfast.experts import SegmentReader, TrajectoryStore
from ddfast.matching import match_trajectory
from ddfast.methods.cuda_graph import Replayed, why_not_replayed
from ddfast.methods.descent import Descent
from ddfast.planner import Plan, UnrollSize
from ddfast.students import student_of

log = logging.getLogger("ddfast")

LARGEST_LR = 1e30  # float32 has to hold it, and its products with gradients
INITS = ("real", "noise")


@dataclass(frozen=True)
class MTTSettings:
    """The options of MTT, by the names of its published code.

    syn_steps: inner steps T; batch_syn: images per step (None: all); expert_epochs: epochs between start and target;
    max_start_epoch: starts are drawn from 0 … max_start_epoch − 1; lr_img, lr_lr and lr_label: SGD of the images, of
    the student's learning rate and of soft labels, all with momentum 0.5; lr_teacher: the student's first learning
    rate; init: real (random training images) or noise; dsa_strategy: augmentation of the synthetic images; segments:
    experts' segments per outer step, whose losses are averaged.
    """

    syn_steps: int
    expert_epochs: int
    max_start_epoch: int
    lr_img: float
    lr_lr: float
    lr_teacher: float
    batch_syn: int | None = None
    init: str = "real"
    dsa_strategy: str = FULL_STRATEGY
    lr_label: float = 0.0  # hard labels have none
    segments: int = 1

    def __post_init__(self):
        expect_whole(
            syn_steps=self.syn_steps,
            expert_epochs=self.expert_epochs,
            max_start_epoch=self.max_start_epoch,
            segments=self.segments,
            batch_syn=1 if self.batch_syn is None else self.batch_syn,
        )
        for name in ("lr_img", "lr_lr", "lr_label"):
            if not 0 <= getattr(self, name) <= LARGEST_LR:
                raise ValueError(f"{name}: expected 0 to {LARGEST_LR:g}, got {getattr(self, name)}")
        if not 0 < self.lr_teacher <= LARGEST_LR:
            raise ValueError(f"lr_teacher: expected a positive number up to {LARGEST_LR:g}, got {self.lr_teacher}")
        if self.init not in INITS:
            raise ValueError(f"init: expected one of {', '.join(INITS)}, got {self.init!r}")
        DSA(self.dsa_strategy)  # refuses an unknown one

    @property
    def epochs_needed(self) -> int:
        """How many epochs of an expert a run can use."""
        return self.max_start_epoch - 1 + self.expert_epochs

    def unroll_size(
        self,
        images: torch.Size,  # [I, C, H, W]
        device: torch.device,
    ) -> UnrollSize:
        """What the memory of an outer step depends on, besides the student."""
        B, on_gpu = min(self.batch_syn or images[0], images[0]), device.type == "cuda"
        return UnrollSize(self.syn_steps, torch.Size((B, *images[1:])), images[0], self.segments, on_gpu=on_gpu)


class MTT:
    """One outer step draws an expert's segment, unrolls a student over it, and descends on images and α.

    Soft labels (a SyntheticSet of label logits) are descended on too, where lr_label is positive.
    """

    Settings = MTTSettings

    def __init__(
        self,
        settings: MTTSettings,
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
    ):
        self.num_experts = experts.num_experts if num_experts is None else num_experts
        if not 1 <= self.num_experts <= experts.num_experts:
            raise ValueError(
                f"num_experts: expected 1 to the {experts.num_experts} in {experts.path}, got {self.num_experts}"
            )
        self.settings, self.generator = settings, generator
        self.student = student_of(network.to(device), precision)
        self.augment = DSA(settings.dsa_strategy)
        self.synthetic = synthetic
        self.images = synthetic.images.detach().clone().to(device).requires_grad_()
        self.labels = synthetic.labels.detach().clone().to(device)
        self.lr = synthetic.lr.detach().clone().to(device).requires_grad_()
        self.segments = SegmentReader(
            experts,
            generator,
            num_experts=self.num_experts,
            max_start_epoch=settings.max_start_epoch,
            expert_epochs=settings.expert_epochs,
            segments=settings.segments,
            device=self.images.device,
        )
        learned, rates = [self.images, self.lr], [settings.lr_img, settings.lr_lr]
        if synthetic.is_soft and settings.lr_label:
            learned.append(self.labels.requires_grad_())
            rates.append(settings.lr_label)
        self.descent = Descent(learned, rates, self.lr)
        why_not = why_not_replayed(self.student, self.images.device) if cuda_graph else None
        if why_not is not None:
            log.warning("cuda_graph: not used, %s", why_not)
        self._replays = cuda_graph and why_not is None
        self.use_plan(plan)

    def use_plan(self, plan: Plan | None) -> None:
        """Compute the next outer steps like this; None: keep no activations."""
        self.adjoint = CheckpointedUnroll(plan=plan)
        self._run = (
            Replayed(self._iteration, self.descent.state, self.images.device) if self._replays else self._iteration
        )

    def current(self) -> SyntheticSet:
        """The synthetic set as it is now."""
        given = self.synthetic
        now = SyntheticSet(
            self.images, self.labels, self.lr, given.class_names, given.preprocessing, given.dsa_strategy
        )
        return now.detached()

    def restore(self) -> None:
        """Go back to the last state whose loss and gradient were finite."""
        self.descent.restore()

    def state_dict(self) -> dict[str, Any]:
        """All that the next step depends on, or counts from: what a checkpoint has to hold."""
        return {
            "descent": self.descent.state_dict(),
            "generator": self.generator.get_state(),
            "segments": self.segments.state(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a `state_dict`, on this device; ValueError for another kind of one."""
        if "descent" not in state:
            raise ValueError("checkpoint.pt: written by another version of ddfast; begin the run anew")
        self.descent.load_state_dict(state["descent"])
        self.generator.set_state(state["generator"])
        self.segments.load_state(state["segments"])

    def step(self) -> dict[str, Any]:
        """One outer iteration; what it did, for the metrics. What comes out not finite, changes nothing."""
        segments = self.segments.next()
        batches = self._batches()
        rows = self._augmentations(len(self.images) if batches is None else batches.shape[1])
        loss, updated = self._run(segments.start, segments.target, batches, rows)
        skipped, floored = self.descent.counts()
        return {
            "loss": loss.item(),
            "lr": self.lr.item(),
            "expert": segments.experts if len(segments.experts) > 1 else segments.experts[0],
            "start_epoch": segments.start_epochs if len(segments.experts) > 1 else segments.start_epochs[0],
            "skipped": skipped,
            "floored": floored,
            "updated": bool(updated),
        }

    def _iteration(
        self,
        start: Tensor,  # [S, P]
        target: Tensor,  # [S, P]
        batches: Tensor | None,  # int64 [T, B]
        rows: Tensor | None,  # [T, B, 16], of the augmentation
    ) -> tuple[Tensor, Tensor]:  # loss [], updated bool []
        """Unroll, compare, and descend; nothing is drawn here, and nothing waits for the device."""
        targets = self.labels.softmax(1) if self.synthetic.is_soft else self.labels
        steps = {"syn_steps": self.settings.syn_steps} if batches is None else {"batches": batches}
        losses = match_trajectory(  # [S]
            self.student,
            start,
            target,
            self.images,
            targets,
            self.lr,
            **steps,
            augment=None if rows is None else Draws(rows),
            adjoint=self.adjoint,
        )
        loss = losses.mean()
        return loss.detach(), self.descent(loss.detach(), torch.autograd.grad(loss, self.descent.learned))

    def _augmentations(self, count: int) -> Tensor | None:  # [T, count, 16]; None where nothing is augmented
        """One draw per inner step, made beforehand: the backward replays them."""
        size = tuple(self.images.shape[2:])
        draws = [self.augment.draw(count, size, self.generator) for _ in range(self.settings.syn_steps)]
        return None if draws[0].kind == NO_STRATEGY else torch.stack([draw.rows for draw in draws]).to(self.images)

    def _batches(self) -> Tensor | None:  # int64 [T, B]
        """Random permutations of the set, one after another, cut into minibatches; None for all images every step.

        Where batch_syn does not divide the set, a minibatch takes the rest of a permutation and the first of the next
        (the published code makes it a shorter one).
        """
        size, count = self.settings.batch_syn, len(self.images)
        if size is None or size >= count:
            return None
        needed = self.settings.syn_steps * size
        orders = [torch.randperm(count, generator=self.generator) for _ in range(-(-needed // count))]
        return torch.cat(orders)[:needed].view(-1, size).to(self.images.device)
