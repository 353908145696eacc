"""The command `study`: what distilled sets are for, and what they tell of a method."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click

from ddfast.cli.commands import cli
from ddfast.cli.options import AT_LEAST_1, PATH, POSITIVE, Command, OptionType, option
from ddfast.cli.printing import print_columns
from ddfast.run.config import run_options

SET = click.argument("synthetic", type=PATH)
OUTPUT = option("--output", type=PATH, help="Folder, which a stopped study goes on from.  [default: studies/NAME]")
DATASET = option("--dataset", help="Real data.  [default: the run's]")
ROOT = option("--data-root", type=PATH, help="Where named data sets are.  [default: DDFAST_DATA, or the cache]")
SEED = option("--seed", type=int, default=0, help="Same seed, same result.")
DEVICE = option("--device", help="cpu, cuda, ….  [default: a GPU if there is one]")
METHOD_OPTION = option(
    "--set", "options", multiple=True, metavar="NAME=VALUE", help="An option of ddfast distill, as iterations=100."
)


@cli.group()
def study() -> None:
    """Studies of distilled sets; each leaves study.json and a picture in its folder."""


@study.command(cls=Command)
@SET
@OUTPUT
@DATASET
@ROOT
@option("--count", type=AT_LEAST_1, default=720, help="Networks of the 720, drawn by the seed.")
@option("--eval-epochs", type=AT_LEAST_1, default=200, help="Epochs on the set.")
@option("--full-epochs", type=AT_LEAST_1, default=20, help="Epochs on real data.")
@SEED
@DEVICE
def architectures(synthetic: Path, output: Path | None, dataset: Any, **options: Any) -> None:
    """Whether SYNTHETIC ranks networks as real data do: architecture search (FTD, section 4.4)."""
    from ddfast.runtime.ranks import launched
    from ddfast.studies import architectures

    with launched() as ranks:
        table = architectures(synthetic, dataset, _folder(output, "architectures"), ranks=ranks, **options)
    if ranks.is_first:
        _print(table, _folder(output, "architectures"))


@study.command(cls=Command)
@OUTPUT
@option("--dataset", default="digits", help="A name, a folder or a file.")
@ROOT
@option("--method", default="herding", help="How the memory is made: any method or coreset.")
@option("--steps", type=AT_LEAST_1, default=5, help="Into which the classes are divided.")
@option("--ipc", type=AT_LEAST_1, default=20, help="Images per class in the memory.")
@option("--orders", type=AT_LEAST_1, default=5, help="Orders of the classes.")
@option("--network", default="convnet", help="What is trained on the memory, and distilled with.")
@option("--num-eval", type=AT_LEAST_1, default=3, help="Networks per order and step.")
@option("--eval-epochs", type=AT_LEAST_1, default=1000, help="Epochs on the memory.")
@option("--protocol", default="dsa", help="How networks are trained on it.")
@METHOD_OPTION
@SEED
@DEVICE
def continual(output: Path | None, options: tuple[str, ...], dataset: Any, **how: Any) -> None:
    """Class-incremental learning with a memory of distilled or selected images (GDumb; DM's protocol)."""
    from ddfast.runtime.ranks import launched
    from ddfast.studies import continual

    with launched() as ranks:
        folder = _folder(output, "continual")
        table = continual(dataset, folder, ranks=ranks, **how, **_options(options, how))
    if ranks.is_first:
        _print(table, folder)


@study.command(cls=Command)
@OUTPUT
@option("--dataset", default="digits", help="A name, a folder or a file.")
@ROOT
@option("--method", default="kip", help="How clients distil: any method or coreset.")
@option("--clients", type=AT_LEAST_1, default=10, help="Among which the training images are divided.")
@option("--classes-per-client", type=AT_LEAST_1, help="2: FedD3's non-IID setting.  [default: all, IID]")
@option("--ipc", type=AT_LEAST_1, default=1, help="Images per class that a client sends.")
@option("--networks", default="lenet", help="That the server trains, separated by commas.")
@option("--num-eval", type=AT_LEAST_1, default=3, help="Networks of each name.")
@option("--eval-epochs", type=AT_LEAST_1, default=500, help="Epochs on the server.")
@option("--protocol", default="fedd3", help="How the server trains.")
@option("--workers", type=AT_LEAST_1, default=1, help="Clients at a time.")
@METHOD_OPTION
@SEED
@DEVICE
def federated(output: Path | None, options: tuple[str, ...], dataset: Any, networks: str, **how: Any) -> None:
    """One-shot federated learning: clients distil what they hold and send only that (FedD3)."""
    from ddfast.studies import federated

    folder = _folder(output, "federated")
    _print(federated(dataset, folder, networks=tuple(networks.split(",")), **how, **_options(options, how)), folder)


@study.command(cls=Command)
@SET
@OUTPUT
@DATASET
@ROOT
@option("--network", help="Whose features and losses are looked at.  [default: the set's]")
@option("--eval-epochs", type=AT_LEAST_1, default=300, help="Epochs on the set.")
@option("--most", type=AT_LEAST_1, default=10000, help="Training and test images that the attack looks at.")
@SEED
@DEVICE
def privacy(synthetic: Path, output: Path | None, dataset: Any, **options: Any) -> None:
    """The nearest training images of SYNTHETIC's, and a membership-inference attack."""
    from ddfast.studies import privacy

    folder = _folder(output, "privacy")
    _print(privacy(synthetic, dataset, folder, **options), folder, rows=False)


@study.command("trajectory-error", cls=Command)
@click.argument("synthetic", type=PATH, nargs=-1, required=True)
@OUTPUT
@DATASET
@ROOT
@option("--experts", type=PATH, help="Folder of experts, all epochs kept.  [default: the first run's]")
@option("--syn-steps", type=AT_LEAST_1, default=50, help="Steps of a student …")
@option("--expert-epochs", type=AT_LEAST_1, default=2, help="… for so many epochs of an expert.")
@option("--num-experts", type=AT_LEAST_1, default=1, help="Whose means are taken.")
@option("--last-epoch", type=AT_LEAST_1, help="Of an expert.  [default: its last]")
@SEED
@DEVICE
def trajectory_error(
    synthetic: tuple[Path, ...], output: Path | None, dataset: Any, experts: Path | None, **options: Any
) -> None:
    """How far students on SYNTHETIC, one set or several, leave an expert's path (FTD, figure 1)."""
    from ddfast.studies import trajectory_error

    folder = _folder(output, "trajectory-error")
    _print(trajectory_error({str(path): path for path in synthetic}, dataset, experts, folder, **options), folder)


@study.command("range", cls=Command)
@OUTPUT
@option("--dataset", default="digits", help="A name, a folder or a file.")
@ROOT
@option("--syn-steps", default="10,20,50", help="Numbers of steps, separated by commas.")
@option("--expert-epochs", default="1,2,3", help="Numbers of epochs, separated by commas.")
@METHOD_OPTION
def range_of(output: Path | None, dataset: Any, data_root: Any, options: tuple[str, ...], **numbers: str) -> None:
    """Accuracy over the steps of a student and the epochs of an expert (MTT, figure 5)."""
    from ddfast.runtime.ranks import launched
    from ddfast.studies import range_study

    folder = _folder(output, "range")
    counts = {name: _numbers(name, text) for name, text in numbers.items()}
    how = _options(options, counts) | ({} if data_root is None else {"data_root": data_root})
    with launched() as ranks:
        table = range_study(dataset, folder, ranks=ranks, **counts, **how)
    if ranks.is_first:
        _print(table, folder)


@study.command("gradient-error", cls=Command)
@OUTPUT
@option("--dataset", default="digits", help="What the experts were trained on.")
@ROOT
@option("--experts", type=PATH, required=True, help="Folder of experts.")
@option("--steps", default="1,10,20,50", help="Numbers of steps, separated by commas.")
@option("--draws", type=AT_LEAST_1, default=5, help="Segments and images that are drawn.")
@option("--ipc", type=AT_LEAST_1, default=1, help="Images per class.")
@option("--lr", type=POSITIVE, default=0.01, help="The student's rate.")
@option("--dsa-strategy", default="none", help="Augmentation.")
@option("--expert-epochs", type=AT_LEAST_1, default=2, help="Of a segment.")
@option(
    "--image-size",
    type=OptionType(run_options()["image_size"]),
    help="That the experts were trained at.  [default: the images' own]",
)
def gradient_error(output: Path | None, dataset: Any, experts: Path, steps: str, **options: Any) -> None:
    """How far TESLA's approximate gradient is from the exact one."""
    from ddfast.studies import gradient_error

    folder = _folder(output, "gradient-error")
    _print(gradient_error(dataset, experts, folder, steps=_numbers("steps", steps), **options), folder)


@study.command("loss-correlation", cls=Command)
@click.argument("runs", type=PATH, nargs=-1, required=True)
@OUTPUT
@option("--smooth", type=AT_LEAST_1, default=20, help="Iterations whose mean loss is taken.")
def loss_correlation(runs: tuple[Path, ...], output: Path | None, smooth: int) -> None:
    """Whether the loss of RUNS, made with --eval-every, tells what their sets are worth."""
    from ddfast.studies import loss_correlation

    folder = _folder(output, "loss-correlation")
    _print(loss_correlation(runs, folder, smooth=smooth), folder)


def _numbers(name: str, text: str) -> tuple[int, ...]:
    """Of a text such as 10,20,50."""
    parts = text.split(",")
    if not all(part.strip().isdigit() for part in parts):
        raise ValueError(f"{name}: expected whole numbers separated by commas, got {text!r}")
    return tuple(map(int, parts))


def _folder(output: Path | None, name: str) -> Path:
    return Path("studies") / name if output is None else output


def _options(texts: tuple[str, ...], own: Mapping[str, Any]) -> dict[str, Any]:
    """Options of `distill`, from NAME=VALUE; ValueError for unknown ones, and for those that the study has itself."""
    known, found = run_options(), {}
    for text in texts:
        name, _, value = text.partition("=")
        name = name.replace("-", "_")
        if name not in known or not value:
            raise ValueError(f"--set: expected an option of ddfast distill as NAME=VALUE, got {text!r}")
        if name in ("dataset", "networks", "output", *own):
            raise ValueError(f"--set {name}: expected as an option of the study, --{name.replace('_', '-')} {value}")
        try:
            found[name] = OptionType(known[name]).convert(value, None, None)
        except click.BadParameter as error:
            raise ValueError(f"--set {name}: {error.message}") from None
    return found


def _print(table: dict[str, Any], folder: Path, *, rows: bool = True) -> None:
    if rows:
        head = list(table["rows"][0])
        print_columns([head, *([_words(row[key]) for key in head] for row in table["rows"])], left=len(head))
    for name, value in table["findings"].items():
        words = ", ".join(f"{k} {_words(v)}" for k, v in value.items()) if isinstance(value, dict) else _words(value)
        click.echo(f"{name.replace('_', ' ')}: {words}")
    click.echo(f"table: {folder / 'study.json'}")


def _words(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
