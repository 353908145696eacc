"""The command line: the only place that prints, and that turns options into keyword arguments."""

import ctypes
import json
import logging
import os
import signal
import sys
from pathlib import Path

import click

from ddfast.cli.options import (
    AT_LEAST_0,
    AT_LEAST_1,
    PATH,
    POSITIVE,
    Experiment,
    Names,
    TrainEpochs,
    budget_option,
    data_options,
    evaluation_options,
    memory_option,
    method_options,
    minibatch_options,
    optimizer_options,
    picture_options,
    preprocessing_option,
    root_options,
    size_options,
    storage_options,
    training_options,
    where_options,
)
from ddfast.cli.printing import print_table, progress

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

    def end(number: int, _frame) -> None:
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
    """Dataset distillation by trajectory matching.

    Several GPUs or machines: torchrun … -m ddfast experts, distill or evaluate.
    """
    handler = logging.StreamHandler(sys.stderr)
    rank = int(os.environ.get("RANK", "0"))  # as torchrun says
    handler.setFormatter(logging.Formatter(f"process {rank}: %(message)s" if rank else "%(message)s"))
    logger = logging.getLogger("ddfast")
    logger.handlers, logger.propagate = [handler], False
    logger.setLevel(logging.WARNING if rank else logging.INFO)


@cli.command()
@data_options
@click.option("--method", help="How to distil.  [default: mtt]")
@click.option("--output", type=PATH, help="Run folder.  [default: runs/<next number>]")
@click.option("--resume", is_flag=True, help="Go on with the run in --output, or begin it.")
@memory_option
@click.option("--precision", help="Of convolutions: default, float32 (no TF32), or bfloat16.  [default: default]")
@click.option("--cuda-graph/--no-cuda-graph", default=None, help="On a GPU: replay an outer step.  [default: no]")
@click.option(
    "--deterministic/--no-deterministic", default=None, help="On a GPU: the same bits every time.  [default: yes]"
)
@click.option("--experts", type=PATH, help="Folder of trained experts.  [default: trained, cached]")
@training_options
@optimizer_options
@storage_options
@click.option("--train-epochs", type=TrainEpochs(), help="Epochs of each expert; needed: no more than a run can use.")
@click.option("--train-lr", type=POSITIVE, help="Learning rate of the experts.")
@click.option("--train-dsa-strategy", help="Their augmentation, where it is another than --dsa-strategy.")
@click.option("--iterations", type=AT_LEAST_1, help="Outer steps.")
@budget_option
@method_options
@click.option("--networks", type=Names(), help="To evaluate on, separated by commas.  [default: --network]")
@evaluation_options
@click.option("--eval-batch", type=AT_LEAST_1, help="Images per minibatch.  [default: the protocol's, mostly 256]")
@click.option("--sam-rho", type=POSITIVE, help="Evaluate by SAM, its ascent of this length.  [default: plain SGD]")
@click.option("--full-epochs", type=AT_LEAST_1, help="Full data: train anew.  [default: the experts' last snapshot]")
@click.option("--eval-every", type=AT_LEAST_1, help="Evaluate after so many iterations too.  [default: at the end]")
@click.option("--checkpoint-every", type=AT_LEAST_1, help="Iterations between checkpoints.  [default: 100]")
@click.option("--keep-checkpoints", type=AT_LEAST_1, help="How many evaluated sets stay.  [default: all]")
def distill(**options) -> None:
    """Distil a data set: experts, images, evaluation, run folder. With no options: the embedded digits."""
    import ddfast
    from ddfast.runtime.ranks import launched

    with launched() as ranks:
        result = ddfast.distill(progress=progress if ranks.is_first else iter, ranks=ranks, **options)
        if not ranks.is_first:
            return
    print_table(result)
    if result.useless is not None:
        click.echo(f"useless: {result.useless}\n")
    click.echo(f"images: {result.path / 'images.png'}")
    click.echo(f"run:    {result.path}")
    if result.useless is not None and ranks.size == 1:  # torchrun would take it for a crash, and begin again
        sys.exit(USELESS)


@cli.command()
@data_options
@training_options
@click.option("--epochs", type=AT_LEAST_1, help="Epochs of each; one snapshot after every one.")
@click.option("--lr-teacher", type=POSITIVE, help="Learning rate.")
@optimizer_options
@storage_options
@click.option("--at-once", type=AT_LEAST_1, help="Experts trained side by side.  [default: what fits a GPU; CPU: 1]")
@budget_option
@click.option("--output", type=PATH, help="Folder.  [default: one in the user's cache]")
@click.option("--method", help="Whose presets.  [default: mtt]")
@click.option("--plan", is_flag=True, help="Only say what they would take on disk, by --snapshots.")
def experts(dataset, ipc, method, preset, plan, **options) -> None:
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
            click.echo(f"{arguments['num_experts']} experts of {arguments['epochs']} epochs, {arguments['network']}")
            for snapshots, size in expert_sizes(arguments).items():
                click.echo(f"{snapshots:<10}{words(size):>10}")
            return
        store = ddfast.train_experts(ranks=ranks, **arguments)
    if ranks.is_first:
        click.echo(f"{store.num_experts} experts of {store.epochs} epochs in {store.path}")


@cli.command()
@click.argument("synthetic", type=PATH)
@click.option("--dataset", help="Name or folder of the data set to test on.  [default: the run's]")
@where_options
@picture_options
@click.option("--networks", type=Names(), help="Separated by commas.  [default: the run's, the set's, or convnet]")
@click.option("--lr", type=POSITIVE, help="Learning rate.  [default: the set's, or the protocol's]")
@click.option("--dsa-strategy", help="As in `ddfast distill`; or DC's, dc:crop_scale_rotate.  [default: the set's]")
@click.option("--batch", type=AT_LEAST_1, help="Images per minibatch.  [default: the protocol's, mostly 256]")
@click.option("--sam-rho", type=POSITIVE, help="Train with SAM, its ascent of this length.  [default: plain SGD]")
@click.option("--seed", default=0, help="Same seed, same result.")
@click.option("--random-real/--no-random-real", default=True, show_default=True, help="The baseline beside it.")
@click.option("--output", type=PATH, help="File of accuracies, one line each; a stopped evaluation goes on from it.")
@evaluation_options
def evaluate(
    synthetic: Path, dataset, networks, data_root, download, lr, random_real, num_eval, eval_epochs, protocol, **options
) -> None:
    """Train networks on SYNTHETIC, a run folder or a synthetic set's file, and test them."""
    import ddfast
    from ddfast.data import READING
    from ddfast.data.ipc import in_words
    from ddfast.evaluation import begin_forecast, data_for, evaluate_random_real, networks_of, schedule_of
    from ddfast.run.folder import RunFolder
    from ddfast.run.resolve import test_folder_of
    from ddfast.runtime.ranks import launched

    folder = synthetic if synthetic.is_dir() else synthetic.parent
    config = RunFolder(folder).read_config() if synthetic.is_dir() or RunFolder(folder).has_config else {}
    if synthetic.is_dir():
        synthetic = synthetic / "synthetic"
    loaded = ddfast.SyntheticSet.load(synthetic)
    dataset = dataset or config.get("dataset")
    if dataset is None or dataset == "custom":
        raise ValueError(f"--dataset: say what to test {synthetic} on")
    networks = networks or tuple(config.get("networks", ())) or networks_of(loaded)
    where = {"root": data_root or config.get("data_root"), "download": download}
    reading = {name: options.pop(name) for name in READING}
    if dataset == config.get("dataset"):  # read as the run did
        had = config | {"test_folder": test_folder_of(config, dataset)}
        reading = {name: had.get(name) if reading[name] is None else reading[name] for name in READING}
    where |= {name: value for name, value in reading.items() if value is not None}
    if options["dsa_strategy"] is None:
        options["dsa_strategy"] = loaded.dsa_strategy
    options |= {
        "num_eval": num_eval or 5,
        "epochs": eval_epochs,
        "protocol": protocol or "ddfast",
        "networks": networks,
    }
    with launched() as ranks:
        data = ranks.in_turn(lambda: data_for(loaded, dataset, **where))
        ipc = data.available(loaded.ipc)
        how = {name: options.get(name) for name in ("epochs", "batch", "dsa_strategy", "sam_rho", "num_eval", "device")}
        schedule = schedule_of(options["protocol"], lr=1.0, at_once=None, **how)
        sets = 2 if random_real else 1
        forecast = begin_forecast(data, len(loaded), networks, options["num_eval"], schedule, ranks, sets)
        options["forecast"] = forecast
        results = {"": ddfast.evaluate(loaded, data, lr=lr, ranks=ranks, **options)}
        if random_real:
            name = f", random real images, {in_words(ipc)}"
            results[name] = evaluate_random_real(data, loaded.ipc, ranks=ranks, **options)
    for words, result in results.items() if ranks.is_first else ():
        for name in networks:
            row = result.of(name)
            click.echo(f"{name}{words}: {row.mean:.1f}% ± {row.std:.1f} over {row.n}")


@cli.command(epilog="docs/files.md shows the formats, what they hold and what is lost.")
@click.argument("source", type=PATH, metavar="SRC")
@click.argument("output", type=PATH, metavar="DST")
@click.option("--to", "--format", "to", help="Format of DST, of docs/files.md: ddfast, mtt, dc …  [default: ddfast]")
@click.option("--from", "source_format", help="Format of SRC, where it can be read as several.  [default: recognised]")
@click.option("--dataset", help="What SRC was made from: a name or a folder.  [default: recorded in ddfast's files]")
@root_options
@size_options
@picture_options
@click.option("--zca/--no-zca", default=None, help="Whether SRC was made with whitened images; needed for tensors.")
@preprocessing_option
@click.option("--preset", help="The preset that SRC was made with says --network and --zca.")
@click.option("--network", help="Of experts: theirs; of images: what they were made for.  [default: convnet; unknown]")
@click.option("--per-file", type=AT_LEAST_1, help="Experts per replay buffer.  [default: 10]")
@click.option("--expert", type=AT_LEAST_0, help="Whose state dict is written, from 0.  [default: 0]")
@click.option("--epoch", type=AT_LEAST_0, help="After which epoch.  [default: the last]")
@click.option("--check/--no-check", default=None, help="Test the first and the last expert of SRC.  [default: yes]")
@click.option("--lr", type=POSITIVE, help="To train on SRC's images with.  [default: SRC's]")
@click.option("--labels", help="What rows of labels are: logits, probabilities, onehot, classes.  [default: inferred]")
@click.option("--values", help="What SRC's images are: preprocessed, unit (0 to 1), bytes.  [default: the format's]")
@click.option("--experiment", type=Experiment(), help="Of DC's files: which, from 0, or all.  [default: 0]")
@click.option("--factor", type=AT_LEAST_1, help="Of IDC's and NCFM's images: tiles a side.  [default: in args.txt]")
@click.option("--dsa-strategy", help="To train on SRC's images with; of buffers: used then.  [default: MTT's; unknown]")
@click.option("--canvas", type=AT_LEAST_1, help="Side of SRC's images over what networks see of them.  [default: 1]")
@click.option("--lr-teacher", type=POSITIVE, help="How buffers were trained, as all below.  [default: unknown]")
@minibatch_options
@optimizer_options
def convert(source: Path, output: Path, to, source_format, data_root, download, preset, **options) -> None:
    """Convert SRC, a file or folder whose format is recognised, to DST. Experts become experts, images images."""
    from ddfast.compat import convert as convert_files
    from ddfast.methods import METHODS
    from ddfast.run.presets import choose_preset

    method = str(preset).split("/")[0]
    chosen = None if preset is None else choose_preset(method if method in METHODS else "mtt", "", 1, preset).settings
    options |= {"root": data_root, "download": download or None}
    click.echo(convert_files(source, output, to, source_format=source_format, preset=chosen, **options))


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
    from ddfast.methods import METHODS

    if preset is not None:
        from ddfast.run.preset_plan import plan_of_preset

        about = plan_of_preset(preset, memory_budget, precision or "default", network, device, settings)
        lines = (
            f"{name}: {about[name]}"
            for name in ("setting", "network", "gradient", "budget", "recomputing all", "plan", "experts")
        )
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
        f"torch's CUDA {about['torch_cuda'] or 'none'}  GPU {about['device'] or 'none'}  "
        f"CPU threads {about['threads']}, instructions {about['instructions']}"
    )
    if about["extension"]:
        built = about["extension"]
        architectures = f"CUDA {built['cuda']} for {built['cuda_architectures']}" if built["cuda"] else "no CUDA"
        click.echo(
            f"extension: built for torch {built['torch']} with {built['compiler']}, {architectures}, "
            f"instructions {built['instructions']}"
        )
    for name, devices in about["kernels"].items():
        click.echo(f"  {name:<30} {', '.join(devices) or 'reference only'}")
    click.echo(f"methods: {', '.join(METHODS)}")
    for name, method in METHODS.items():
        if method.gradient != "exact":
            click.echo(f"  {name}: the gradient is {method.gradient}")
    for sentence in about["missing"]:
        click.echo(f"missing: {sentence}")


@cli.command()
@click.argument("name", required=False)
def presets(name: str | None) -> None:
    """List the presets, those of a method, or show the settings of one."""
    from ddfast.methods import METHODS
    from ddfast.run.presets import choose_preset, load_presets

    if name is None or name in METHODS:
        for method in METHODS if name is None else [name]:
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
