"""The settings of experts that are trained without a run: those given, the others as the preset has them."""

from dataclasses import fields
from typing import Any

from ddfast import networks
from ddfast.data import images_per_class, load_dataset
from ddfast.experts import FORMATS, predicted_bytes
from ddfast.methods import Method, SetSettings, method_class
from ddfast.run.config import NEEDED
from ddfast.run.job import EXPERT_STORAGE
from ddfast.run.resolve import (
    DATA,
    LOADED,
    OF_EXPERTS,
    RUN,
    check_sharpness,
    check_whitening,
    derived_for,
    experts_for,
    is_own,
    method_named,
    preset_for,
    tell_settings,
)
from ddfast.runtime import seeds


def expert_options(
    dataset: Any, ipc: Any, method: str | None, preset: str | None, options: dict[str, Any]
) -> dict[str, Any]:
    """Keyword arguments of train_experts: those given, the others as the preset for `distill` has them."""
    given = {name: value for name, value in options.items() if value is not None}
    budget = {"budget": given.pop("budget")} if "budget" in given else {}
    names = [*LOADED, "download"]
    data = load_dataset(dataset or DATA["dataset"], **{n: v for n, v in given.items() if n in names})
    check_whitening(given, data)
    kind = method_class(method_named(method, preset))
    ipc = images_per_class(RUN["ipc"] if ipc is None else ipc, data.class_names)
    chosen = preset_for(method_named(method, preset), data, ipc, preset)
    asked = {"ipc": ipc, "preset": preset} | {name: given[name] for name in given if name not in names} | budget
    derived = derived_for(asked, data, chosen, None)
    tell_settings(chosen.name, derived, is_own(data, chosen, asked))
    asked = chosen.settings | derived.settings | {"init": chosen.settings.get("init", kind.Settings.init)}
    if not kind.needs.experts and not kind.Settings.judges(asked):
        raise ValueError(f"method: {method} looks at no experts")
    row = experts_for(kind, asked, {}) | chosen.settings | derived.settings
    if row["train_epochs"] == NEEDED:
        row["train_epochs"] = _settings(kind, row).used_epochs[1]
    defaults = {"train_epochs": row["train_epochs"], "train_lr": row["train_lr"]}
    defaults |= {name: row[name] for name in ("network", "num_experts", "zca", *OF_EXPERTS)}
    defaults["dsa_strategy"] = row.get("train_dsa_strategy") or row["dsa_strategy"]
    if given.get("train_epochs") == NEEDED:
        given["train_epochs"] = _settings(kind, row).used_epochs[1]
    merged = defaults | {name: value for name, value in given.items() if name not in names}
    check_sharpness(given, merged["optimizer"])
    if merged["keep_epochs"] == NEEDED:
        first, last = _settings(kind, row).used_epochs
        if merged["train_epochs"] < last:
            raise ValueError(
                f"keep_epochs: {chosen.name} needs epochs {first} to {last}, the experts are trained for "
                f"{merged['train_epochs']}; say which to keep, such as 0-{merged['train_epochs']}"
            )
        merged["keep_epochs"] = first, last
    elif merged["keep_epochs"] == EXPERT_STORAGE["keep_epochs"]:
        merged["keep_epochs"] = None
    whiten = merged.pop("zca") and "preprocessing" not in given
    return {"dataset": data.whitened() if whiten else data, **merged}


def _settings(kind: type[Method], row: dict[str, Any]) -> SetSettings:
    names = {field.name for field in fields(kind.Settings)}
    return kind.Settings(**{name: value for name, value in row.items() if name in names})


def expert_sizes(options: dict[str, Any]) -> dict[str, int]:
    """What the experts that train_experts makes of these options take on disk, in bytes at most, by the format of their
    snapshots; without training any. Errors: ValueError as there."""
    network = networks.create(options["network"], generator=seeds.generator(0), **options["dataset"].network_arguments)
    size = {"num_parameters": sum(p.numel() for p in network.parameters())}
    size |= {name: options[name] for name in ("num_experts", "keep_epochs")} | {"epochs": options["train_epochs"]}
    return {snapshots: predicted_bytes(snapshots=snapshots, **size) for snapshots in FORMATS}
