"""The commands about files and settings: convert, info, presets."""

import json
from pathlib import Path
from typing import Any

import click

from ddfast.cli.commands import READING, cli
from ddfast.cli.options import AT_LEAST_0, AT_LEAST_1, PATH, POSITIVE, Command, declared, option
from ddfast.runtime.options import Declared


class Experiment(click.ParamType):
    """The number of an experiment, or all."""

    name = "N or all"

    def convert(self, value: Any, param: Any, ctx: Any) -> Any:
        """As convert takes it."""
        if value == "all" or isinstance(value, int):
            return value
        if not str(value).isdigit():
            self.fail(f"expected a whole number from 0, or all, got {value!r}", param, ctx)
        return int(value)


DATA = ("data_root", "image_size", "resize", *READING, "preprocessing")
TRAINING = ("batch_train", "mom", "l2", "optimizer", "rho", "alpha", "schedule", "train_lr")


def _declared() -> list[Declared]:
    return [*declared(*DATA), *(one._replace(words="unknown") for one in declared(*TRAINING))]


def _plan() -> list[Declared]:
    return [one._replace(words="the preset's") for one in declared("syn_steps", "batch_syn", "segments")]


@cli.command(
    cls=Command,
    declared=_declared,
    renamed={"--lr-teacher": "--train-lr"},
    epilog="docs/files.md shows the formats, what they hold and what is lost.",
)
@click.argument("source", type=PATH, metavar="SRC")
@click.argument("output", type=PATH, metavar="DST")
@option("--to", "--format", "to", help="Format of DST, of docs/files.md: ddfast, mtt, dc …  [default: ddfast]")
@option("--from", "source_format", help="Format of SRC, where it can be read as several.  [default: recognised]")
@option(
    "--dataset",
    section="Data",
    help="What SRC was made from: a name or a folder.  [default: recorded in ddfast's files]",
)
@option("--download", is_flag=True, section="Data", help="Fetch a named data set that is not there.")
@option(
    "--zca/--no-zca",
    default=None,
    section="Data",
    help="Whether SRC was made with whitened images; needed for tensors.",
)
@option("--preset", help="The preset that SRC was made with says --network and --zca.")
@option("--network", help="Of experts: theirs; of images: what they were made for.  [default: convnet; unknown]")
@option("--per-file", type=AT_LEAST_1, section="Experts", help="Experts per replay buffer.  [default: 10]")
@option("--expert", type=AT_LEAST_0, section="Experts", help="Whose state dict is written, from 0.  [default: 0]")
@option("--epoch", type=AT_LEAST_0, section="Experts", help="After which epoch.  [default: the last]")
@option(
    "--check/--no-check",
    default=None,
    section="Experts",
    help="Test the first and the last expert of SRC.  [default: yes]",
)
@option("--lr", type=POSITIVE, section="Images", help="To train on SRC's images with.  [default: SRC's]")
@option(
    "--labels",
    section="Images",
    help="What rows of labels are: logits, probabilities, onehot, classes.  [default: inferred]",
)
@option(
    "--values",
    section="Images",
    help="What SRC's images are: preprocessed, unit (0 to 1), bytes.  [default: the format's]",
)
@option("--experiment", type=Experiment(), section="Images", help="Of DC's files: which, from 0, or all.  [default: 0]")
@option(
    "--factor",
    type=AT_LEAST_1,
    section="Images",
    help="Of IDC's and NCFM's images: tiles a side.  [default: in args.txt]",
)
@option(
    "--dsa-strategy",
    section="Images",
    help="To train on SRC's images with; of buffers: used then.  [default: MTT's; unknown]",
)
@option(
    "--canvas",
    type=AT_LEAST_1,
    section="Images",
    help="Side of SRC's images over what networks see of them.  [default: 1]",
)
def convert(
    source: Path, output: Path, to: Any, source_format: Any, download: bool, preset: Any, **options: Any
) -> None:
    """Convert SRC, a file or folder whose format is recognised, to DST. Experts become experts, images images."""
    from ddfast.compat import convert as convert_files
    from ddfast.methods import METHODS
    from ddfast.run.presets import choose_preset

    method = str(preset).split("/")[0]
    chosen = None if preset is None else choose_preset(method if method in METHODS else "mtt", "", 1, preset).settings
    options["download"] = download or None
    click.echo(convert_files(source, output, to, source_format=source_format, preset=chosen, **options))


@cli.command(cls=Command, declared=_plan)
@option("--json", "as_json", is_flag=True, help="As JSON.")
@option("--plan", "preset", metavar="PRESET", help="Instead: how an outer step of a preset would use memory.")
@option("--memory-budget", help="For --plan: bytes, 4GiB, 0.5 or 50% of what is free.  [default: 50%]")
@option("--precision", help="For --plan: default, float32 or bfloat16.  [default: default]")
@option("--network", help="For --plan: another network than the preset's.")
@option("--device", help="For --plan: cpu, cuda, …  [default: a GPU if there is one]")
def info(
    as_json: bool, preset: Any, memory_budget: Any, precision: Any, network: Any, device: Any, **settings: Any
) -> None:
    """Versions, which kernels are built for which devices, and how to get what is missing; or a memory plan."""
    import ddfast
    from ddfast.methods import METHODS

    if preset is not None:
        from ddfast.run.preset_plan import plan_of_preset

        about = plan_of_preset(preset, memory_budget, precision or "default", network, device, settings)
        lines = (
            f"{name}: {about[name]}"
            for name in ("setting", "network", "gradient", "budget", "recomputing all", "plan", "experts")
            if name in about
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
            for preset in load_presets(method) or [f"{method}: no presets, only defaults"]:
                click.echo(preset)
        return
    method = name.split("/")[0]
    if method not in METHODS:
        raise ValueError(
            f"preset: expected <method>/<dataset>/ipc<n> with a method of {', '.join(METHODS)}, got {name!r}"
        )
    for key, value in choose_preset(method, "", 1, name).settings.items():
        click.echo(f"{key} = {value}")


@cli.command()
def options() -> None:
    """Print the table of all options of `ddfast distill`, in Markdown."""
    from ddfast.run.config import table

    click.echo("\n".join(table()))
