"""The options of the command line, in groups, and their types."""

from pathlib import Path

import click


def options(*options):
    """Several click options as one decorator, in this order."""

    def decorate(function):
        for option in reversed(options):
            function = option(function)
        return function

    return decorate


class ImageSize(click.ParamType):
    """A side, or HxW, in pixels."""

    name = "N or HxW"

    def convert(self, value, param, ctx):
        """As load_dataset takes it."""
        sides = str(value).lower().split("x")
        if not all(side.isdigit() and int(side) > 0 for side in sides) or len(sides) > 2:
            self.fail(f"expected a side or HxW in pixels, got {value!r}", param, ctx)
        return int(sides[0]) if len(sides) == 1 else (int(sides[0]), int(sides[1]))


class ValueRange(click.ParamType):
    """Two numbers, or auto."""

    name = "auto or LOW,HIGH"

    def convert(self, value, param, ctx):
        """As load_dataset takes it."""
        from ddfast.data.pixels import as_value_range

        try:
            return as_value_range(value.split(",") if isinstance(value, str) and value != "auto" else value)
        except ValueError:
            self.fail(f"expected auto, or the values of black and white as 0,4095, got {value!r}", param, ctx)


class TrainEpochs(click.ParamType):
    """A number of epochs, or needed."""

    name = "N or needed"

    def convert(self, value, param, ctx):
        """As distill takes it."""
        if value == "needed" or isinstance(value, int):
            return value
        if not str(value).isdigit() or int(value) < 1:
            self.fail(f"expected a whole number of at least 1, or needed, got {value!r}", param, ctx)
        return int(value)


class Experiment(click.ParamType):
    """The number of an experiment, or all."""

    name = "N or all"

    def convert(self, value, param, ctx):
        """As convert takes it."""
        if value == "all" or isinstance(value, int):
            return value
        if not str(value).isdigit():
            self.fail(f"expected a whole number from 0, or all, got {value!r}", param, ctx)
        return int(value)


class KeepEpochs(click.ParamType):
    """The first and the last epoch, needed, or all."""

    name = "A-B, needed or all"

    def convert(self, value, param, ctx):
        """As distill takes it."""
        if value in ("needed", "all") or isinstance(value, tuple):
            return value
        first, _, last = str(value).partition("-")
        if not (first.isdigit() and last.isdigit()):
            self.fail(f"expected a first and a last epoch as 40-61, needed, or all, got {value!r}", param, ctx)
        return int(first), int(last)


class ImagesPerClass(click.ParamType):
    """A number, or a file with a number per class."""

    name = "N or FILE"

    def convert(self, value, param, ctx):
        """As distill takes it."""
        if not isinstance(value, str) or not value.lstrip("-").isdigit():
            return value
        if int(value) < 1:
            self.fail(f"expected a whole number of at least 1, got {value}", param, ctx)
        return int(value)


class OrNone(click.ParamType):
    """A number of another type, or none, which switches off what the preset has."""

    def __init__(self, number: click.ParamType):
        self.number, self.name = number, "N or none"

    def convert(self, value, param, ctx):
        """As distill takes it."""
        return value if value == "none" else self.number.convert(value, param, ctx)


class Names(click.ParamType):
    """Names separated by commas."""

    name = "NAMES"

    def convert(self, value, param, ctx):
        """As a tuple."""
        return tuple(name.strip() for name in value.split(",")) if isinstance(value, str) else value


AT_LEAST_0 = click.IntRange(min=0)
AT_LEAST_1 = click.IntRange(min=1)
POSITIVE = click.FloatRange(min=0, min_open=True)
NOT_NEGATIVE = click.FloatRange(min=0)
PATH = click.Path(path_type=Path)
SNAPSHOTS = ["float32", "delta16", "delta8"]  # of ddfast.experts
PROTOCOLS = ["ddfast", "mtt", "datm", "simplified"]  # of ddfast.evaluate, which takes seconds to import

memory_option = click.option(
    "--memory-budget", help="What an outer step may use: bytes, 4GiB, 0.5 or 50% of what is free.  [default: 50%]"
)
budget_option = click.option(
    "--budget", help="Time for the whole job, as 20min or 2h.  [default: 10min for data that no preset is of]"
)
root_options = options(
    click.option("--data-root", type=PATH, help="Where named data sets are.  [default: DDFAST_DATA, or the cache]"),
    click.option("--download", is_flag=True, help="Fetch a named data set that is not there."),
)
where_options = options(
    root_options,
    click.option("--device", default=None, help="cpu, cuda, cuda:1, …  [default: a GPU if there is one]"),
)
size_options = options(
    click.option("--image-size", type=ImageSize(), help="Resize to this.  [default: their own, or what fits them]"),
    click.option("--resize", type=click.Choice(["stretch", "crop"]), help="How.  [default: stretch]"),
)
picture_options = options(
    click.option("--test-folder", help="Of a folder of pictures: the one in it to test on.  [default: test, else val]"),
    click.option(
        "--value-range", type=ValueRange(), help="Black and white of deep pictures.  [default: what fits all]"
    ),
    click.option("--skip-unreadable", is_flag=True, default=None, help="Leave out pictures that cannot be read."),
    click.option("--layout", help="NCHW or NHWC: where arrays have channels.  [default: where sizes leave no doubt]"),
)
preprocessing_option = click.option(
    "--preprocessing", type=PATH, help="The run, experts, set or .json whose mean and std are kept.  [default: fitted]"
)
data_options = options(
    click.option(
        "--dataset",
        help="Name of a data set, a folder of pictures, or a file of arrays (docs/data.md).  [default: digits]",
    ),
    where_options,
    size_options,
    picture_options,
    click.option("--zca/--no-zca", default=None, help="Whiten the images.  [default: the preset's]"),
    preprocessing_option,
    click.option("--network", help="With options: convnet:depth=4:width=64.  [default: the preset's]"),
    click.option("--seed", type=int, help="Same seed, same result.  [default: 0]"),
    click.option("--preset", help="Settings to start from; see `ddfast presets`.  [default: the nearest]"),
    click.option("--ipc", type=ImagesPerClass(), help="Images per class, or a .json or .toml of them.  [default: 1]"),
)
minibatch_options = options(
    click.option("--batch-train", type=AT_LEAST_1, help="Real images per minibatch of an expert."),
    click.option("--mom", type=NOT_NEGATIVE, help="Momentum of the experts."),
    click.option("--l2", type=NOT_NEGATIVE, help="Weight decay of the experts."),
)
training_options = options(
    click.option("--num-experts", type=AT_LEAST_1, help="Experts to train.  [default: the preset's, as all below]"),
    minibatch_options,
    click.option("--dsa-strategy", help="color_crop: one of them is drawn; crop+flip: both; dsa:… as DSA draws; none."),
)
evaluation_options = options(
    click.option("--num-eval", type=AT_LEAST_1, help="Networks trained from scratch for an evaluation.  [default: 5]"),
    click.option("--eval-epochs", type=AT_LEAST_1, help="1001 for MTT's epoch_eval_train 1000.  [default: protocol's]"),
    click.option("--protocol", type=click.Choice(PROTOCOLS), help="How: mtt as its code does, ….  [default: ddfast]"),
)
optimizer_options = options(
    click.option(
        "--optimizer", type=click.Choice(["sgd", "gsam"]), help="gsam: for flat trajectories.  [default: sgd]"
    ),
    click.option("--rho", type=POSITIVE, help="Of gsam: the length of its ascent.  [default: 0.01]"),
    click.option("--alpha", type=NOT_NEGATIVE, help="Of gsam: 0 is SAM.  [default: 1]"),
    click.option(
        "--schedule",
        type=click.Choice(["constant", "cosine"]),
        help="Of their learning rate.  [default: constant]",
    ),
)
storage_options = options(
    click.option(
        "--keep-epochs", type=KeepEpochs(), help="Snapshots that are kept, beside the last epoch's.  [default: all]"
    ),
    click.option(
        "--snapshots",
        type=click.Choice(SNAPSHOTS),
        help="delta16, delta8: rounded to 1/2, 1/3 of the bytes.  [default: float32]",
    ),
)
method_options = options(
    click.option("--init", help="real, noise, first, correct (of the experts), or a saved set or run to go on from."),
    click.option("--labels", help="hard, soft (learned logits), or target (tesla).  [default: the preset's, or hard]"),
    click.option("--syn-steps", type=AT_LEAST_1, help="Inner steps."),
    click.option("--syn-momentum", type=NOT_NEGATIVE, help="Momentum of the inner steps.  [default: 0]"),
    click.option("--batch-syn", type=OrNone(AT_LEAST_1), help="Synthetic images per inner step; none: all."),
    click.option("--expert-epochs", type=AT_LEAST_1, help="Epochs between start and target."),
    click.option("--min-start-epoch", type=click.IntRange(min=0), help="Starts are drawn from this epoch on."),
    click.option("--max-start-epoch", type=AT_LEAST_1, help="Starts are drawn from below this epoch."),
    click.option("--current-max-start-epoch", type=OrNone(AT_LEAST_1), help="At first from below this one."),
    click.option(
        "--expansion-end", type=OrNone(AT_LEAST_1), help="The iteration at which --max-start-epoch is reached."
    ),
    click.option("--starts", help="random, or in_turn."),
    click.option("--start-noise", type=NOT_NEGATIVE, help="Gaussian noise on the student's start.  [default: 0]"),
    click.option("--segments", type=AT_LEAST_1, help="Experts' segments per outer step.  [default: 1]"),
    click.option("--distance", help="squared, l1, cosine, layerwise, or unnormalised.  [default: squared]"),
    click.option("--lr-img", type=NOT_NEGATIVE, help="Learning rate of the images."),
    click.option("--img-optimizer", help="sgd, or adam.  [default: sgd]"),
    click.option("--lr-lr", type=NOT_NEGATIVE, help="Learning rate of the student's learning rate."),
    click.option("--lr-teacher", type=POSITIVE, help="The student's first learning rate."),
    click.option("--lr-label", type=NOT_NEGATIVE, help="Learning rate of soft labels."),
    click.option(
        "--threshold", type=OrNone(POSITIVE), help="Updates with a loss above it are left out.  [default: none]"
    ),
    click.option(
        "--ema-decay", type=OrNone(click.FLOAT), help="Of an average of the images, kept beside them.  [default: none]"
    ),
    click.option("--canvas", type=AT_LEAST_1, help="Side of an image over what networks see of it.  [default: 1]"),
    click.option("--pruning-threshold", type=float, help="pp: parameters of smaller ratios are left out."),
    click.option("--drop-ratio", type=float, help="pad, edf: the share of near parameters that is left out."),
)
