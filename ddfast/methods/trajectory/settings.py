"""The settings that all methods of the trajectory family have, by the names of their published codes."""

from dataclasses import dataclass
from typing import Annotated, Literal

import torch

from ddfast.engine.distances import DISTANCES
from ddfast.engine.planner import UnrollSize
from ddfast.methods.settings import LARGEST_LR, OUTER, Rate, SetSettings
from ddfast.runtime.arguments import expect_whole
from ddfast.runtime.options import AtLeast0, AtLeast1, Ge, Gt, Le, Lt, NotNegative, OneOf, Option

UNROLL = "Unroll"


@dataclass(frozen=True, kw_only=True)
class TrajectorySettings(SetSettings):
    """The options of trajectory matching: the unroll, and the segment of an expert's trajectory that it matches.

    Starts are drawn from min_start_epoch … max_start_epoch − 1; with current_max_start_epoch the upper bound begins
    there and reaches max_start_epoch at iteration expansion_end. The student's learning rate is learned with momentum
    0.5. Losses of several segments are averaged.
    """

    syn_steps: Annotated[AtLeast1, Option(UNROLL, "Inner steps.")]
    batch_syn: Annotated[AtLeast1 | None, Option(UNROLL, "Synthetic images per inner step; none: all.")] = None
    syn_momentum: Annotated[float, Ge(0), Lt(1), Option(UNROLL, "Momentum of the inner steps.")] = (
        0.0  # of the student's SGD
    )
    expert_epochs: Annotated[AtLeast1, Option(UNROLL, "Epochs between start and target.")]
    min_start_epoch: Annotated[AtLeast0, Option(UNROLL, "Starts are drawn from this epoch on.")] = 0
    max_start_epoch: Annotated[AtLeast1, Option(UNROLL, "Starts are drawn from below this epoch.")]
    current_max_start_epoch: Annotated[
        AtLeast1 | None, Option(UNROLL, "At first from below this one.", "max_start_epoch")
    ] = None
    expansion_end: Annotated[
        AtLeast1 | None, Option(UNROLL, "The iteration at which max_start_epoch is reached.", "none")
    ] = None
    starts: Annotated[Literal["random", "in_turn"], Option(UNROLL, "How starts are drawn.")] = "random"
    start_noise: Annotated[NotNegative, Le(LARGEST_LR), Option(UNROLL, "Gaussian noise on the student's start.")] = 0.0
    segments: Annotated[AtLeast1, Option(UNROLL, "Experts' segments per outer step.")] = 1
    distance: Annotated[str, OneOf(DISTANCES), Option(UNROLL, "Between student and target.")] = "squared"
    lr_teacher: Annotated[float, Gt(0), Le(LARGEST_LR), Option(OUTER, "The student's first learning rate.")]
    lr_lr: Annotated[Rate, Option(OUTER, "Learning rate of the student's learning rate.")]

    def __post_init__(self) -> None:
        super().__post_init__()
        low, now, high = self.min_start_epoch, self.current_max_start_epoch, self.max_start_epoch
        if not low < high:
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
        return max(self.max_start_epoch - 1 + self.expert_epochs, self.select_epoch or 0)

    @property
    def used_epochs(self) -> tuple[int, int]:
        """Those of segments, and where images are selected by an epoch's scores that one."""
        first = self.min_start_epoch if self.select_epoch is None else min(self.min_start_epoch, self.select_epoch)
        return first, self.epochs_needed

    def on_device(self, count: int) -> int:
        """How many of `count` images an outer step needs there: those of its minibatches, or all where an average or
        Adam moves all of them."""
        if self.ema_decay is not None or self.img_optimizer != "sgd" or self.parameterisation != "pixels":
            return count
        return min(count, self.syn_steps * (self.batch_syn or count))

    def unroll_size(
        self,
        images: torch.Size,  # [I, C, H, W], as networks see them
        device: torch.device,
        *,
        num_classes: int,
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
