"""MTT: match a segment of an expert's trajectory (Cazenavette et al. 2022, Algorithm 1)."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ddfast.adjoints import CheckpointedUnroll
from ddfast.arguments import expect_whole
from ddfast.data import DSA, SyntheticSet
from ddfast.data.augment import FULL_STRATEGY, Draw, Draws
from ddfast.experts import SegmentReader, TrajectoryStore
from ddfast.matching import match_trajectory
from ddfast.planner import Plan, UnrollSize
from ddfast.students import student_of

LARGEST_LR = 1e30  # float32 has to hold it, and its products with gradients
MOMENTUM = 0.5  # of images and α
LR_FLOOR = 1e-6  # the learned learning rate is projected to at least this
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
    ):
        self.num_experts = experts.num_experts if num_experts is None else num_experts
        if not 1 <= self.num_experts <= experts.num_experts:
            raise ValueError(
                f"num_experts: expected 1 to the {experts.num_experts} in {experts.path}, got {self.num_experts}"
            )
        self.settings, self.generator = settings, generator
        self.student = student_of(network.to(device))
        self.augment, self.adjoint = DSA(settings.dsa_strategy), CheckpointedUnroll(plan=plan)
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
        rates = [(self.images, settings.lr_img), (self.lr, settings.lr_lr)]
        if synthetic.is_soft and settings.lr_label:
            rates.append((self.labels.requires_grad_(), settings.lr_label))
        self.learned = [tensor for tensor, _ in rates]
        self.optimizers = [torch.optim.SGD([tensor], lr=rate, momentum=MOMENTUM) for tensor, rate in rates]
        self.good = self._copies()
        self.skipped = 0  # updates left out because loss, gradient or result was not finite
        self.floored = 0  # projections of the learning rate

    def current(self) -> SyntheticSet:
        """The synthetic set as it is now."""
        given = self.synthetic
        now = SyntheticSet(
            self.images, self.labels, self.lr, given.class_names, given.preprocessing, given.dsa_strategy
        )
        return now.detached()

    def _copies(self) -> list[list[Tensor]]:
        """Of every learned tensor and its velocity, where they are: no copy from device to host."""
        velocities = [
            optimizer.state[tensor].get("momentum_buffer") if optimizer.state[tensor] else None
            for tensor, optimizer in zip(self.learned, self.optimizers, strict=True)
        ]
        return [
            [tensor.detach().clone()] + ([] if velocity is None else [velocity.clone()])
            for tensor, velocity in zip(self.learned, velocities, strict=True)
        ]

    def _set(self, copies: list[list[Tensor]]) -> None:
        """Go back to what `_copies` copied."""
        with torch.no_grad():
            for tensor, optimizer, (value, *velocity) in zip(self.learned, self.optimizers, copies, strict=True):
                tensor.copy_(value)
                buffers = {"momentum_buffer": velocity[0].to(tensor.device, copy=True)} if velocity else {}
                optimizer.state[tensor] = buffers

    def restore(self) -> None:
        """Go back to the last state whose loss and gradient were finite."""
        self._set(self.good)

    def state_dict(self) -> dict[str, Any]:
        """All that the next step depends on, or counts from: what a checkpoint has to hold."""
        return {
            "learned": self._copies(),
            "good": self.good,
            "generator": self.generator.get_state(),
            "segments": self.segments.state(),
            "skipped": self.skipped,
            "floored": self.floored,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a `state_dict`, on this device."""
        self._set(state["learned"])
        self.good = [[value.to(self.images.device) for value in row] for row in state["good"]]
        self.generator.set_state(state["generator"])
        self.segments.load_state(state["segments"])
        self.skipped, self.floored = state["skipped"], state["floored"]

    def step(self) -> dict[str, Any]:
        """One outer iteration; what it did, for the metrics. What comes out not finite, changes nothing."""
        segments = self.segments.next()
        batches = self._batches()
        steps = {"syn_steps": self.settings.syn_steps} if batches is None else {"batches": batches}
        draws = self._augmentations(len(self.images) if batches is None else batches.shape[1])
        targets = self.labels.softmax(1) if self.synthetic.is_soft else self.labels
        losses = match_trajectory(  # [S]
            self.student,
            segments.start,
            segments.target,
            self.images,
            targets,
            self.lr,
            **steps,
            augment=Draws.of(draws),
            adjoint=self.adjoint,
        )
        loss = losses.mean()
        gradients = torch.autograd.grad(loss, self.learned)
        updated = all(bool(value.isfinite().all()) for value in (loss, *gradients))
        if updated:
            self.good, floored = self._copies(), self.floored
            self._descend(gradients)
            updated = all(bool(tensor.isfinite().all()) for tensor in self.learned)
            if not updated:
                self.restore()
                self.floored = floored
        if not updated:
            self.skipped += 1
        return {
            "loss": loss.item(),
            "lr": self.lr.item(),
            "expert": segments.experts if len(segments.experts) > 1 else segments.experts[0],
            "start_epoch": segments.start_epochs if len(segments.experts) > 1 else segments.start_epochs[0],
            "skipped": self.skipped,
            "floored": self.floored,
            "updated": updated,
        }

    def _descend(self, gradients: tuple[Tensor, ...]) -> None:  # of `learned`, in its order
        for tensor, gradient in zip(self.learned, gradients, strict=True):
            tensor.grad = gradient
        for optimizer in self.optimizers:
            optimizer.step()
        with torch.no_grad():
            if self.lr < LR_FLOOR:
                self.lr.fill_(LR_FLOOR)
                self.floored += 1

    def _augmentations(self, count: int) -> list[Draw]:
        """One draw per inner step, made beforehand: the backward replays them."""
        size, device = tuple(self.images.shape[2:]), self.images.device
        return [self.augment.draw(count, size, self.generator).to(device) for _ in range(self.settings.syn_steps)]

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
