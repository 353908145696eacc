"""The options of the methods that differentiate through training."""

from dataclasses import dataclass, replace
from typing import Annotated, ClassVar, Literal, Self

import torch

from ddfast.engine.optimizers import SGD, Adam, Optimizer
from ddfast.engine.planner import UnrollSize
from ddfast.methods.settings import LARGEST_LR, OUTER, Rate, SetSettings
from ddfast.runtime.options import AtLeast0, AtLeast1, Ge, Gt, Le, Lt, NotNegative, Option, Positive

UNROLL = "Unroll"
Norms = Literal["none", "start", "always"]


@dataclass(frozen=True, kw_only=True)
class ThroughTimeSettings(SetSettings):
    """Options of back-propagation through time. Images and labels are learned by Adam with betas (0.9, 0.999)."""

    init: str = "noise"
    lr_img: float = 1e-3
    img_optimizer: Literal["sgd", "adam"] = "adam"
    dsa_strategy: str = "dsa:flip_rotate"
    total_steps: Annotated[AtLeast1, Option(UNROLL, "Inner steps that the longest training has.")] = 200
    window: Annotated[
        AtLeast1 | None, Option(UNROLL, "Inner steps that are differentiated through, the last ones.", "all")
    ] = None
    min_steps: Annotated[AtLeast0, Option(UNROLL, "Inner steps before the window, at least.")] = 0
    inner_optimizer: Annotated[Literal["adam", "sgd"], Option(UNROLL, "Of the inner steps.")] = "adam"
    syn_momentum: Annotated[float, Ge(0), Lt(1), Option(UNROLL, "Momentum of the inner steps, by sgd.")] = 0.0
    syn_decay: Annotated[NotNegative, Option(UNROLL, "Weight decay of the inner steps.")] = 0.0
    lr_teacher: Annotated[Positive, Le(LARGEST_LR), Option(OUTER, "The student's first learning rate.")] = 1e-3
    lr_lr: Annotated[Rate, Option(OUTER, "Learning rate of the student's learning rate.")] = 0.0
    per_class: Annotated[AtLeast1 | None, Option(UNROLL, "Synthetic images of a class in an inner step.", "all")] = None
    classes_per_step: Annotated[AtLeast1 | None, Option(UNROLL, "Classes in an inner step.", "all")] = None
    batch_real: Annotated[AtLeast1, Option(OUTER, "Real images whose loss is descended on.")] = 1024
    image_norm: Annotated[
        Norms, Option(OUTER, "start: each image is scaled to norm 1 at first; always: after every step, too.")
    ] = "start"
    clip: Annotated[
        Annotated[float, Gt(0)] | None,
        Option(OUTER, "Longest gradient in the images, over the average of their norms.", "none"),
    ] = 2.0

    BETAS: ClassVar[tuple[float, float]] = (0.9, 0.999)
    FIRST_LOGIT: ClassVar[float | None] = 20.0  # a probability of 1
    segments: ClassVar[int] = 1

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.syn_momentum and self.inner_optimizer == "adam":
            raise ValueError(f"syn_momentum: is of inner_optimizer sgd; expected 0, got {self.syn_momentum}")
        if self.min_steps + self.longest_window > self.total_steps:
            raise ValueError(
                f"total_steps: expected at least {self.min_steps + self.longest_window}, the window after min_steps, "
                f"got {self.total_steps}"
            )
        if self.image_norm != "none" and self.parameterisation != "pixels":
            raise ValueError(f"image_norm: is of pixels; expected none with {self.parameterisation}")

    @property
    def longest_window(self) -> int:
        """The most steps that are differentiated through."""
        return self.total_steps - self.min_steps if self.window is None else self.window

    @property
    def optimizer(self) -> Optimizer:
        """Of the inner steps."""
        if self.inner_optimizer == "adam":
            return Adam(weight_decay=self.syn_decay)
        return SGD(self.syn_momentum, self.syn_decay)

    def timed(self) -> tuple[Self, float]:
        """A tenth of the steps and of the real images."""
        settings, _ = super().timed()
        return replace(settings, **self._tenth()), 10.0

    def _tenth(self) -> dict[str, int]:
        window, before = -(-self.longest_window // 10), self.min_steps // 10
        total = max(-(-self.total_steps // 10), window + before)
        return {"total_steps": total, "window": window, "min_steps": before, "batch_real": -(-self.batch_real // 10)}

    def minibatch(self, count: int, num_classes: int) -> int:
        """Images of an inner step, of so many in all."""
        classes = min(self.classes_per_step or num_classes, num_classes)
        return min(count, classes * (self.per_class or -(-count // num_classes)))

    def unroll_size(
        self,
        images: torch.Size,  # [I, C, H, W], as networks see them
        device: torch.device,
        *,
        num_classes: int,
        return_states: bool = False,
    ) -> UnrollSize:
        """What the memory of an outer step depends on, besides the student."""
        B = self.minibatch(images[0], num_classes)
        moments = self.optimizer.num_moments
        keeps = moments > 0 and (self.inner_optimizer == "adam" or self.longest_window < self.total_steps)
        return UnrollSize(
            self.longest_window,
            torch.Size((B, *images[1:])),
            images[0],
            momentum=moments > 0,
            on_gpu=device.type == "cuda",
            moments=moments if keeps else None,
        )
