"""What a run is: its settings, resolved from arguments, a preset, given experts, or the folder of a killed run."""

import logging
import platform
from dataclasses import MISSING, asdict, fields
from pathlib import Path
from typing import Any

import torch

from ddfast.data import (
    Dataset,
    counts_of,
    images_per_class,
    known_name,
    load_dataset,
)
from ddfast.evaluation import check_evaluation
from ddfast.experts import ExpertTraining, TrajectoryStore
from ddfast.methods import INITS, METHODS, Method, check_initial, ipc_of, load_init, method_class
from ddfast.networks import name_of, structure_of
from ddfast.ops.installation import build_info
from ddfast.run.config import (
    NEEDED,
    OF_METHODS,
    DataOptions,
    EvaluationOptions,
    ExpertOptions,
    LoopOptions,
    RunOptions,
    check_names,
    defaults_of,
    run_options,
)
from ddfast.run.costs import iterations_within
from ddfast.run.job import EXPERT_STORAGE, EXPERT_TRAINING, Job
from ddfast.run.own_data import BUDGET, Derived, amounts, derive, derive_without_unroll
from ddfast.run.presets import Preset, choose_preset
from ddfast.run.probe import RATES
from ddfast.run.trackers import check_tracker
from ddfast.runtime.arguments import expect_whole
from ddfast.runtime.devices import computes_bfloat16, resolve_device
from ddfast.runtime.forecast import parse_budget_of_time
from ddfast.runtime.options import NONE, check_option, options_of
from ddfast.runtime.ranks import ALONE, Ranks

log = logging.getLogger("ddfast")

DATA = defaults_of(DataOptions)
LOADED = [name for name in DATA if name not in ("dataset", "zca")]  # what load_dataset takes
RUN = defaults_of(RunOptions)
OF_EXPERTS = EXPERT_TRAINING | EXPERT_STORAGE
JUDGES = {"train_epochs": 20, "train_lr": 0.01, "mom": 0.9, "l2": 5e-4}  # trained to look at images only
REPORT = {n: v for n, v in (defaults_of(LoopOptions) | defaults_of(EvaluationOptions)).items() if n != "iterations"}
AMOUNTS = ("num_experts", "batch_train", "train_epochs", "expert_epochs", "max_start_epoch", "syn_steps")
AMOUNTS += ("batch_syn", "segments", "num_eval", "eval_epochs")  # that others are derived from
UNCHECKED = {"keep_epochs", "image_size", "value_range", "init", "ipc"}  # checked where they are used, lists among them


def resolve(given: dict[str, Any], download: bool = False, ranks: Ranks = ALONE, derived: Derived | None = None) -> Job:
    """The job that these arguments ask for; what is None comes from given experts, else from the preset of the data.

    Data without one get settings that are derived from them, or `derived` ones, of another process of this run.
    Errors: ValueError or TypeError for what cannot work, before anything is written.
    """
    given = by_name({name: value for name, value in given.items() if value is not None})
    method = method_named(given.get("method"), given.get("preset"))
    check_names(given, method)
    kind = method_class(method)
    known = run_options(kind)
    off = {name: None for name, value in given.items() if known[name].switches_off and is_none(value)}
    given = {name: value for name, value in given.items() if name not in off or known[name].section in OF_METHODS}
    _check_values(given | off, known)
    config = DATA | RUN | REPORT | given
    dataset, experts = config["dataset"], given.get("experts")
    data = load_dataset(dataset, download=download, **{name: config[name] for name in LOADED})
    check_whitening(given, data)
    store = experts if isinstance(experts, TrajectoryStore) or experts is None else TrajectoryStore(experts)
    of_init = ipc_of(given.get("init"), given.get("parameterisation"))  # of a saved set its own
    ipc = given.get("ipc", of_init or RUN["ipc"])
    given["ipc"] = images_per_class(ipc, data.class_names)
    preset = preset_for(method, data, given["ipc"], config["preset"])
    derived = derived_for(given | off, data, preset, store) if derived is None else derived
    of_experts = experts_for(kind, preset.settings | derived.settings | given, given)
    config = DATA | RUN | REPORT | of_experts | preset.settings | derived.settings
    config |= _of_experts(store, given, config) | given | off
    expansion = ("current_max_start_epoch", "expansion_end")
    if not any(name in given and name not in off for name in expansion) and (
        any(name in off for name in expansion)
        or (config.get("current_max_start_epoch") or 0) > config.get("max_start_epoch", 0)
    ):
        config |= dict.fromkeys(expansion)  # the preset's does not fit what was given
    if not kind.needs.steps:
        if config["iterations"]:
            got = config["iterations"]
            raise ValueError(f"iterations: {method} selects images and learns nothing; expected 0, got {got}")
        config["eval_every"] = None
    if config.get("labels", kind.Settings.labels) != "soft" and "lr_label" not in given:
        config["lr_label"] = 0.0  # the preset's is of soft labels
    own = is_own(data, preset, given)
    config |= {"method": method, "preset": f"own data, else {preset.name}" if own else preset.name}
    config |= {"dataset": _spec(dataset), "derived": derived.reasons, "derived_settings": derived.settings}
    probes = own and kind.needs.experts
    config["probed"] = [name for name in RATES if probes and name not in given]
    tell_settings(preset.name, derived, own)
    if of_experts:
        config["experts"] = None if store is None else str(store.path.resolve())
    if config["zca"] and "preprocessing" not in given and data.preprocessing.zca is None:
        data = data.whitened()
    config["zca"] = data.preprocessing.zca is not None
    if of_experts:
        check_sharpness(given, config["optimizer"])
    job = checked_job(config, data, kind, store, ranks)
    job.check_expansion("expansion_end" in given)
    if job.settings.init not in INITS:
        lr = load_init(job.settings, data, config["ipc"]).lr  # refuses one that does not fit
        if lr is not None:
            job.config["probed"] = [name for name in job.config["probed"] if name != "lr_teacher"]
        if "lr_teacher" in given and lr is not None:
            raise ValueError(f"lr_teacher: the set in {job.settings.init} brings its own, {lr:.4g}; expected none")
        job.config["init"] = str(Path(job.settings.init).resolve())
    job.plan_for_budget(asked="memory_budget" in given)
    budget = given.get("budget", BUDGET if own and not kind.needs.experts else None)
    budget = budget if kind.needs.steps else None
    if budget is not None and "iterations" not in given | derived.settings:
        count, reason = iterations_within(job, parse_budget_of_time(budget))
        log.info("  iterations %d: %s", count, reason)
        job.config |= {"iterations": count, "derived": job.config["derived"] | {"iterations": reason}}
        job.config["derived_settings"] = job.config["derived_settings"] | {"iterations": count}
    return job


def experts_for(kind: type[Method], values: dict[str, Any], given: dict[str, Any]) -> dict[str, Any]:
    """The settings of experts that a run looks at, where its preset has none; none where it looks at none.

    Errors: ValueError for options of experts that nothing is done with.
    """
    if kind.needs.experts:
        return OF_EXPERTS
    count = kind.Settings.judges(values)
    if count:
        return OF_EXPERTS | JUDGES | {"num_experts": count}
    unused = [name for name in options_of(ExpertOptions) if name in given]
    if unused:
        raise ValueError(
            f"{unused[0]}: this run looks at no experts; leave it out, or let images or labels come from them, such as "
            f"by init herding"
        )
    return {}


def preset_for(method: str, data: Dataset, ipc: int | list[int], name: str | None) -> Preset:
    """The preset of this name, or of these data and the mean of their images per class."""
    mean = sum(counts_of(ipc, data.num_classes)) / data.num_classes
    return choose_preset(method, data.name, mean, name, side=min(data.image_size), classes=data.num_classes)


def check_whitening(given: dict[str, Any], data: Dataset) -> None:
    """Tell which preprocessing is given; ValueError where it whitens and zca says otherwise, or the other way round."""
    if "preprocessing" not in given:
        return
    whitens = data.preprocessing.zca is not None
    if given.get("zca", whitens) != whitens:
        words = "whitens" if whitens else "does not whiten"
        raise ValueError(f"zca: the preprocessing that is given {words}, got {given['zca']}; leave zca out")
    source = given["preprocessing"]
    log.info("preprocessing: that of %s", source if isinstance(source, str | Path) else type(source).__name__)


def is_own(data: Dataset, preset: Preset, given: dict[str, Any]) -> bool:
    """Whether no preset is of these data, and none was asked for."""
    return given.get("preset") is None and preset.dataset != data.name


def derived_for(given: dict[str, Any], data: Dataset, preset: Preset, store: TrajectoryStore | None) -> Derived:
    """Settings for data that no preset is of; of others those amounts that a budget asks for."""
    budget = parse_budget_of_time(given.get("budget", BUDGET))
    count = sum(counts_of(given["ipc"], data.num_classes))
    device, experts = resolve_device(given.get("device")), None if store is None else store.kept_epochs
    given = {name: value for name, value in given.items() if value is not None}
    asked = {name: given[name] for name in AMOUNTS if name in given and given[name] != NEEDED}
    expect_whole(**{name: value for name, value in asked.items() if (name, value) != ("num_eval", 0)})
    unrolls = method_class(preset.method).needs.experts
    if is_own(data, preset, given) and not unrolls:
        return derive_without_unroll(data, given, preset.settings)
    if is_own(data, preset, given):
        if store is not None:
            given = _of_experts(store, given, OF_EXPERTS | preset.settings) | given
        return derive(data, count, given, preset.settings, device, budget, experts)
    if "budget" not in given or not unrolls:  # which times its own steps
        return Derived({}, {})
    return amounts(data, count, given, DATA | RUN | preset.settings, device, budget, experts)


def method_named(method: str | None, preset: str | None) -> str:
    """The method that is meant, by its own name or that of a preset."""
    named = str(preset).split("/")[0] if preset is not None else method or RUN["method"]
    method = (named if named in METHODS else RUN["method"]) if method is None else method
    method_class(method)  # refuses an unknown one
    if named in METHODS and named != method:
        raise ValueError(f"preset: {preset} is one of {named}, not of {method}")
    return method


def check_sharpness(given: dict[str, Any], optimizer: str) -> None:
    """Refuse settings of GSAM where experts are trained by something else."""
    for name in ("rho", "alpha"):
        if name in given and optimizer not in ("gsam", None):
            raise ValueError(f"{name}: expected with the optimizer gsam only, got {given[name]}")


def tell_settings(preset: str, derived: Derived, own: bool) -> None:
    """Log where settings come from, and why those that are derived are what they are."""
    if not own:
        log.info("settings: %s%s", preset, ", shortened to the budget" if derived.settings else "")
    else:
        log.info("settings: no preset for these data; derived from the data and the budget, the rest from %s", preset)
    for name, reason in derived.reasons.items():
        log.info("  %s %s: %s", name, derived.settings[name], reason)


def by_name(given: dict[str, Any]) -> dict[str, Any]:
    """Arguments as JSON can hold them: networks by name, folders absolute, for a run may be resumed from elsewhere."""
    if "network" in given:
        given = given | {"network": name_of(given["network"])}
    if isinstance(given.get("networks"), list | tuple):
        given = given | {"networks": tuple(map(name_of, given["networks"]))}
    folders = {
        name: str(Path(given[name]).resolve())
        for name in ("data_root", "experts")
        if isinstance(given.get(name), str | Path)
    }
    if isinstance(given.get("value_range"), str) and given["value_range"] == "auto":
        given = {name: value for name, value in given.items() if name != "value_range"}
    return given | folders | {n: str(given[n]) for n in ("init", "test_folder") if isinstance(given.get(n), Path)}


def is_none(value: Any) -> bool:
    return isinstance(value, str) and value == NONE


def _check_values(given: dict[str, Any], known: dict[str, Any]) -> None:
    """ValueError for the first value that its option does not take."""
    for name, value in given.items():
        if name not in UNCHECKED and (value is not None or known[name].optional):
            check_option(known[name], value)


def checked_job(
    config: dict[str, Any], data: Dataset, method: type[Method], store: TrajectoryStore | None, ranks: Ranks
) -> Job:
    """The job of a config whose values all stand, once they are known to make sense."""
    names = [field.name for field in fields(method.Settings)]
    for name, option in options_of(method.Settings).items():
        if option.default is MISSING and name not in config:
            raise ValueError(f"{name}: {config['method']} has no default for it; give one")
    settings = method.Settings(**{name: config[name] for name in names if name in config})
    if settings.canvas > 1 and config["zca"]:
        raise ValueError(f"canvas: whitening is of whole images; expected zca off or canvas 1, got {settings.canvas}")
    if isinstance(config.get("networks"), str):
        raise ValueError(f"networks: expected a tuple of names, got {config['networks']!r}")
    config["networks"] = list(config.get("networks") or [config["network"]])
    uses_experts = method.needs.experts or method.Settings.judges(config) > 0
    if uses_experts:
        _check_experts(config | asdict(settings))
    known = run_options(method)
    _check_values({n: v for n, v in config.items() if n in known and n not in names}, known)
    for name in ("eval_every", "full_epochs"):
        if not config["num_eval"] and config.get(name) is not None:
            change = f"give num_eval, or {name} none"
            raise ValueError(f"{name}: trains networks to test them, of which num_eval 0 wants none; {change}")
    if config.get("keep_checkpoints") is not None and config.get("eval_every") is None:
        raise ValueError(
            "keep_checkpoints: says how many of the sets that eval_every evaluates stay; give eval_every too"
        )
    device = resolve_device(config.get("device"))
    check_tracker(config.get("log"))
    check_initial(settings, data, config["ipc"])
    check_evaluation(config["networks"], config["protocol"], data)
    facts = {
        "fingerprint": data.fingerprint,
        "test_fingerprint": data.test_fingerprint,
        "data": dict(data.about),
        "image_size": list(data.image_size),
        "preprocessing": data.preprocessing.describe(),
        "resize": data.preprocessing.resize,
        "device": str(device),
        "threads": torch.get_num_threads(),
        "processes": ranks.size,
        "versions": build_info()["versions"] | {"python": platform.python_version()},
    }
    if config["precision"] == "bfloat16" and not computes_bfloat16(device):
        log.warning("precision: this CPU has no bfloat16 instructions; convolutions take about ten times longer")
    job = Job({**config, **asdict(settings), **facts}, data, settings, store, device, ranks)
    network = job.network("check")  # refuses an unknown or impossible one
    structure = structure_of(config["network"], network)
    if config.get("structure", structure) != structure:
        raise ValueError(
            f"network: {config['network']} has other layers than the run's; give the one that it began with"
        )
    job.config |= {"structure": structure} if structure else {}
    method.check(settings, data, network)
    job.check_ranks()
    if store is not None:
        job.check_experts(store)
    elif uses_experts:
        _ = job.keep_epochs  # refuses those that leave out what the run can use
    return job


def _check_experts(config: dict[str, Any]) -> None:
    """ValueError for experts that cannot be trained like this."""
    strategy = config.get("train_dsa_strategy") or config["dsa_strategy"]
    how = {"lr_teacher": config["train_lr"], **{name: config[name] for name in EXPERT_TRAINING}}
    given = {name: value for name, value in how.items() if value is not None}  # of given experts not all may be known
    ExpertTraining(**({"lr_teacher": 1.0, **EXPERT_TRAINING} | given), dsa_strategy=strategy)


def _of_experts(store: TrajectoryStore | None, given: dict[str, Any], row: dict[str, Any]) -> dict[str, Any]:
    """What given experts decide: how many there are, their network, and whether images are whitened."""
    if store is None:
        return {}
    preprocessing = store.settings.get("preprocessing") or {}
    decided = {
        "num_experts": store.num_experts,
        "network": store.settings.get("network"),
        "zca": bool(preprocessing.get("zca")),
        "train_epochs": store.epochs,
        "train_lr": store.settings.get("lr_teacher"),
        "train_dsa_strategy": store.settings.get("dsa_strategy"),
        **{name: store.settings.get(name, default) for name, default in OF_EXPERTS.items()},
    }
    row = OF_EXPERTS | row
    for name in ("train_epochs", "train_lr", "train_dsa_strategy", *OF_EXPERTS):
        if name in given and decided[name] is not None and as_json(name, given[name]) not in (decided[name], NEEDED):
            raise ValueError(
                f"{name}: the experts in {store.path} were trained with {decided[name]!r}, got {given[name]!r}"
            )
    for name in ("network", "zca", "optimizer"):
        if name not in given and decided[name] not in (row[name], None):
            log.info("%s: %s, as the experts were trained (the preset has %s)", name, decided[name], row[name])
    return decided


def _spec(dataset: Any) -> str:
    """How the data set can be loaded again: its name, or the path of its folder; else "custom"."""
    if not isinstance(dataset, str | Path):
        return "custom"
    return known_name(dataset) or str(Path(dataset).expanduser().resolve())


def as_json(name: str, value: Any) -> Any:
    if name == "image_size" and isinstance(value, int):
        return [value, value]
    if isinstance(value, tuple):
        return list(value)
    return str(value) if isinstance(value, Path) else value
