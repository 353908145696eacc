"""Every option of a run, declared once; those of a method are in its Settings."""

import json
from collections.abc import Iterable, Iterator
from dataclasses import MISSING, dataclass, fields
from pathlib import Path
from typing import Annotated, Any, Literal

from ddfast.data.pixels import as_value_range
from ddfast.data.preprocessing import RESIZES
from ddfast.evaluation import BASELINES, PROTOCOLS
from ddfast.experts import CURRICULA, FORMATS, OPTIMIZERS, SCHEDULES
from ddfast.methods import METHODS, Method, method_class
from ddfast.ops import PRECISIONS
from ddfast.run.trackers import TRACKERS
from ddfast.runtime.files import parse_toml
from ddfast.runtime.options import (
    NONE,
    SECTIONS,
    AtLeast0,
    AtLeast1,
    Declared,
    Lt,
    NotNegative,
    OneOf,
    Option,
    Parsed,
    Positive,
    expect_known,
    expected,
    options_of,
)

NEEDED = "needed"  # train_epochs, keep_epochs: only those that the run can use
THE_PRESETS = "the preset's"
OF_METHODS = ("Unroll", "Outer step")  # sections


def _sides(value: Any) -> Any:
    """A side or H and W, of a text such as 64 or 48x64, or a list."""
    if isinstance(value, list):
        return tuple(value)
    if not isinstance(value, str):
        return value
    sides = tuple(int(side) for side in value.lower().split("x") if side.isdigit())
    return sides[0] if len(sides) == 1 and "x" not in value else sides


def _names(value: Any) -> Any:
    return tuple(name.strip() for name in value.split(",")) if isinstance(value, str) else value


def _epochs(value: Any) -> Any:
    """The first and the last of a text such as 40-61."""
    if isinstance(value, list):
        return tuple(value)
    first, dash, last = value.partition("-") if isinstance(value, str) else ("", "", "")
    return (int(first), int(last)) if dash and first.isdigit() and last.isdigit() else value


def _range(value: Any) -> Any:
    return as_value_range(value.split(",") if isinstance(value, str) and value != "auto" else value) or "auto"


def _number(value: Any) -> Any:
    try:
        return float(value) if isinstance(value, str) else value
    except ValueError:
        return value


def _count(value: Any) -> Any:
    value = int(value) if isinstance(value, str) and value.lstrip("-").isdigit() else value
    if isinstance(value, int) and value < 1:
        raise ValueError(f"expected at least 1, got {value}")
    return value


ImageSize = Annotated[AtLeast1 | tuple[AtLeast1, AtLeast1], Parsed(_sides), "a side or HxW in pixels"]
ValueRange = Annotated[Any, Parsed(_range), "auto, or the values of black and white as 0,4095"]
EvalLr = Annotated[Positive | Literal["learned", "auto"], Parsed(_number), "learned, auto or a positive number"]
Networks = Annotated[Any, Parsed(_names), "names separated by commas"]
KeepEpochs = Annotated[
    Literal["all", "needed"] | tuple[int, int],
    Parsed(_epochs),
    "a first and a last epoch as 40-61, needed, or all",
]
TrainEpochs = Annotated[AtLeast1 | Literal["needed"], Parsed(_count)]
PerClass = Annotated[Any, Parsed(_count), "a whole number of at least 1, or a .json or .toml file"]
Text = Annotated[Any, "a text"]  # checked where it is used, which says what it may be
Experts, Evaluation, Run, Data = "Experts", "Evaluation", "Run", "Data"


@dataclass(frozen=True, kw_only=True)
class DataOptions:
    """What is distilled, and how it is read."""

    dataset: Annotated[
        Text, Option(Data, "Name of a data set, a folder of pictures, or a file of arrays (docs/data.md).")
    ] = "digits"
    data_root: Annotated[
        Text | None, Option(Data, "Where named data sets are.", "DDFAST_DATA, or the cache", "PATH")
    ] = None
    image_size: Annotated[
        ImageSize | None, Option(Data, "Resize to this.", "their own, or what fits them", "N or HxW")
    ] = None
    resize: Annotated[Annotated[str, OneOf(RESIZES)] | None, Option(Data, "How images are resized.", "stretch")] = None
    zca: Annotated[bool | None, Option(Data, "Whiten the images.", THE_PRESETS)] = None
    preprocessing: Annotated[
        Text | None,
        Option(Data, "The run, experts, set or .json whose mean and std are kept.", "fitted", "PATH"),
    ] = None
    test_folder: Annotated[
        Text | None, Option(Data, "Of a folder of pictures: the one in it to test on.", "test, else val")
    ] = None
    value_range: Annotated[
        ValueRange | None,
        Option(Data, "Black and white of deep pictures.", "what fits all", "auto or LOW,HIGH"),
    ] = None
    skip_unreadable: Annotated[bool, Option(Data, "Leave out pictures that cannot be read.")] = False
    layout: Annotated[
        Text | None,
        Option(Data, "NCHW or NHWC: where arrays have channels.", "where sizes leave no doubt"),
    ] = None

    hold_out: Annotated[
        NotNegative, Lt(1), Option(Data, "Share of the training images held out, to choose the best iteration by.")
    ] = 0.0


@dataclass(frozen=True, kw_only=True)
class RunOptions:
    """The method, where it starts from, and how it computes."""

    method: Annotated[Text, Option(Run, "How to distil; see `ddfast info`.")] = "mtt"
    preset: Annotated[Text | None, Option(Run, "Settings to start from; see `ddfast presets`.", "the nearest")] = None
    ipc: Annotated[PerClass, Option(Data, "Images per class, or a .json or .toml file of them.", None, "N or FILE")] = 1
    network: Annotated[
        Text | None,
        Option(Run, "What to distil with: convnet:depth=4:width=64, torchvision:resnet18, timm:….", THE_PRESETS),
    ] = None
    budget: Annotated[
        Text | None,
        Option(Run, "Time for the whole job, as 20min or 2h.", "10min for data that no preset is of"),
    ] = None
    memory_budget: Annotated[
        Text, Option(Run, "What an outer step may use: bytes, 4GiB, 0.5 or 50% of what is free.")
    ] = "50%"
    precision: Annotated[
        Annotated[str, OneOf(PRECISIONS)], Option(Run, "Of convolutions: float32 is strict, without TF32.")
    ] = "default"
    cuda_graph: Annotated[bool, Option(Run, "On a GPU: replay an outer step as one launch.")] = False
    deterministic: Annotated[bool, Option(Run, "On a GPU: the same bits every time.")] = True
    device: Annotated[Text | None, Option(Run, "cpu, cuda, cuda:1, ….", "a GPU if there is one")] = None
    seed: Annotated[int, Option(Run, "Same seed, same result.")] = 0


@dataclass(frozen=True, kw_only=True)
class ExpertOptions:
    """Trained networks that a method needs, or that images or labels are chosen by."""

    experts: Annotated[Text | None, Option(Experts, "Folder of trained experts.", "trained, cached", "PATH")] = None
    num_experts: Annotated[AtLeast1 | None, Option(Experts, "Experts to train or use.", THE_PRESETS)] = None
    train_epochs: Annotated[
        TrainEpochs | None,
        Option(Experts, "Epochs of each; needed: no more than a run can use.", THE_PRESETS, "N or needed"),
    ] = None
    train_lr: Annotated[Positive | None, Option(Experts, "Their learning rate.", THE_PRESETS)] = None
    train_dsa_strategy: Annotated[
        Text | None, Option(Experts, "Their augmentation, where it is another.", "dsa_strategy")
    ] = None
    batch_train: Annotated[AtLeast1, Option(Experts, "Real images per minibatch.", THE_PRESETS)] = 256
    mom: Annotated[NotNegative, Lt(1), Option(Experts, "Their momentum.", THE_PRESETS)] = 0.0
    l2: Annotated[NotNegative, Option(Experts, "Their weight decay.", THE_PRESETS)] = 0.0
    optimizer: Annotated[
        Annotated[str, OneOf(OPTIMIZERS)], Option(Experts, "gsam: for flat trajectories.", THE_PRESETS)
    ] = "sgd"
    rho: Annotated[Positive, Option(Experts, "Of gsam: the length of its ascent.", THE_PRESETS)] = 0.01
    alpha: Annotated[NotNegative, Option(Experts, "Of gsam: 0 is SAM.", THE_PRESETS)] = 1.0
    schedule: Annotated[Annotated[str, OneOf(SCHEDULES)], Option(Experts, "Of their learning rate.", THE_PRESETS)] = (
        "constant"
    )
    curriculum: Annotated[
        Annotated[str, OneOf(CURRICULA)], Option(Experts, "pad: epochs see images by their difficulty.", THE_PRESETS)
    ] = "none"
    keep_epochs: Annotated[
        KeepEpochs,
        Option(Experts, "Snapshots that are kept, beside the last epoch's.", None, "A-B, needed or all"),
    ] = "all"
    snapshots: Annotated[
        Annotated[str, OneOf(tuple(FORMATS))], Option(Experts, "delta16, delta8: rounded to 1/2, 1/3 of the bytes.")
    ] = "float32"


@dataclass(frozen=True, kw_only=True)
class LoopOptions:
    """How long the outer loop is, and what it leaves on the way."""

    iterations: Annotated[
        AtLeast0 | None, Option("Outer step", "Outer steps; 0: the images that it begins with.", THE_PRESETS, "N")
    ] = None
    checkpoint_every: Annotated[AtLeast1, Option(Run, "Iterations between checkpoints.")] = 100
    keep_checkpoints: Annotated[
        AtLeast1 | None, Option(Run, "How many of the sets that eval_every evaluates stay.", "all")
    ] = None
    log: Annotated[
        Annotated[str, OneOf(TRACKERS)] | None, Option(Run, "Tracker that also gets records and images.", "no tracker")
    ] = None


@dataclass(frozen=True, kw_only=True)
class EvaluationOptions:
    """How networks are trained on the result."""

    networks: Annotated[
        Networks | None, Option(Evaluation, "To evaluate on, separated by commas.", "the network", "NAMES")
    ] = None
    num_eval: Annotated[
        AtLeast0, Option(Evaluation, "Networks trained from scratch, of each name; of `distill` also 0: none.")
    ] = 5
    eval_epochs: Annotated[
        AtLeast1 | None, Option(Evaluation, "1001 for MTT's epoch_eval_train 1000.", "the protocol's")
    ] = None
    eval_batch: Annotated[
        AtLeast1 | None, Option(Evaluation, "Images per minibatch.", "the protocol's, mostly 256")
    ] = None
    protocol: Annotated[
        Annotated[str, OneOf(tuple(PROTOCOLS))], Option(Evaluation, "How: mtt as its code does, ….")
    ] = "ddfast"
    eval_lr: Annotated[
        EvalLr | None,
        Option(Evaluation, "Rate.", "learned; auto for other networks than the set's", "learned, auto or NUMBER"),
    ] = None
    baselines: Annotated[
        Annotated[str, OneOf(BASELINES)],
        Option(Evaluation, "More random real images beside it: plain (not augmented), labelled (softly, by experts)."),
    ] = "labelled"
    sam_rho: Annotated[
        Positive | None, Option(Evaluation, "Train with SAM, its ascent of this length.", "plain SGD")
    ] = None
    full_epochs: Annotated[
        AtLeast1 | None, Option(Evaluation, "Full data: train for so many epochs.", "the experts' last snapshot")
    ] = None
    eval_every: Annotated[
        AtLeast1 | None, Option(Evaluation, "Evaluate after so many iterations too.", "at the end")
    ] = None


ALL = (DataOptions, RunOptions, ExpertOptions, LoopOptions, EvaluationOptions)


def defaults_of(options: type) -> dict[str, Any]:
    """The defaults of a class of options, by name."""
    return {field.name: field.default for field in fields(options)}


def run_options(method: type[Method] | None = None) -> dict[str, Declared]:
    """The options of `distill` by name, those of a method among them; None: of all methods.

    Of several methods that have an option the first one's words are taken, without its default.
    """
    found: dict[str, Declared] = {}
    for options in ALL:
        found |= options_of(options)
    for one in METHODS.values() if method is None else (method,):
        for name, option in options_of(one.Settings).items():
            found.setdefault(name, option)
    return found


def methods_with(name: str) -> list[str] | None:
    """The methods that have an option; None for one of all."""
    having = [key for key, method in METHODS.items() if name in run_options(method)]
    return None if len(having) == len(METHODS) else having


def only_for(name: str) -> str:
    """ " (pp only)" for an option of some methods, "" for one of all, or of all that have experts."""
    of = methods_with(name)
    return "" if of is None or of == methods_with("experts") else f" ({', '.join(of)} only)"


def default_of(option: Declared) -> str:
    """The default of an option, in words."""
    if option.words is not None:
        return option.words
    if option.default is MISSING or option.default is None:
        return THE_PRESETS
    return {True: "yes", False: "no"}[option.default] if isinstance(option.default, bool) else str(option.default)


def check_names(given: dict[str, Any], method: str) -> None:
    """ValueError for an option that there is not, or one of other methods only."""
    known = run_options(method_class(method))
    for name in given:
        if name not in known and (of := methods_with(name)):
            raise ValueError(f"{name}: an option of {', '.join(of)} only, not of {method}")
    expect_known(given, known)


def read_config_file(path: str | Path, known: Iterable[str]) -> dict[str, Any]:
    """The options of a .yaml, .toml or .json file, or of a run's config.json. "none" and null switch off what a preset
    has; another option is left out by null.

    Errors: ValueError for another ending, a file that is none, or an option that is not `known`; OSError.
    """
    path = Path(path)
    readers = {".yaml": _read_yaml, ".yml": _read_yaml, ".toml": parse_toml, ".json": json.loads}
    if path.suffix.lower() not in readers:
        raise ValueError(f"config: expected a .yaml, .toml or .json file, got {path}")
    try:
        values = readers[path.suffix.lower()](path.read_text(encoding="utf-8"))
    except OSError as error:
        raise type(error)(f"{path}: cannot be read ({error.strerror})") from None
    except ValueError as error:
        raise ValueError(f"{path}: {' '.join(str(error).split())}") from None
    if not isinstance(values, dict):
        raise ValueError(f"{path}: expected options and their values, got {type(values).__name__}")
    if "fingerprint" in values:  # of a run, which records more than options, and settings that its preset gave
        values = options_of_run(values)
    values = {str(name).replace("-", "_"): value for name, value in values.items()}
    expect_known(values, known, f"option in {path}:")
    off = {name for name, option in run_options().items() if option.switches_off and option.section in OF_METHODS}
    return {n: NONE if v is None else v for n, v in values.items() if v is not None or n in off}


def _read_yaml(text: str) -> Any:
    import yaml

    try:
        return yaml.safe_load(text) or {}
    except yaml.YAMLError as error:
        raise ValueError(str(error)) from None


def options_of_run(config: dict[str, Any]) -> dict[str, Any]:
    """The options with which a run of this config is made again; rates that a probe found are probed for."""
    known, probed = run_options(method_class(config["method"])), config.get("probed", ())
    found = {}
    for name, option in known.items():
        value = config.get(name)
        if name in ("preset", "budget") or name in probed or (name == "preprocessing" and isinstance(value, dict)):
            continue  # all that they gave is there
        if name in ("rho", "alpha") and config.get("optimizer") != "gsam":
            continue
        if value is not None:
            found[name] = value
        elif option.switches_off and option.section in OF_METHODS:
            found[name] = NONE
    return found


def config_file(config: dict[str, Any]) -> str:
    """The options of a run, as a YAML file that `read_config_file` reads."""
    import yaml

    found, known = json.loads(json.dumps(options_of_run(config))), run_options(method_class(config["method"]))
    lines = []
    for section in SECTIONS:
        values = {name: value for name, value in found.items() if known[name].section == section}
        if values:
            lines.append(f"# {section}\n{yaml.safe_dump(values, sort_keys=False, allow_unicode=True)}")
    return "\n".join(lines)


def table() -> Iterator[str]:
    """The table of all options, in Markdown."""
    yield "# Options\n"
    yield "Of `ddfast distill`, with dashes (`--lr-img`), and of `ddfast.distill` in Python; `--config` takes a file.\n"
    known = run_options()
    for section in SECTIONS:
        yield f"## {section}\n"
        yield "| option | values | default | |\n|---|---|---|---|"
        for name, option in known.items():
            if option.section == section:
                row = f"`{name}`", expected(option.type), default_of(option), option.help + only_for(name)
                yield f"| {' | '.join(row)} |"
        yield ""
