"""The settings that every method has: what the synthetic set begins as, and how it is learned."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Annotated, Any, ClassVar, Literal, Self

from ddfast.data import DSA, Bases, Frequencies, Pixels, Tiles
from ddfast.data.augment import FULL_STRATEGY
from ddfast.data.parameterisation import with_canvas
from ddfast.experts import NEVER_LEARNT, SCORES
from ddfast.methods.coresets.selection import BY_FEATURES, FEATURES, SELECTIONS
from ddfast.runtime.options import AtLeast0, AtLeast1, Ge, Gt, Le, Lt, OneOf, Option, check_options

LARGEST_LR = 1e30  # float32 has to hold it, and its products with gradients
INITS = ("real", "noise", "first", "correct", *SELECTIONS)

Rate = Annotated[float, Ge(0), Le(LARGEST_LR)]
Parameterised = Literal["pixels", "tiles", "bases", "frequencies"]
OUTER = "Outer step"
SCORING_EXPERTS = 3  # whose scores are averaged, where a run trains them for that alone


@dataclass(frozen=True, kw_only=True)
class SetSettings:
    """How a synthetic set begins and is learned. A method's Settings are a subclass with its own options.

    Images are learned with momentum 0.5 (sgd) or by Adam with betas (0.5, 0.999); label logits with momentum 0.9.

    Errors: ValueError for a value that its field does not take.
    """

    init: Annotated[str, Option(OUTER, f"{', '.join(INITS)}; or a saved set or run to go on from.")] = "real"
    select_on: Annotated[
        Annotated[str, OneOf(FEATURES)], Option(OUTER, "What init herding and k_center compare: features, or pixels.")
    ] = "experts"
    select_epoch: Annotated[
        AtLeast0 | None, Option(OUTER, "Of the experts, for init grand and el2n.", "10, or the nearest kept")
    ] = None
    window_start: Annotated[
        float, Ge(0), Lt(1), Option(OUTER, "The share of the hardest images that init window leaves out.")
    ] = 0.5
    never_learnt: Annotated[
        Annotated[str, OneOf(NEVER_LEARNT)], Option(OUTER, "Where init forgetting has images that are never learnt.")
    ] = "first"
    labels: Annotated[
        str, Option(OUTER, "hard, soft (learned logits), or target (tesla).", "the preset's, or hard")
    ] = "hard"
    lr_img: Annotated[Rate, Option(OUTER, "Learning rate of the images.")]
    lr_label: Annotated[Rate, Option(OUTER, "Learning rate of soft labels.")] = 0.0
    img_optimizer: Annotated[Literal["sgd", "adam"], Option(OUTER, "Of the images.")] = "sgd"
    threshold: Annotated[
        Annotated[float, Gt(0)] | None, Option(OUTER, "Updates with a larger loss are left out.", "none")
    ] = None
    ema_decay: Annotated[
        float | None, Option(OUTER, "Of an average of the images, which is kept and evaluated beside them.", "none")
    ] = None
    dsa_strategy: Annotated[
        str,
        Option("Data", "color_crop: one of them is drawn; crop+flip: both; dsa:… as DSA draws; none.", "the preset's"),
    ] = FULL_STRATEGY
    canvas: Annotated[
        AtLeast1, Option(OUTER, "Side of an image over what networks see of it; more than 1: textures.")
    ] = 1
    parameterisation: Annotated[
        Parameterised,
        Option(OUTER, "What is learned: pixels; small images in tiles (IDC), of shared bases (LinBa), or FreD's."),
    ] = "pixels"
    factor: Annotated[
        AtLeast1, Option(OUTER, "Of tiles, bases, frequencies: factor² times as many images in the same storage.")
    ] = 2
    bases: Annotated[AtLeast1 | None, Option(OUTER, "How many bases.", "what the storage holds")] = None
    lr_weights: Annotated[Rate | None, Option(OUTER, "Learning rate of the weights of bases.", "lr_img")] = None

    LABELS: ClassVar[tuple[str, ...]] = ("hard", "soft")  # those that a method has
    BETAS: ClassVar[tuple[float, float]] = (0.5, 0.999)  # of Adam for the images
    FIRST_LOGIT: ClassVar[float | None] = None  # of an image's class, where soft labels begin as it; None: experts'

    def __post_init__(self) -> None:
        if not isinstance(self.init, str) or not self.init:  # a set, perhaps
            got = repr(self.init) if isinstance(self.init, str) else f"{type(self.init).__name__}; save it first"
            raise ValueError(f"init: expected one of {', '.join(INITS)}, or a saved set's path, got {got}")
        check_options(self)
        if self.ema_decay is not None and not 0 < self.ema_decay < 1:
            raise ValueError(f"ema_decay: expected more than 0 and less than 1, got {self.ema_decay}")
        DSA(self.dsa_strategy)  # refuses an unknown one
        if self.labels not in self.LABELS:
            raise ValueError(f"labels: expected {' or '.join(self.LABELS)} for this method, got {self.labels!r}")
        if self.canvas > 1 and self.parameterisation != "pixels":
            raise ValueError(f"canvas: expected 1 with {self.parameterisation}, got {self.canvas}")
        if self.ema_decay is not None and self.parameterisation == "bases":
            raise ValueError("ema_decay: bases and their weights are learned together; expected none with bases")
        for name in ("bases", "lr_weights"):
            if getattr(self, name) is not None and self.parameterisation != "bases":
                raise ValueError(f"{name}: is of parameterisation bases, got {self.parameterisation}")
        if self.lr_label and self.labels != "soft":
            raise ValueError(f"lr_label: {self.labels} labels are not learned; expected 0, got {self.lr_label}")

    @property
    def images_per_stored(self) -> int:
        """How many images networks see for every image of storage."""
        return 1 if self.parameterisation == "pixels" else self.factor**2

    def parameterised(
        self,
        size: tuple[int, int, int],  # (C, H, W), as networks see images
        stored: int,  # images whose storage it may take
    ) -> Pixels:
        """How learned tensors become images."""
        if self.parameterisation == "tiles":
            return Tiles(self.factor)
        if self.parameterisation == "bases":
            return Bases.within(self.factor, size, stored, self.bases)
        if self.parameterisation == "frequencies":
            return Frequencies.within(self.factor, size, stored)
        return with_canvas(self.canvas)

    @classmethod
    def judges(cls, values: Mapping[str, Any]) -> int:
        """How many experts a run with these options (others by default) looks at, though its method needs none, for the
        images and labels that it begins with; 0 where at none."""

        def value(name: str) -> Any:
            return values.get(name, getattr(cls, name, None))

        init = value("init")
        if init in (*SCORES, "window", "correct"):
            return SCORING_EXPERTS
        if init in BY_FEATURES and value("select_on") == "experts":
            return 1
        return int(value("labels") == "soft" and cls.FIRST_LOGIT is None)

    def timed(self) -> tuple[Self, float]:
        """Settings whose steps can be timed before there are experts, within seconds where possible; and how many of
        them one of these settings is."""
        if self.FIRST_LOGIT is not None:
            return replace(self, init="noise"), 1.0
        return replace(self, init="noise", labels="hard", lr_label=0.0), 1.0

    @property
    def used_epochs(self) -> tuple[int, int]:
        """The first and the last epoch of an expert, beside its last one, that a run looks at."""
        return self.select_epoch or 0, self.select_epoch or 0

    def on_device(self, count: int) -> int:
        """How many of `count` images an outer step needs there: all, unless a method says otherwise."""
        return count
