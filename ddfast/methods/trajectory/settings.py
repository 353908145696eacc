"""The settings that all methods of the family have, by the names of their published codes."""

from dataclasses import dataclass, fields
from typing import ClassVar

import torch

from ddfast.data import DSA
from ddfast.data.augment import FULL_STRATEGY
from ddfast.engine.distances import DISTANCES
from ddfast.engine.planner import UnrollSize
from ddfast.runtime.arguments import expect_one_of, expect_whole, is_number

LARGEST_LR = 1e30  # float32 has to hold it, and its products with gradients
INITS = ("real", "noise", "first", "correct")


@dataclass(frozen=True)
class MatchingSettings:
    """The options of trajectory matching.

    The unroll: syn_steps, inner steps T; batch_syn, images per step (None: all); syn_momentum, of the student's SGD;
    dsa_strategy, augmentation of the synthetic images; canvas, how many times the side of what networks see an image
    has, of which every use takes a random part (textures).

    The segment: expert_epochs between start and target; the start is drawn from min_start_epoch … max_start_epoch − 1,
    or takes them in turn (starts); with current_max_start_epoch the upper bound begins there and reaches
    max_start_epoch at iteration expansion_end; start_noise, the standard deviation of what is added to the student's
    start; segments per outer step, whose losses are averaged; distance, one of ddfast.engine.distances.DISTANCES.

    What is learned: init, real (random training images), noise, first (of each class), correct (real ones that the
    experts classify correctly), or the path of a SyntheticSet, whose labels and learning rate are taken too; labels,
    hard, or soft (logits, which begin as the experts' and are learned at lr_label with momentum 0.9); lr_img and
    lr_lr, of the images and of the student's learning rate, with momentum 0.5; img_optimizer, sgd, or adam with betas
    (0.5, 0.999); lr_teacher, the student's first learning rate; threshold, the loss above which an update is left out;
    ema_decay, of an average of the images that is kept and evaluated beside them.
    """

    syn_steps: int
    expert_epochs: int
    max_start_epoch: int
    lr_img: float
    lr_lr: float
    lr_teacher: float
    batch_syn: int | None = None
    syn_momentum: float = 0.0
    dsa_strategy: str = FULL_STRATEGY
    canvas: int = 1
    min_start_epoch: int = 0
    current_max_start_epoch: int | None = None
    expansion_end: int | None = None
    starts: str = "random"
    start_noise: float = 0.0
    segments: int = 1
    distance: str = "squared"
    init: str = "real"
    labels: str = "hard"
    lr_label: float = 0.0
    img_optimizer: str = "sgd"
    threshold: float | None = None
    ema_decay: float | None = None

    LABELS: ClassVar[tuple[str, ...]] = ("hard", "soft")  # those that a method has

    def __post_init__(self):
        for field in fields(self):
            value, may_be_none = getattr(self, field.name), field.type == float | None
            if (field.type is float or may_be_none) and not (is_number(value) or (may_be_none and value is None)):
                raise ValueError(f"{field.name}: expected a number, got {value!r}")
        expect_whole(
            syn_steps=self.syn_steps,
            expert_epochs=self.expert_epochs,
            max_start_epoch=self.max_start_epoch,
            segments=self.segments,
            canvas=self.canvas,
            batch_syn=1 if self.batch_syn is None else self.batch_syn,
        )
        for name in ("lr_img", "lr_lr", "lr_label", "start_noise"):
            if not 0 <= getattr(self, name) <= LARGEST_LR:
                raise ValueError(f"{name}: expected 0 to {LARGEST_LR:g}, got {getattr(self, name)}")
        if not 0 < self.lr_teacher <= LARGEST_LR:
            raise ValueError(f"lr_teacher: expected a positive number up to {LARGEST_LR:g}, got {self.lr_teacher}")
        if not 0 <= self.syn_momentum < 1:
            raise ValueError(f"syn_momentum: expected 0 to below 1, got {self.syn_momentum}")
        if self.threshold is not None and not self.threshold > 0:
            raise ValueError(f"threshold: expected a positive loss, got {self.threshold}")
        if self.ema_decay is not None and not 0 < self.ema_decay < 1:
            raise ValueError(f"ema_decay: expected more than 0 and less than 1, got {self.ema_decay}")
        expect_one_of("distance", self.distance, DISTANCES)
        expect_one_of("starts", self.starts, ("random", "in_turn"))
        expect_one_of("img_optimizer", self.img_optimizer, ("sgd", "adam"))
        if not isinstance(self.init, str) or not self.init:
            got = repr(self.init) if isinstance(self.init, str) else f"{type(self.init).__name__}; save it first"
            raise ValueError(f"init: expected one of {', '.join(INITS)}, or a saved set's path, got {got}")
        DSA(self.dsa_strategy)  # refuses an unknown one
        self._check_labels()
        self._check_starts()

    def _check_labels(self) -> None:
        if self.labels not in self.LABELS:
            raise ValueError(f"labels: expected {' or '.join(self.LABELS)} for this method, got {self.labels!r}")
        if self.lr_label and self.labels != "soft":
            raise ValueError(f"lr_label: {self.labels} labels are not learned; expected 0, got {self.lr_label}")

    def _check_starts(self) -> None:
        low, now, high = self.min_start_epoch, self.current_max_start_epoch, self.max_start_epoch
        if isinstance(low, bool) or not isinstance(low, int) or not 0 <= low < high:
            raise ValueError(f"min_start_epoch: expected 0 to below max_start_epoch, {high}, got {low}")
        if now is None:
            if self.expansion_end is not None:
                raise ValueError(
                    f"expansion_end: the start epochs have nothing to expand from; give current_max_start_epoch "
                    f"below max_start_epoch, {high}"
                )
            return
        expect_whole(current_max_start_epoch=now)
        if not low < now <= high:
            raise ValueError(
                f"current_max_start_epoch: expected above min_start_epoch, {low}, up to max_start_epoch, {high}, "
                f"got {now}"
            )
        if now < high and self.expansion_end is None:
            raise ValueError(
                f"expansion_end: the start epochs would never expand from {now} to {high}; "
                f"say at which iteration they have"
            )
        expect_whole(expansion_end=1 if self.expansion_end is None else self.expansion_end)

    def start_epochs(self, iteration: int) -> tuple[int, int]:
        """The bounds that the start of an iteration, counted from 0, is drawn from; the upper one is excluded.

        min(current + ⌊(max − current) · iteration / expansion_end⌋, max), DATM's sequential generation (Guo et al.
        2024, section 3.3).
        """
        low, now, high = self.min_start_epoch, self.current_max_start_epoch, self.max_start_epoch
        if now is None or self.expansion_end is None:
            return low, high
        return low, min(now + (high - now) * iteration // self.expansion_end, high)

    @property
    def epochs_needed(self) -> int:
        """How many epochs of an expert a run can use."""
        return self.max_start_epoch - 1 + self.expert_epochs

    def on_device(self, count: int) -> int:
        """How many of `count` images an outer step needs there: those of its minibatches, or all where an average or
        Adam moves all of them."""
        if self.ema_decay is not None or self.img_optimizer != "sgd":
            return count
        return min(count, self.syn_steps * (self.batch_syn or count))

    def unroll_size(
        self,
        images: torch.Size,  # [I, C, H, W], as networks see them
        device: torch.device,
        *,
        return_states: bool = False,
    ) -> UnrollSize:
        """What the memory of an outer step depends on, besides the student."""
        B = min(self.batch_syn or images[0], images[0])
        return UnrollSize(
            self.syn_steps,
            torch.Size((B, *images[1:])),
            self.on_device(images[0]) * self.canvas**2,
            self.segments,
            return_states=return_states,
            momentum=self.syn_momentum > 0,
            on_gpu=device.type == "cuda",
        )
