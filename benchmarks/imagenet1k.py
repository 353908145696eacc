"""What ImageNet-1K takes, from the planner's model: bytes, FLOPs, hours and processes, as Markdown tables.

python -m benchmarks.imagenet1k [share of the peak that a GPU sustains, 0.4] > table.md

Nothing is measured here; benchmarks.ranks measures bytes, FLOPs and what is sent, on CPUs.
"""

import sys
from typing import NamedTuple

import torch

from benchmarks.predicted import POOL, SPEEDS
from ddfast import networks
from ddfast.engine.planner import Plan, UnrollSize, make_plan, predict
from ddfast.engine.students import RankBatches, Student, student_of
from ddfast.experts import FORMATS, predicted_bytes, words
from ddfast.networks import ConvNet
from ddfast.run.presets import choose_preset
from ddfast.runtime import seeds
from ddfast.runtime.ranks import Ranks

TRAIN, TEST, CLASSES = 1_281_167, 50_000, 1000
SIDE, WIDTH = 64, 128
FREE = 79 * 2**30  # bytes of an H100's memory
BUDGET = FREE // 2  # the default, 50% of what is free
RECOMPUTING, STORED = 11, 9  # convolutions of an inner step of the exact gradient, in forward passes
FIRST_ORDER = 7  # of TESLA's, stored
TRAINING = 3  # of a step of an expert
GPUS = (1, 8, 64)
NODE = 8  # GPUs that NVLink joins
LINK = 450e9  # bytes per second that a GPU sends within it
ITERATIONS = 10_000


class Speed(NamedTuple):
    """Of an H100: its data sheet's dense peaks."""

    flops: float  # a second, in convolutions
    bandwidth: float  # bytes a second
    element: int  # bytes of a map's number


PEAKS = {"default (TF32)": Speed(495e12, SPEEDS["H100"], 4), "bfloat16": Speed(989e12, SPEEDS["H100"], 2)}


def main(share: float) -> None:
    """Print the tables."""
    network = convnet()
    student = student_of(network)
    P = student.num_parameters
    settings = choose_preset("tesla", "", 1, "tesla/imagenet1k/ipc1").settings
    per_image = forward_flops(network)
    print(
        f"ConvNet, {SIDE} px, {CLASSES} classes: P = {P:,}; a forward pass is {per_image / 1e9:.2f} GFLOP an image.\n"
    )
    images = TRAIN * 3 * SIDE**2
    print(f"Images: {images / 2**30:.1f} GiB as bytes (train), {TEST * 3 * SIDE**2 / 2**30:.1f} GiB (test).\n")
    _per_image(network, share)
    _experts(network, P, settings, share)
    _distillation(network, student, settings, share)
    _shared(network, student, settings, share)


def convnet() -> ConvNet:
    """The field's, for all classes."""
    return networks.create(
        "convnet", channels=3, num_classes=CLASSES, image_size=(SIDE, SIDE), generator=seeds.generator(0)
    )


def sent_bytes(P: int, batch: int, steps: int, on_device: int, second_order: bool = True) -> tuple[int, int]:
    """What a process adds to the sums of an outer step, where segments and where minibatches are shared.

    Of segments the loss and the gradients of images and learning rate; of minibatches, in every inner step, the loss
    and g, then ⟨g, σ⟩, Hσ and the images' part. The first step's Hσ is not wanted, to first order none is.
    """
    image = 3 * SIDE**2
    hessians = (steps - 1) * P if second_order else 0
    return 4 * (on_device * image + 2), 4 * (steps * (P + batch * image + 2) + hessians)


def forward_flops(network: torch.nn.Module) -> int:
    """Floating-point operations of the convolutions and the linear layer for one image."""
    return sum(layer.flops for layer in _layers(network))


class Layer(NamedTuple):
    """A convolution, or the linear layer, of one image."""

    is_convolution: bool
    flops: int
    read: int  # numbers
    written: int


def _layers(network: torch.nn.Module) -> list[Layer]:
    found = []

    def count(module, inputs, output):
        flops = 2 * module.weight[0].numel() * output[0].numel()
        found.append(Layer(isinstance(module, torch.nn.Conv2d), flops, inputs[0].numel(), output[0].numel()))

    hooks = [
        m.register_forward_hook(count) for m in network.modules() if isinstance(m, torch.nn.Conv2d | torch.nn.Linear)
    ]
    network(torch.zeros(1, 3, SIDE, SIDE))
    for hook in hooks:
        hook.remove()
    return found


def seconds_of(network: torch.nn.Module, convolutions: int, pools: dict[str, int], peak: Speed, share: float) -> float:
    """For one image: every convolution takes what computing or what moving its maps takes, the longer; norm, ReLU and
    pool move maps, `pools` says how often each kernel of POOL runs. Launches and parameters are left out."""
    seconds = 0.0
    for layer in _layers(network):
        moved = peak.element * (layer.read + layer.written) / peak.bandwidth
        seconds += convolutions * max(layer.flops / peak.flops, moved)
        if layer.is_convolution:  # its map goes through norm, ReLU and pool
            maps = sum(times * sum(full + pooled / 4 for full, pooled in POOL[name]) for name, times in pools.items())
            seconds += peak.element * maps * layer.written / peak.bandwidth
    return seconds / share


FORWARD, BACKWARD, JVP, BACKWARD_JVP = POOL
GRADIENT = {FORWARD: 1, BACKWARD: 1}
INNER_STEP = {  # kernels of norm, ReLU and pool of an inner step and its part of the backward
    FIRST_ORDER: GRADIENT | {JVP: 1, BACKWARD_JVP: 1},
    STORED: GRADIENT | {JVP: 1, BACKWARD_JVP: 1},
    RECOMPUTING: {FORWARD: 2, BACKWARD: 2, JVP: 1, BACKWARD_JVP: 1},
}


def _per_image(network: torch.nn.Module, share: float) -> None:
    print(
        f"| µs of an H100 for one image | at its peaks | at {share:.0%} of them, **not yet measured** |\n|---|---|---|"
    )
    work = {"training, a step of an expert": (TRAINING, GRADIENT)}
    for name, n in (("stored", STORED), ("recomputed", RECOMPUTING), ("to first order, stored", FIRST_ORDER)):
        work[f"distilling, an inner step, {name}"] = n, INNER_STEP[n]
    for what, (convolutions, pools) in work.items():
        for precision, peak in PEAKS.items():
            best = 1e6 * seconds_of(network, convolutions, pools, peak, 1.0)
            computing = 1e6 * convolutions * forward_flops(network) / peak.flops
            print(f"| {what}, {precision} | {best:.1f}, of them {computing:.1f} computing | {best / share:.0f} |")
    print()


def _experts(network: torch.nn.Module, P: int, settings: dict, share: float) -> None:
    epochs, count = settings["max_start_epoch"] - 1 + settings["expert_epochs"], settings["num_experts"]
    flops = TRAINING * forward_flops(network) * TRAIN * epochs * count
    sizes = {how: words(predicted_bytes(P, epochs=epochs, num_experts=count, snapshots=how)) for how in FORMATS}
    print(f"| {count} experts of {epochs} epochs | |\n|---|---|")
    print(f"| FLOPs | {flops:.2g} ({flops / epochs / count:.2g} an epoch) |")
    print(f"| snapshots | {', '.join(f'{how}: {size}' for how, size in sizes.items())} |")
    for precision, peak in PEAKS.items():
        hours = seconds_of(network, TRAINING, GRADIENT, peak, share) * TRAIN * epochs / 3600  # of one expert
        listed = ", ".join(f"{n}: {hours * -(-count // n):.2g}" for n in GPUS)  # whole experts are shared out
        print(f"| hours by GPUs, {precision} | {listed} |")
    print()


class Setting(NamedTuple):
    """Of a run on all classes."""

    words: str
    ipc: int
    batch: int
    convolutions: int  # where all steps are stored
    relabelled: bool = False  # by the target network, once an outer step and by each process


SETTINGS = (
    Setting("the preset, first order", 1, 100, FIRST_ORDER, relabelled=True),
    Setting("exact", 1, 100, STORED),
    Setting("exact", 1, 1000, STORED),
    Setting("exact", 10, 1000, STORED),
    Setting("exact", 50, 1000, STORED),
)


def _distillation(network: torch.nn.Module, student: Student, settings: dict, share: float) -> None:
    T = settings["syn_steps"]
    print(
        f"| gradient; images per class; minibatch × steps | set | outer step, recomputing all | planned for "
        f"{BUDGET / 2**30:.1f} GiB | FLOPs an iteration | hours for {ITERATIONS:,} on a GPU: {', '.join(PEAKS)} |\n"
        "|---|---|---|---|---|---|"
    )
    for setting in SETTINGS:
        size = _size(setting, T)
        plan = make_plan(student, size, BUDGET)
        _expect_stored(plan, T)
        seconds = [sum(_outer_step(network, setting, size, peak, share)) for peak in PEAKS.values()]
        passes_of_images = setting.convolutions * setting.batch * T + setting.relabelled * size.num_images
        cells = (
            f"{setting.words}; {setting.ipc}; {setting.batch} × {T}",
            f"{setting.ipc * CLASSES * 4 * 3 * SIDE**2 / 2**30:.2f} GiB",
            f"{predict(student, size, Plan()) / 2**30:.1f} GiB",
            f"{plan.predicted_bytes / 2**30:.1f} GiB, {plan.stored_steps} of {T} steps stored",
            f"{passes_of_images * forward_flops(network):.1e}",
            ", ".join(f"{ITERATIONS * each / 3600:.2f}" for each in seconds),
        )
        print(f"| {' | '.join(cells)} |")
    print()


def _size(setting: Setting, steps: int) -> UnrollSize:
    images, seen = torch.Size((setting.batch, 3, SIDE, SIDE)), setting.ipc * CLASSES
    return UnrollSize(steps, images, min(seen, steps * setting.batch), on_gpu=True)


def _expect_stored(plan: Plan, steps: int) -> None:
    if plan.stored_steps < steps:
        raise ValueError("the times below are of plans that store all steps")


def _outer_step(
    network: torch.nn.Module, setting: Setting, size: UnrollSize, peak: Speed, share: float
) -> tuple[float, float]:
    """Seconds of a GPU: of the inner steps and their backward, and of the target network's labels."""
    kernels = INNER_STEP[setting.convolutions]
    inner = seconds_of(network, setting.convolutions, kernels, peak, share) * setting.batch * size.syn_steps
    return inner, setting.relabelled * seconds_of(network, 1, {FORWARD: 1}, peak, share) * size.num_images


def _shared(network: torch.nn.Module, student: Student, settings: dict, share: float) -> None:
    T, P, peak = settings["syn_steps"], student.num_parameters, PEAKS["default (TF32)"]
    print(
        f"| ms of an outer step, TF32 | one GPU, one segment | {NODE} GPUs, {NODE} segments: computing, sending | "
        f"{NODE} GPUs, one segment: computing, labels, sending | memory of a GPU |\n|---|---|---|---|---|"
    )
    ranks = Ranks()
    ranks.size = NODE
    for setting in SETTINGS[:-1]:
        size = _size(setting, T)
        plan, part = make_plan(student, size, BUDGET), make_plan(RankBatches(student, ranks), size, BUDGET)
        _expect_stored(part, T)
        inner, labels = _outer_step(network, setting, size, peak, share)
        second_order = setting.convolutions != FIRST_ORDER
        sent = sent_bytes(P, setting.batch, T, size.num_images, second_order)
        # a ring sends everything nearly twice
        sending = [2 * (NODE - 1) / NODE * n / LINK / share for n in sent]
        cells = (
            f"{setting.words}; {setting.ipc}; {setting.batch} × {T}",
            f"{1e3 * (inner + labels):.1f}",
            "refused" if setting.relabelled else f"{1e3 * inner:.1f}, {1e3 * sending[0]:.1f} ({sent[0] / 1e6:.0f} MB)",
            f"{1e3 * inner / NODE:.1f}, {1e3 * labels:.1f}, {1e3 * sending[1]:.1f} ({sent[1] / 1e6:.0f} MB)",
            f"{plan.predicted_bytes / 2**30:.1f}; one segment {part.predicted_bytes / 2**30:.1f} GiB",
        )
        print(f"| {' | '.join(cells)} |")


if __name__ == "__main__":
    main(float(sys.argv[1]) if len(sys.argv) > 1 else 0.4)
