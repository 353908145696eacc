"""How an outer step of a published setting would use memory, without running it."""

from dataclasses import asdict, fields
from typing import Any

import torch

from ddfast import networks
from ddfast.engine.planner import Plan, make_plan, parse_budget, predict
from ddfast.engine.students import student_of, why_not_fused
from ddfast.experts import FORMATS, predicted_bytes, words
from ddfast.methods import METHODS, TrajectorySettings
from ddfast.run.presets import choose_preset
from ddfast.run.resolve import RUN
from ddfast.runtime import seeds
from ddfast.runtime.devices import resolve_device


def plan_of_preset(
    name: str,
    memory_budget: int | float | str | None = None,
    precision: str = "default",
    network: str | None = None,
    device: str | torch.device | None = None,
    settings: dict[str, Any] | None = None,
) -> dict[str, Any]:
    """How an outer step of a preset would use memory, and its experts the disk, without its data and without running
    it, for people and JSON.

    precision: of ddfast.ops.PRECISIONS; settings: some of syn_steps, batch_syn and segments, to replace the preset's.
    Errors: ValueError for an unknown preset, network or precision, or where nothing fits, with the smallest budget that
    does.
    """
    method, device = name.split("/")[0], resolve_device(device)
    if method not in METHODS:
        raise ValueError(f"preset: expected <method>/<dataset>/ipc<n> with one of {', '.join(METHODS)}, got {name!r}")
    if not METHODS[method].needs.unroll:
        raise ValueError(f"plan: {method} does not unroll, and its memory is not planned; take a method that does")
    preset = choose_preset(method, "", 1, name)
    given = {key: value for key, value in (settings or {}).items() if value is not None}
    names = {field.name for field in fields(METHODS[method].Settings)}
    row = METHODS[method].Settings(**{k: v for k, v in (preset.settings | given).items() if k in names})
    side = preset.side
    chosen = network or preset.settings["network"]
    module = networks.create(
        chosen,
        channels=preset.channels,
        num_classes=preset.classes,
        image_size=(side, side),
        generator=seeds.generator(0),
    )
    student = student_of(module, precision)
    images = torch.Size((preset.classes * preset.ipc, preset.channels, side, side))
    states = METHODS[method].compares_states
    size = row.unroll_size(images, device, num_classes=preset.classes, return_states=states)
    budget = parse_budget(RUN["memory_budget"] if memory_budget is None else memory_budget, device)
    plan, reason = make_plan(student, size, budget), why_not_fused(module)
    return {
        "setting": f"{preset.name}, {size.words()}",
        "network": f"{chosen}, {student.num_parameters} parameters, {f'by autograd: {reason}' if reason else 'fused'}",
        "gradient": METHODS[method].gradient,
        "budget": f"{budget / 2**20:.0f} MiB",
        "plan": plan.words(size),
        "recomputing all": Plan(predicted_bytes=predict(student, size, Plan())).words(size),
        **(_disk(preset.settings, row, student.num_parameters) if METHODS[method].needs.experts else {}),
        **{key: value for key, value in asdict(plan).items() if value is not None},
    }


def _disk(experts: dict[str, Any], row: TrajectorySettings, num_parameters: int) -> dict[str, Any]:
    """What a preset's experts take, by the format of their snapshots, with all epochs and with those it needs."""
    needed = row.min_start_epoch, row.epochs_needed
    size = {"num_parameters": num_parameters, "epochs": experts["train_epochs"], "num_experts": experts["num_experts"]}
    sizes = {
        name: {snapshots: predicted_bytes(keep_epochs=keep, snapshots=snapshots, **size) for snapshots in FORMATS}
        for name, keep in (("all", None), ("needed", needed))
    }
    said = {name: ", ".join(f"{words(of[s])} as {s}" for s in of) for name, of in sizes.items()}
    about = f"{size['num_experts']} of {size['epochs']} epochs: {said['all']}"
    return {"experts": f"{about}; epochs {needed[0]} to {needed[1]}: {said['needed']}", "expert_bytes": sizes}
