"""The command line: the only place that prints, and that turns options into keyword arguments."""

import ctypes
import json
import logging
import os
import signal
import sys
import time
from pathlib import Path

import click

M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4  # of malloc.h
SECONDS_BETWEEN_LINES = 10.0  # of progress, where there is no terminal
EXPECTED = (ValueError, TypeError, OSError, NotImplementedError, MemoryError)  # what the library raises at its doors


def main() -> None:
    """Run `ddfast`; an error is one sentence on stderr and exit status 1, a traceback only with --traceback."""
    _make_page_faults_rare()
    # A run that is told to end saves what it has, as on Ctrl-C.
    for name in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(name, signal.default_int_handler)
    try:
        cli(prog_name="ddfast")
    except Exception as error:
        if "--traceback" in sys.argv[1:2]:
            raise
        nameless = "memory ran out" if isinstance(error, MemoryError) else type(error).__name__
        sentence = " ".join(str(error).split()) or nameless
        if not isinstance(error, EXPECTED):
            sentence = f"{type(error).__name__}: {sentence} (`ddfast --traceback …` shows where)"
        click.echo(f"ddfast: {sentence}", err=True)
        sys.exit(1)


def _make_page_faults_rare() -> None:
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
    """Dataset distillation by trajectory matching."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter("%(message)s"))
    logger = logging.getLogger("ddfast")
    logger.handlers, logger.propagate = [handler], False
    logger.setLevel(logging.INFO)


def _options(*options):
    """Several click options as one decorator, in this order."""

    def decorate(function):
        for option in reversed(options):
            function = option(function)
        return function

    return decorate


class _ImageSize(click.ParamType):
    """A side, or HxW, in pixels."""

    name = "N or HxW"

    def convert(self, value, param, ctx):
        """As load_dataset takes it."""
        sides = str(value).lower().split("x")
        if not all(side.isdigit() and int(side) > 0 for side in sides) or len(sides) > 2:
            self.fail(f"expected a side or HxW in pixels, got {value!r}", param, ctx)
        return int(sides[0]) if len(sides) == 1 else (int(sides[0]), int(sides[1]))


class _TrainEpochs(click.ParamType):
    """A number of epochs, or needed."""

    name = "N or needed"

    def convert(self, value, param, ctx):
        """As distill takes it."""
        if value == "needed" or isinstance(value, int):
            return value
        if not str(value).isdigit() or int(value) < 1:
            self.fail(f"expected a whole number of at least 1, or needed, got {value!r}", param, ctx)
        return int(value)


class _Names(click.ParamType):
    """Names separated by commas."""

    name = "NAMES"

    def convert(self, value, param, ctx):
        """As a tuple."""
        return tuple(name.strip() for name in value.split(",")) if isinstance(value, str) else value


AT_LEAST_1 = click.IntRange(min=1)
POSITIVE = click.FloatRange(min=0, min_open=True)
NOT_NEGATIVE = click.FloatRange(min=0)
PATH = click.Path(path_type=Path)
PROTOCOLS = ["ddfast", "mtt", "datm", "simplified"]  # of ddfast.evaluate, which takes seconds to import

memory_option = click.option(
    "--memory-budget", help="What an outer step may use: bytes, 4GiB, 0.5 or 50% of what is free.  [default: 50%]"
)
where_options = _options(
    click.option("--data-root", type=PATH, help="Where named data sets are.  [default: DDFAST_DATA, or the cache]"),
    click.option("--download", is_flag=True, help="Fetch a named data set that is not there."),
    click.option("--device", default=None, help="cpu, cuda, cuda:1, …  [default: a GPU if there is one]"),
)
data_options = _options(
    click.option("--dataset", help="Name of a data set, or a folder with train/ and val/ or test/.  [default: digits]"),
    where_options,
    click.option("--image-size", type=_ImageSize(), help="Resize to this.  [default: their own, or what fits them]"),
    click.option("--resize", type=click.Choice(["stretch", "crop"]), help="How.  [default: stretch]"),
    click.option("--zca/--no-zca", default=None, help="Whiten the images.  [default: the preset's]"),
    click.option("--network", help="With options: convnet:depth=4:width=64.  [default: the preset's]"),
    click.option("--seed", type=int, help="Same seed, same result.  [default: 0]"),
    click.option("--preset", help="Settings to start from; see `ddfast presets`.  [default: the nearest]"),
    click.option("--ipc", type=AT_LEAST_1, help="Images per class.  [default: 1]"),
)
training_options = _options(
    click.option("--num-experts", type=AT_LEAST_1, help="Experts to train.  [default: the preset's, as all below]"),
    click.option("--batch-train", type=AT_LEAST_1, help="Real images per minibatch of an expert."),
    click.option("--mom", type=NOT_NEGATIVE, help="Momentum of the experts."),
    click.option("--l2", type=NOT_NEGATIVE, help="Weight decay of the experts."),
    click.option("--dsa-strategy", help="Transforms: _ between those of which one is drawn, + joins; or none."),
)
evaluation_options = _options(
    click.option("--num-eval", type=AT_LEAST_1, help="Networks trained from scratch for an evaluation.  [default: 5]"),
    click.option("--eval-epochs", type=AT_LEAST_1, help="Epochs of each.  [default: the protocol's, mostly 1000]"),
    click.option("--protocol", type=click.Choice(PROTOCOLS), help="How: mtt as its code does, ….  [default: ddfast]"),
)


@cli.command()
@data_options
@click.option("--method", help="How to distil.  [default: mtt]")
@click.option("--output", type=PATH, help="Run folder.  [default: runs/<next number>]")
@click.option("--resume", is_flag=True, help="Go on with the run in --output, or begin it.")
@memory_option
@click.option("--precision", help="Of convolutions: default, float32 (no TF32), or bfloat16.  [default: default]")
@click.option("--cuda-graph/--no-cuda-graph", default=None, help="On a GPU: replay an outer step.  [default: no]")
@click.option("--experts", type=PATH, help="Folder of trained experts.  [default: trained, cached]")
@training_options
@click.option("--train-epochs", type=_TrainEpochs(), help="Epochs of each expert; needed: no more than a run can use.")
@click.option("--train-lr", type=POSITIVE, help="Learning rate of the experts.")
@click.option("--iterations", type=AT_LEAST_1, help="Outer steps.")
@click.option("--init", type=click.Choice(["real", "noise"]), help="What the images start from.")
@click.option("--syn-steps", type=AT_LEAST_1, help="Inner steps.")
@click.option("--expert-epochs", type=AT_LEAST_1, help="Epochs between start and target.")
@click.option("--max-start-epoch", type=AT_LEAST_1, help="Starts are drawn from below this epoch.")
@click.option("--batch-syn", type=AT_LEAST_1, help="Synthetic images per inner step.")
@click.option("--segments", type=AT_LEAST_1, help="Experts' segments per outer step.  [default: 1]")
@click.option("--lr-img", type=NOT_NEGATIVE, help="Learning rate of the images.")
@click.option("--lr-lr", type=NOT_NEGATIVE, help="Learning rate of the student's learning rate.")
@click.option("--lr-teacher", type=POSITIVE, help="The student's first learning rate.")
@click.option("--networks", type=_Names(), help="To evaluate on, separated by commas.  [default: --network]")
@evaluation_options
@click.option("--full-epochs", type=AT_LEAST_1, help="Full data: train anew.  [default: the experts' last snapshot]")
@click.option("--eval-every", type=AT_LEAST_1, help="Evaluate after so many iterations too.  [default: at the end]")
@click.option("--checkpoint-every", type=AT_LEAST_1, help="Iterations between checkpoints.  [default: 100]")
def distill(**options) -> None:
    """Distil a data set: experts, images, evaluation, run folder. With no options: the embedded digits."""
    import ddfast

    result = ddfast.distill(progress=_progress, **options)
    _print_table(result)
    click.echo(f"images: {result.path / 'images.png'}")
    click.echo(f"run:    {result.path}")


def _progress(distillation):
    """The records of a distillation, with a bar on a terminal, or a line now and then."""
    from tqdm import tqdm
    from tqdm.contrib.logging import logging_redirect_tqdm

    first, last = distillation.iteration, distillation.iterations
    bar = tqdm(distillation, initial=first, total=last, unit="it", disable=None, file=sys.stderr, dynamic_ncols=True)
    began = said = time.monotonic()
    with logging_redirect_tqdm([logging.getLogger("ddfast")]):
        for record in bar:
            state = {"loss": f"{record['loss']:.3f}", "lr": f"{record['lr']:.4g}"}
            state |= {"s/it": f"{record['seconds']:.2f}", "memory": f"{record['peak_bytes'] / 2**20:.0f}M"}
            state |= {"skipped": record["skipped"]} if record["skipped"] else {}
            bar.set_postfix(state)
            now, done = time.monotonic(), record["iteration"]
            if bar.disable and (now - said > SECONDS_BETWEEN_LINES or done in (first + 1, last)):
                left = (now - began) / (done - first) * (last - done)
                words = ", ".join(f"{name} {value}" for name, value in state.items())
                click.echo(f"iteration {done} of {last}: {words}, {left:.0f} s left", err=True)
                said = now
            yield record


def _print_table(result) -> None:
    accuracy, full = result.accuracy, result.accuracy["full_data"]
    ipc = len(result.synthetic) // len(result.synthetic.class_names)
    rows = {
        "random_real": f"random real images, {ipc} per class",
        "distilled": f"distilled images, {ipc} per class",
        "full_data": f"full data, {full['epochs']} epochs ({full['source']})",
    }
    several = len({network for row in accuracy.values() for network in row["networks"]}) > 1
    click.echo(f"\n{'test accuracy of a network trained on':<44}{'mean':>8}{'std':>7}{'n':>4}")
    for key, label in rows.items():
        for network, row in accuracy[key]["networks"].items():
            name = f"{label}: {network}" if several else label
            click.echo(f"{name:<44}{row['mean']:>7.1f}%{row['std']:>7.1f}{len(row['accuracies']):>4}")
    click.echo("")


@cli.command()
@data_options
@training_options
@click.option("--epochs", type=AT_LEAST_1, help="Epochs of each; one snapshot after every one.")
@click.option("--lr-teacher", type=POSITIVE, help="Learning rate.")
@click.option("--optimizer", type=click.Choice(["sgd", "gsam"]), help="gsam: for flat trajectories.  [default: sgd]")
@click.option("--rho", type=POSITIVE, help="Of gsam: the length of its ascent.  [default: 0.01]")
@click.option("--alpha", type=NOT_NEGATIVE, help="Of gsam: 0 is SAM.  [default: 1]")
@click.option("--schedule", type=click.Choice(["constant", "cosine"]), help="Of the rate.  [default: constant]")
@click.option("--at-once", type=AT_LEAST_1, help="Experts trained side by side.  [default: what fits a GPU; CPU: 1]")
@click.option("--output", type=PATH, help="Folder.  [default: one in the user's cache]")
def experts(dataset, ipc, preset, **options) -> None:
    """Train experts and keep a snapshot of their parameters after every epoch."""
    import ddfast
    from ddfast.configuration import expert_options

    store = ddfast.train_experts(**expert_options(dataset, ipc, preset, options))
    click.echo(f"{store.num_experts} experts of {store.epochs} epochs in {store.path}")


@cli.command()
@click.argument("synthetic", type=PATH)
@click.option("--dataset", help="Name or folder of the data set to test on.  [default: the run's]")
@where_options
@click.option("--networks", type=_Names(), help="Separated by commas.  [default: the run's, or convnet]")
@click.option("--lr", type=POSITIVE, help="Learning rate.  [default: the set's, or the protocol's]")
@click.option("--dsa-strategy", help="As in `ddfast distill`.  [default: the set's]")
@click.option("--batch", type=AT_LEAST_1, help="Images per minibatch.  [default: the protocol's, mostly 256]")
@click.option("--sam-rho", type=POSITIVE, help="Train with SAM, its ascent of this length.  [default: plain SGD]")
@click.option("--seed", default=0, help="Same seed, same result.")
@click.option("--random-real/--no-random-real", default=True, show_default=True, help="The baseline beside it.")
@evaluation_options
def evaluate(
    synthetic: Path, dataset, networks, data_root, download, lr, random_real, num_eval, eval_epochs, protocol, **options
) -> None:
    """Train networks on SYNTHETIC, a run folder or a synthetic set's file, and test them."""
    import ddfast
    from ddfast.evaluate import data_for, evaluate_random_real
    from ddfast.runs import RunFolder

    config = {}
    if synthetic.is_dir():
        config = RunFolder(synthetic).read_config()
        synthetic = synthetic / "synthetic"
    loaded = ddfast.SyntheticSet.load(synthetic)
    dataset = dataset or config.get("dataset")
    if dataset is None or dataset == "custom":
        raise ValueError(f"--dataset: say what to test {synthetic} on")
    networks = networks or tuple(config.get("networks", ("convnet",)))
    data = data_for(loaded, dataset, root=data_root or config.get("data_root"), download=download)
    if options["dsa_strategy"] is None:
        options["dsa_strategy"] = loaded.dsa_strategy
    options |= {
        "num_eval": num_eval or 5,
        "epochs": eval_epochs,
        "protocol": protocol or "ddfast",
        "networks": networks,
    }
    results = {"": ddfast.evaluate(loaded, data, lr=lr, **options)}
    ipc = len(loaded) // data.num_classes
    if random_real and ipc:
        results[f", {ipc} random real images per class"] = evaluate_random_real(data, ipc, **options)
    for words, result in results.items():
        for name in networks:
            row = result.of(name)
            click.echo(f"{name}{words}: {row.mean:.1f}% ± {row.std:.1f} over {row.n}")


@cli.command()
@click.option("--json", "as_json", is_flag=True, help="As JSON.")
@click.option("--plan", "preset", metavar="PRESET", help="Instead: how an outer step of a preset would use memory.")
@memory_option
@click.option("--precision", help="For --plan: default, float32 or bfloat16.  [default: default]")
@click.option("--network", help="For --plan: another network than the preset's.")
@click.option("--syn-steps", type=AT_LEAST_1, help="For --plan: inner steps.")
@click.option("--batch-syn", type=AT_LEAST_1, help="For --plan: synthetic images per inner step.")
@click.option("--segments", type=AT_LEAST_1, help="For --plan: experts' segments per outer step.")
@click.option("--device", help="For --plan: cpu, cuda, …  [default: a GPU if there is one]")
def info(as_json: bool, preset, memory_budget, precision, network, device, **settings) -> None:
    """Versions, which kernels are built for which devices, and how to get what is missing; or a memory plan."""
    import ddfast

    if preset is not None:
        from ddfast.preset_plan import plan_of_preset

        about = plan_of_preset(preset, memory_budget, precision or "default", network, device, settings)
        lines = (f"{name}: {about[name]}" for name in ("setting", "network", "budget", "recomputing all", "plan"))
        click.echo(json.dumps(about, indent=2) if as_json else "\n".join(lines))
        return
    if any(value is not None for value in (memory_budget, precision, network, device, *settings.values())):
        raise ValueError("info: these options are for --plan; say of which preset")
    about = ddfast.build_info()
    if as_json:
        click.echo(json.dumps(about, indent=2))
        return
    click.echo("  ".join(f"{name} {version or 'missing'}" for name, version in about["versions"].items()))
    click.echo(
        f"torch's CUDA {about['torch_cuda'] or 'none'}  GPU {about['device'] or 'none'}  CPU threads {about['threads']}"
    )
    if about["extension"]:
        built = about["extension"]
        architectures = f"CUDA {built['cuda']} for {built['cuda_architectures']}" if built["cuda"] else "no CUDA"
        click.echo(f"extension: built for torch {built['torch']} with {built['compiler']}, {architectures}")
    for name, devices in about["kernels"].items():
        click.echo(f"  {name:<30} {', '.join(devices) or 'reference only'}")
    for sentence in about["missing"]:
        click.echo(f"missing: {sentence}")


@cli.command()
@click.argument("name", required=False)
def presets(name: str | None) -> None:
    """List the presets, or show the settings of one."""
    from ddfast.methods import METHODS
    from ddfast.presets import choose_preset, load_presets

    if name is None:
        for method in METHODS:
            for preset in load_presets(method):
                click.echo(preset)
        return
    method = name.split("/")[0]
    if method not in METHODS:
        raise ValueError(
            f"preset: expected <method>/<dataset>/ipc<n> with a method of {', '.join(METHODS)}, got {name!r}"
        )
    for key, value in choose_preset(method, "", 1, name).settings.items():
        click.echo(f"{key} = {value}")
