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


def passes(stored_steps: int, steps: int) -> float:
    """Forward passes' worth of convolutions of an inner step, on average."""
    return (stored_steps * STORED + (steps - stored_steps) * RECOMPUTING) / steps


def sent_bytes(P: int, batch: int, steps: int, on_device: int) -> tuple[int, int]:
    """What a process adds to the sums of an outer step, where segments and where minibatches are shared.

    Of segments the loss and the gradients of images and learning rate; of minibatches, in every inner step, the loss
    and g, then ⟨g, σ⟩, Hσ and the images' part. The first step's Hσ is not wanted.
    """
    image = 3 * SIDE**2
    return 4 * (on_device * image + 2), 4 * (steps * (2 * P + batch * image + 2) - P)


def forward_flops(network: torch.nn.Module) -> int:
    """Floating-point operations of the convolutions and the linear layer for one image."""
    return sum(flops for flops, _, _ in _layers(network))


def _layers(network: torch.nn.Module) -> list[tuple[int, int, int]]:
    """Of each convolution, and the linear layer: FLOPs for one image, numbers that it reads and that it writes."""
    found = []

    def count(module, inputs, output):
        found.append((2 * module.weight[0].numel() * output[0].numel(), inputs[0].numel(), output[0].numel()))

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
    for flops, read, written in _layers(network):
        moved = peak.element * (read + written) / peak.bandwidth
        seconds += convolutions * max(flops / peak.flops, moved)
        if written > CLASSES:  # a convolution, whose map goes through norm, ReLU and pool
            maps = sum(
                times * sum(full * written + pooled * written / 4 for full, pooled in POOL[name])
                for name, times in pools.items()
            )
            seconds += peak.element * maps / peak.bandwidth
    return seconds / share


FORWARD, BACKWARD, JVP, BACKWARD_JVP = POOL
GRADIENT = {FORWARD: 1, BACKWARD: 1}
INNER_STEP = {  # kernels of norm, ReLU and pool of an inner step and its part of the backward
    STORED: GRADIENT | {JVP: 1, BACKWARD_JVP: 1},
    RECOMPUTING: {FORWARD: 2, BACKWARD: 2, JVP: 1, BACKWARD_JVP: 1},
}


def _per_image(network: torch.nn.Module, share: float) -> None:
    print(f"| µs of an H100 for one image | at its peaks | at {share:.0%} of them, **not yet measured** |\n|---|---|---|")
    work = {"training, a step of an expert": (TRAINING, GRADIENT)}
    work |= {f"distilling, an inner step, {name}": (n, INNER_STEP[n]) for name, n in
             (("stored", STORED), ("recomputed", RECOMPUTING))}  # fmt: skip
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


def _distillation(network: torch.nn.Module, student: Student, settings: dict, share: float) -> None:
    T = settings["syn_steps"]
    print(
        f"| images per class; minibatch × steps | set | outer step, recomputing all | planned for {BUDGET / 2**30:.1f} "
        f"GiB | FLOPs an iteration | hours for {ITERATIONS:,} on a GPU: {', '.join(PEAKS)} |\n|---|---|---|---|---|---|"
    )
    for ipc, batch in ((1, 100), (1, 1000), (10, 1000), (50, 1000)):
        size = _size(ipc, batch, T)
        plan = make_plan(student, size, BUDGET)
        hours = [_outer_step(network, plan, batch, T, peak, share) * ITERATIONS / 3600 for peak in PEAKS.values()]
        cells = (
            f"{ipc}; {batch} × {T}",
            f"{ipc * CLASSES * 4 * 3 * SIDE**2 / 2**30:.2f} GiB",
            f"{predict(student, size, Plan()) / 2**30:.1f} GiB",
            f"{plan.predicted_bytes / 2**30:.1f} GiB, {plan.stored_steps} of {T} steps stored",
            f"{passes(plan.stored_steps, T) * forward_flops(network) * batch * T:.1e}",
            ", ".join(f"{hour:.2f}" for hour in hours),
        )
        print(f"| {' | '.join(cells)} |")
    print()


def _size(ipc: int, batch: int, steps: int) -> UnrollSize:
    return UnrollSize(steps, torch.Size((batch, 3, SIDE, SIDE)), min(ipc * CLASSES, steps * batch), on_gpu=True)


def _outer_step(network: torch.nn.Module, plan: Plan, batch: float, steps: int, peak: Speed, share: float) -> float:
    """Seconds of a GPU."""
    stored = plan.stored_steps
    parts = ((STORED, stored), (RECOMPUTING, steps - stored))
    return batch * sum(times * seconds_of(network, n, INNER_STEP[n], peak, share) for n, times in parts)


def _shared(network: torch.nn.Module, student: Student, settings: dict, share: float) -> None:
    T, P, peak = settings["syn_steps"], student.num_parameters, PEAKS["default (TF32)"]
    print(
        f"| ms of an outer step, TF32; minibatch × steps | one GPU, one segment | {NODE} GPUs, {NODE} segments: computing, "
        f"sending | {NODE} GPUs, one segment: computing, sending | memory of each |\n|---|---|---|---|---|"
    )
    ranks = Ranks()
    ranks.size = NODE
    for ipc, batch in ((1, 100), (1, 1000), (10, 1000)):
        size = _size(ipc, batch, T)
        plan, part = make_plan(student, size, BUDGET), make_plan(RankBatches(student, ranks), size, BUDGET)
        alone = _outer_step(network, plan, batch, T, peak, share)
        computing = _outer_step(network, part, batch / NODE, T, peak, share)
        # a ring sends everything nearly twice
        sending = [2 * (NODE - 1) / NODE * n / LINK / share for n in sent_bytes(P, batch, T, size.num_images)]
        cells = (
            f"{ipc}; {batch} × {T}",
            f"{1e3 * alone:.1f}",
            f"{1e3 * alone:.1f}, {1e3 * sending[0]:.2f}",
            f"{1e3 * computing:.1f}, {1e3 * sending[1]:.1f}",
            f"{plan.predicted_bytes / 2**30:.1f}, {part.predicted_bytes / 2**30:.1f} GiB",
        )
        print(f"| {' | '.join(cells)} |")


if __name__ == "__main__":
    main(float(sys.argv[1]) if len(sys.argv) > 1 else 0.4)
