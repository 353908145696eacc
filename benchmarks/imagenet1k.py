"""What ImageNet-1K takes, from the planner's model: bytes, FLOPs, hours and processes, as Markdown tables.

python -m benchmarks.imagenet1k [TFLOP/s that a GPU sustains] > table.md
"""

import sys

import torch

from ddfast import networks
from ddfast.engine.planner import Plan, UnrollSize, make_plan, predict
from ddfast.engine.students import Student, student_of
from ddfast.experts import FORMATS, predicted_bytes, words
from ddfast.run.presets import choose_preset
from ddfast.runtime import seeds

TRAIN, TEST, CLASSES = 1_281_167, 50_000, 1000
SIDE = 64
BUDGET = 70 * 2**30  # bytes for an outer step: half of a GPU of 140 GiB
RECOMPUTING, STORED = 11, 9  # convolutions of an inner step of the exact gradient, in forward passes
RANKS = (1, 8, 64)


def main(tflops: float) -> None:
    """Print the tables."""
    network = networks.create(
        "convnet", channels=3, num_classes=CLASSES, image_size=(SIDE, SIDE), generator=seeds.generator(0)
    )
    student = student_of(network)
    P = student.num_parameters
    settings = choose_preset("tesla", "", 1, "tesla/imagenet1k/ipc1").settings
    epochs = settings["max_start_epoch"] - 1 + settings["expert_epochs"]
    per_image = _forward_flops(network)
    print(
        f"ConvNet, {SIDE} px, {CLASSES} classes: P = {P:,}; a forward pass is {per_image / 1e9:.2f} GFLOP an image.\n"
    )
    images = TRAIN * 3 * SIDE**2
    print(f"Images: {images / 2**30:.1f} GiB as bytes (train), {TEST * 3 * SIDE**2 / 2**30:.1f} GiB (test).\n")
    _experts(P, epochs, settings["num_experts"], 3 * per_image * TRAIN, tflops)
    _distillation(student, settings, per_image, tflops)


def _experts(P: int, epochs: int, count: int, epoch_flops: float, tflops: float) -> None:
    hours = epoch_flops * epochs * count / tflops / 1e12 / 3600
    sizes = {how: words(predicted_bytes(P, epochs=epochs, num_experts=count, snapshots=how)) for how in FORMATS}
    print(f"| {count} experts of {epochs} epochs | |\n|---|---|")
    print(f"| FLOPs | {epoch_flops * epochs * count:.2g} ({epoch_flops:.2g} an epoch) |")
    print(f"| snapshots | {', '.join(f'{how}: {size}' for how, size in sizes.items())} |")
    print(
        "| hours at this rate, by GPUs | " + ", ".join(f"{n}: {_rounds(hours, count, n):.1f}" for n in RANKS) + " |\n"
    )


def _rounds(hours: float, pieces: int, ranks: int) -> float:
    """Whole pieces of work are shared out."""
    return hours / pieces * -(-pieces // ranks)


def _distillation(student: Student, settings: dict, per_image: float, tflops: float) -> None:
    steps, vector = settings["syn_steps"], 4 * student.num_parameters
    print(
        "| images per class; minibatch × steps | set | outer step, recomputing all | planned for 70 GiB | FLOPs an "
        "iteration | hours for 10,000 | sent an iteration: segments / minibatches |\n|---|---|---|---|---|---|---|"
    )
    for ipc, batch in ((1, 100), (1, 1000), (10, 1000), (50, 1000)):
        images = torch.Size((batch, 3, SIDE, SIDE))
        on_device = min(ipc * CLASSES, steps * batch)
        size = UnrollSize(steps, images, on_device, on_gpu=True)
        plan = make_plan(student, size, BUDGET)
        flops = (STORED if plan.stored_steps == steps else RECOMPUTING) * per_image * batch * steps
        hours = 10_000 * flops / tflops / 1e12 / 3600
        image = 4 * 3 * SIDE**2
        cells = (
            f"{ipc}; {batch} × {steps}",
            f"{ipc * CLASSES * image / 2**30:.2f} GiB",
            f"{predict(student, size, Plan()) / 2**30:.1f} GiB",
            f"{plan.predicted_bytes / 2**30:.1f} GiB, {plan.stored_steps} of {steps} steps stored",
            f"{flops:.1e}",
            f"{hours:.1f}",
            f"{on_device * image / 1e6:.0f} MB / {steps * (2 * vector + batch * image) / 1e6:.0f} MB",
        )
        print(f"| {' | '.join(cells)} |")


def _forward_flops(network: torch.nn.Module) -> float:
    """Floating-point operations of the convolutions and the linear layer for one image."""
    total = 0

    def count(module, inputs, output):
        nonlocal total
        total += 2 * module.weight[0].numel() * output[0].numel()

    hooks = [
        m.register_forward_hook(count) for m in network.modules() if isinstance(m, torch.nn.Conv2d | torch.nn.Linear)
    ]
    network(torch.zeros(1, 3, SIDE, SIDE))
    for hook in hooks:
        hook.remove()
    return total


if __name__ == "__main__":
    main(float(sys.argv[1]) if len(sys.argv) > 1 else 100.0)
