"""The command line: the only place that prints, and that turns options into keyword arguments."""

import json
import logging
import signal
import sys
from pathlib import Path

import click

EXPECTED = (ValueError, TypeError, OSError, NotImplementedError)  # what the library raises at its doors


def main() -> None:
    """Run `ddfast`; an error is one sentence on stderr and exit status 1, a traceback only with --traceback."""
    # A run that is told to end saves what it has, as on Ctrl-C.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        cli(prog_name="ddfast")
    except Exception as error:
        if "--traceback" in sys.argv[1:2]:
            raise
        sentence = " ".join(str(error).split()) or type(error).__name__
        if not isinstance(error, EXPECTED):
            sentence = f"{type(error).__name__}: {sentence} (`ddfast --traceback …` shows where)"
        click.echo(f"ddfast: {sentence}", err=True)
        sys.exit(1)


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


AT_LEAST_1 = click.IntRange(min=1)
POSITIVE = click.FloatRange(min=0, min_open=True)
NOT_NEGATIVE = click.FloatRange(min=0)

data_options = _options(
    click.option("--dataset", default="digits", help="Name of the data set."),
    click.option("--network", default="convnet", help="Name of the network."),
    click.option("--seed", default=0, help="Same seed, same result."),
    click.option("--device", default=None, help="cpu, cuda, cuda:1, …  [default: a GPU if there is one]"),
)
evaluation_options = _options(
    click.option("--num-eval", default=5, type=AT_LEAST_1, help="Networks trained from scratch for the evaluation."),
    click.option("--eval-epochs", default=1000, type=AT_LEAST_1, help="Epochs of each of them."),
)


@cli.command()
@data_options
@click.option("--method", default="mtt", help="How to distil.")
@click.option("--ipc", default=1, type=AT_LEAST_1, help="Images per class.")
@click.option("--output", type=click.Path(path_type=Path), help="Run folder.  [default: runs/<next number>]")
@click.option(
    "--experts", type=click.Path(path_type=Path), help="Folder of trained experts.  [default: trained, cached]"
)
@click.option("--preset", help="Settings to start from; see `ddfast presets`.  [default: the nearest]")
@click.option("--iterations", type=AT_LEAST_1, help="Outer steps.  [default: the preset's, as all below]")
@click.option("--num-experts", type=AT_LEAST_1, help="Experts to train.")
@click.option("--train-epochs", type=AT_LEAST_1, help="Epochs of each expert; at least those that a run can use.")
@click.option("--batch-train", type=AT_LEAST_1, help="Real images per minibatch of an expert.")
@click.option("--syn-steps", type=AT_LEAST_1, help="Inner steps.")
@click.option("--expert-epochs", type=AT_LEAST_1, help="Epochs between start and target.")
@click.option("--max-start-epoch", type=AT_LEAST_1, help="Starts are drawn from below this epoch.")
@click.option("--batch-syn", type=AT_LEAST_1, help="Synthetic images per inner step.")
@click.option("--lr-img", type=NOT_NEGATIVE, help="Learning rate of the images.")
@click.option("--lr-lr", type=NOT_NEGATIVE, help="Learning rate of the student's learning rate.")
@click.option("--lr-teacher", type=POSITIVE, help="Learning rate of the experts, and the student's first.")
@evaluation_options
def distill(**options) -> None:
    """Distil a data set: experts, images, evaluation, run folder. With no options: the embedded digits."""
    from tqdm import tqdm

    import ddfast

    def progress(distillation):
        bar = tqdm(distillation, total=distillation.iterations, unit="it", disable=None, file=sys.stderr)
        for record in bar:
            state = {"loss": f"{record['loss']:.3f}", "lr": f"{record['lr']:.4f}", "skipped": record["skipped"]}
            bar.set_postfix(state)
            if bar.disable and record["iteration"] % 25 == 0:  # no terminal: a line now and then
                words = ", ".join(f"{name} {value}" for name, value in state.items())
                click.echo(f"iteration {record['iteration']} of {distillation.iterations}: {words}", err=True)
            yield record

    result = ddfast.distill(options.pop("dataset"), progress=progress, **options)
    _print_table(result.accuracy, options["ipc"])
    click.echo(f"images: {result.path / 'images.png'}")
    click.echo(f"run:    {result.path}")


def _print_table(accuracy: dict[str, dict], ipc: int) -> None:
    rows = {
        "random_real": f"random real images, {ipc} per class",
        "distilled": f"distilled images, {ipc} per class",
        "full_data": f"full data, {accuracy['full_data']['epochs']} epochs (the experts)",
    }
    click.echo(f"\n{'test accuracy of a network trained on':<44}{'mean':>8}{'std':>7}{'n':>4}")
    for key, label in rows.items():
        row = accuracy[key]
        click.echo(f"{label:<44}{row['mean']:>7.1f}%{row['std']:>7.1f}{row['n']:>4}")
    click.echo("")


@cli.command()
@data_options
@click.option("--num-experts", default=10, type=AT_LEAST_1, help="How many.")
@click.option("--epochs", default=50, type=AT_LEAST_1, help="Epochs of each; one snapshot after every one.")
@click.option("--lr-teacher", default=0.01, type=POSITIVE, help="Learning rate.")
@click.option("--batch-train", default=256, type=AT_LEAST_1, help="Images per minibatch.")
@click.option("--output", type=click.Path(path_type=Path), help="Folder.  [default: one in the user's cache]")
def experts(**options) -> None:
    """Train experts and keep a snapshot of their parameters after every epoch."""
    import ddfast

    store = ddfast.train_experts(options.pop("dataset"), **options)
    click.echo(f"{store.num_experts} experts of {store.epochs} epochs in {store.path}")


@cli.command()
@click.argument("synthetic", type=click.Path(path_type=Path))
@click.option("--dataset", help="Name of the data set to test on.  [default: the run's, else digits]")
@click.option("--networks", default="convnet", help="Names of networks, separated by commas.")
@click.option("--lr", type=POSITIVE, help="Learning rate.  [default: the one in the set]")
@click.option("--seed", default=0, help="Same seed, same result.")
@click.option("--device", default=None, help="cpu, cuda, cuda:1, …  [default: a GPU if there is one]")
@evaluation_options
def evaluate(synthetic: Path, dataset: str | None, networks: str, eval_epochs: int, **options) -> None:
    """Train networks on SYNTHETIC, a run folder or a synthetic set's file, and test them."""
    import ddfast
    from ddfast.runs import RunFolder

    if synthetic.is_dir():
        dataset = dataset or RunFolder(synthetic).read_config()["dataset"]
        synthetic = synthetic / "synthetic"
    names = tuple(name.strip() for name in networks.split(","))
    result = ddfast.evaluate(
        ddfast.SyntheticSet.load(synthetic), dataset or "digits", networks=names, epochs=eval_epochs, **options
    )
    for name in names:
        row = ddfast.Evaluation({name: result.accuracies[name]})
        click.echo(f"{name}: {row.mean:.1f}% ± {row.std:.1f} over {row.n}")


@cli.command()
@click.option("--json", "as_json", is_flag=True, help="As JSON.")
def info(as_json: bool) -> None:
    """Versions, which kernels are built for which devices, and how to get what is missing."""
    import ddfast

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
    for key, value in choose_preset(method, "", 1, name)[1].items():
        click.echo(f"{key} = {value}")
