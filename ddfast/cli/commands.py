"""The command line: the only place that prints, and that turns options into keyword arguments."""

import ctypes
import logging
import os
import signal
import sys
from pathlib import Path
from typing import Any

import click

from ddfast.cli.options import AT_LEAST_1, PATH, Command, declared, option
from ddfast.cli.printing import print_table, print_transfer, words_of_storage

M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4  # of malloc.h
USELESS = 3  # exit status of a run whose images are no better than random real ones
EXPECTED = (ValueError, TypeError, OSError, NotImplementedError, MemoryError)  # what the library raises at its doors


def main() -> None:
    """Run `ddfast`; an error is one sentence on stderr and exit status 1, a traceback only with --traceback."""
    make_page_faults_rare()
    told = _end_when_told()
    for stream in (sys.stdout, sys.stderr):
        if stream is not None:  # a name that cannot be shown is no reason to lose a result
            stream.reconfigure(errors="backslashreplace")
    try:
        cli(prog_name="ddfast")
    except SystemExit as error:
        sys.exit(128 + told[0] if told and error.code else error.code)
    except Exception as error:
        if "--traceback" in sys.argv[1:2]:
            raise
        if told:  # a library made its own error of the interrupt that it met
            sys.exit(128 + told[0])
        if os.environ.get("RANK", "0") != "0" and type(error).__name__ == "RankError":
            sys.exit(1)  # the first process says what happened
        nameless = "memory ran out" if isinstance(error, MemoryError) else type(error).__name__
        sentence = " ".join(str(error).split()) or nameless
        if not isinstance(error, EXPECTED):
            sentence = f"{type(error).__name__}: {sentence} (`ddfast --traceback …` shows where)"
        click.echo(f"ddfast: {sentence}", err=True)
        sys.exit(1)


def _end_when_told() -> list[int]:
    """Have a run that is told to end save what it has, as on Ctrl-C; the signals that came will be in the list.

    A signal that is ignored stays so: of `nohup`, or Ctrl-C of a run in the background.
    """
    told: list[int] = []

    def end(number: int, _frame: Any) -> None:
        told.append(number)
        raise KeyboardInterrupt

    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, end)
    return told


def make_page_faults_rare() -> None:
    """On a CPU they are up to half of the time of large tensors: let PyTorch ask for large pages, and glibc keep what
    is freed for the next tensor instead of giving it back to the system."""
    os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)  # glibc has it
    if mallopt is not None and not any(name.startswith("MALLOC_") for name in os.environ):
        mallopt(M_MMAP_MAX, 0)
        mallopt(M_TRIM_THRESHOLD, 2**31 - 1)


@click.group(
    context_settings={
        "help_option_names": ["-h", "--help"],
        "show_default": True,
        "token_normalize_func": lambda name: name.replace("_", "-"),  # --syn_steps, as the field writes it
    }
)
@click.version_option(package_name="ddfast")
@click.option("--traceback", is_flag=True, help="Show where an error comes from.")
def cli(traceback: bool) -> None:
    """Dataset distillation: learn a tiny training set.

    Several GPUs or machines: torchrun … -m ddfast experts, distill or evaluate.
    """
    handler = logging.StreamHandler(sys.stderr)
    rank = int(os.environ.get("RANK", "0"))  # as torchrun says
    handler.setFormatter(logging.Formatter(f"process {rank}: %(message)s" if rank else "%(message)s"))
    logger = logging.getLogger("ddfast")
    logger.handlers, logger.propagate = [handler], False
    logger.setLevel(logging.WARNING if rank else logging.INFO)


READING = ("test_folder", "value_range", "skip_unreadable", "layout")  # how pictures and arrays are read
EXPERTS = (
    "dataset", "data_root", "image_size", "resize", *READING, "hold_out", "zca", "preprocessing", "network", "seed",
    "preset", "ipc", "device", "num_experts", "batch_train", "mom", "l2", "dsa_strategy", "train_epochs", "train_lr",
    "optimizer", "rho", "alpha", "schedule", "curriculum", "keep_epochs", "snapshots", "budget", "method",
)  # fmt: skip
EVALUATE = (
    "dataset", "data_root", *READING, "device", "networks", "num_eval", "eval_epochs", "eval_batch", "eval_lr",
    "protocol", "baselines", "full_epochs", "sam_rho", "seed", "dsa_strategy",
)  # fmt: skip
download_option = option("--download", is_flag=True, section="Data", help="Fetch a named data set that is not there.")
print_option = option("--print-config", is_flag=True, help="Print the settings as a file for --config, and do nothing.")


@cli.command(cls=Command, declared=declared, takes_files=True)
@download_option
@option("--output", type=PATH, help="Run folder.  [default: runs/<next number>]")
@option("--resume", is_flag=True, help="Go on with the run in --output, or begin it.")
@print_option
def distill(print_config: bool, **options: Any) -> None:
    """Distil a data set: experts, images, evaluation, run folder. With no options: the embedded digits."""
    import ddfast
    from ddfast.run.config import config_file
    from ddfast.run.progress import progress
    from ddfast.run.resolve import resolve
    from ddfast.runtime.ranks import launched

    if print_config:
        asked = {n: v for n, v in options.items() if n not in ("output", "resume", "download")}
        click.echo(config_file(resolve(asked, options["download"]).config), nl=False)
        return
    with launched() as ranks:
        result = ddfast.distill(progress=progress if ranks.is_first else iter, ranks=ranks, **options)
        if not ranks.is_first:
            return
    print_table(result)
    if result.useless is not None:
        click.echo(f"useless: {result.useless}\n")
    click.echo(f"images: {result.path / 'images.png'} ({words_of_storage(result)})")
    click.echo(f"run:    {result.path}")
    if result.useless is not None and ranks.size == 1:  # torchrun would take it for a crash, and begin again
        sys.exit(USELESS)


@cli.command(
    cls=Command,
    declared=lambda: declared(*EXPERTS),
    renamed={"--epochs": "--train-epochs", "--lr-teacher": "--train-lr"},
    takes_files=True,
)
@download_option
@option(
    "--at-once",
    type=AT_LEAST_1,
    section="Experts",
    help="Experts trained side by side.  [default: what fits a GPU; CPU: 1]",
)
@option("--output", type=PATH, help="Folder.  [default: one in the user's cache]")
@option("--plan", is_flag=True, help="Only say what they would take on disk, by --snapshots.")
def experts(dataset: Any, ipc: Any, method: Any, preset: Any, plan: Any, **options: Any) -> None:
    """Train experts and keep a snapshot of their parameters after every epoch."""
    import ddfast
    from ddfast.experts import words
    from ddfast.run.expert_options import expert_options, expert_sizes
    from ddfast.runtime.ranks import launched

    with launched() as ranks:
        arguments = ranks.in_turn(lambda: expert_options(dataset, ipc, method, preset, options))
        arguments |= ranks.first(lambda: {name: arguments[name] for name in arguments if name != "dataset"})
        if plan and not ranks.is_first:
            return
        if plan:
            count = arguments["num_experts"]
            click.echo(f"{count} experts of {arguments['train_epochs']} epochs, {arguments['network']}")
            for snapshots, size in expert_sizes(arguments).items():
                click.echo(f"{snapshots:<10}{words(size):>10}")
            return
        store = ddfast.train_experts(ranks=ranks, **arguments)
    if ranks.is_first:
        click.echo(f"{store.num_experts} experts of {store.epochs} epochs in {store.path}")


@cli.command(
    cls=Command,
    declared=lambda: declared(*EVALUATE),
    renamed={"--lr": "--eval-lr", "--batch": "--eval-batch"},
    takes_files=True,
)
@click.argument("synthetic", type=PATH)
@download_option
@option(
    "--random-real/--no-random-real",
    default=True,
    show_default=True,
    section="Evaluation",
    help="The baseline beside it.",
)
@option("--scores", is_flag=True, section="Evaluation", help="Calibration, robustness, classes, those of DD-Ranking.")
@option("--table", type=PATH, help="Where the table is saved.  [default: transfer.json in the run folder]")
@option("--output", type=PATH, help="File of accuracies, one line each; a stopped evaluation goes on from it.")
def evaluate(synthetic: Path, table: Path | None, **options: Any) -> None:
    """Train networks on SYNTHETIC, a run folder or a synthetic set's file, and test them.

    Unset, data and networks are those of the run, or of the set; how they are trained is not.
    """
    from ddfast.run.transfer import save_transfer, transfer_table
    from ddfast.runtime.ranks import launched

    path = synthetic / "transfer.json" if table is None and synthetic.is_dir() else table
    if path is not None and (path.is_dir() or not path.parent.is_dir()):
        raise ValueError(f"--table: expected a file in a folder that is there, got {path}")
    with launched() as ranks:
        options = {name: value for name, value in options.items() if value is not None}
        found = transfer_table(synthetic, ranks=ranks, **options)
    if ranks.is_first:
        print_transfer(found)
        if path is not None:
            save_transfer(found, path)
