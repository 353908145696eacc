"""An outer step of ImageNet-1K's network by 1, 2 and 4 processes on CPUs, beside what benchmarks.imagenet1k says.

python -m benchmarks.ranks [--images 16 --steps 5] > benchmarks/results/cpu-1-thread/ranks.md
python -m benchmarks.ranks --flops >> benchmarks/results/cpu-1-thread/ranks.md

Seconds are of the processor, not of the clock: processes share this machine's cores with each other and with others.
"""

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import torch
from torch import distributed
from torch.nn.utils import parameters_to_vector
from torch.utils.flop_counter import FlopCounterMode

import ddfast
from benchmarks.imagenet1k import (
    CLASSES,
    FIRST_ORDER,
    RECOMPUTING,
    SIDE,
    STORED,
    convnet,
    forward_flops,
    sent_bytes,
)
from benchmarks.measure import described, status
from ddfast.engine.adjoints import CheckpointedUnroll, DetachedUnroll
from ddfast.engine.planner import Plan, UnrollSize, predict
from ddfast.engine.students import RankBatches, student_of
from ddfast.ops import reference_mode
from ddfast.runtime.ranks import Ranks, launched

PROCESSES = (1, 2, 4)
WAYS = ("segments", "minibatches")
MINUTES, ROUNDS = 10, 3  # for one row
PAGES = {"MALLOC_MMAP_THRESHOLD_": "65536"}  # the peak counts tensors, not the holes of glibc's heap


def main() -> None:
    """Print the table; a process of a row prints its part."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, default=16)
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--flops", action="store_true", help="count those of the ops' references instead")
    parser.add_argument("--row", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.flops:
        _count_flops()
        return
    if options.row is not None:
        with launched() as ranks:
            _report(ranks, json.loads(options.row))
        return
    B, T = options.images, options.steps
    print(f"{described(f'python -m benchmarks.ranks --images {B} --steps {T}')}\n")
    print(f"ConvNet, {SIDE} px, {CLASSES} classes; {B} images × {T} steps, float32.\n")
    print("| processes share | plan | peak of a process, MiB: predicted, measured | ", end="")
    print("sent, MB: predicted, measured | ", end="")
    print("FLOPs of a process | CPU seconds of a process | GFLOP/s | image gradient against one process |")
    print("|---" * 8 + "|")
    for stored in (0, T):
        for way in WAYS:
            for count in PROCESSES if way == "segments" else PROCESSES[1:]:
                print(_row(way, count, B, T, stored), flush=True)


def _count_flops() -> None:
    """By torch's counter, of the plain PyTorch that specifies the ops."""
    network, images, steps = convnet(), 2, 10
    start, target = _segments(network, 1)
    pixels = torch.randn(images, 3, SIDE, SIDE).requires_grad_()
    print(f"\n{described('python -m benchmarks.ranks --flops')}\n")
    print("| gradient, plan | passes of an image: counted | predicted |\n|---|---|---|")
    for words, kind, stored, predicted in (
        ("exact, recomputing", CheckpointedUnroll, 0, RECOMPUTING),
        ("exact, all stored", CheckpointedUnroll, steps, STORED),
        ("first order, all stored", DetachedUnroll, steps, FIRST_ORDER),
    ):
        adjoint = kind(plan=Plan(micro_batch=images, stored_steps=stored))  # in chunks: step by step, not as one op
        student, lr = student_of(network), torch.tensor(0.01, requires_grad=True)
        with FlopCounterMode(display=False) as counter, reference_mode():
            loss = ddfast.match_trajectory(
                student, start, target, pixels, torch.arange(images), lr, syn_steps=steps, adjoint=adjoint
            )
            torch.autograd.grad(loss.sum(), [pixels, lr])
        counted = counter.get_total_flops() / forward_flops(network) / images / steps
        print(f"| {words} | {counted:.2f} | {predicted} |", flush=True)


def _row(way: str, count: int, images: int, steps: int, stored: int) -> str:
    case = {"way": way, "images": images, "steps": steps, "stored": stored}
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(count)]
    output = subprocess.run(
        [*launcher, "-m", "benchmarks.ranks", "--row", json.dumps(case)],
        env=os.environ | PAGES | {"OMP_NUM_THREADS": "1"},
        check=True,
        capture_output=True,
        text=True,
        timeout=60 * MINUTES,
    ).stdout
    got = json.loads(output.splitlines()[-1])
    cells = (
        f"{count}: {way}" if count > 1 else "1",
        "all stored" if stored else "recomputing",
        f"{got['predicted'] / 2**20:.1f}, {got['peak'] / 2**20:.1f}",
        f"{got['to_send'] / 1e6:.2f}, {got['sent'] / 1e6:.2f}" if count > 1 else "–",
        f"{got['flops']:.2e}",
        f"{got['seconds']:.2f}",
        f"{got['flops'] / got['seconds'] / 1e9:.0f}",
        f"{got['error']:.1e}" if count > 1 else "–",
    )
    return f"| {' | '.join(cells)} |"


def _report(ranks: Ranks, case: dict) -> None:
    """Outer steps: the fastest of some, and the last one's memory; the largest numbers of all processes."""
    images, steps = case["images"], case["steps"]
    shares = ranks.size > 1 and case["way"] == "minibatches"
    network = convnet()
    alone = student_of(network)
    student = RankBatches(alone, ranks) if shares else alone
    adjoint = CheckpointedUnroll(plan=Plan(stored_steps=case["stored"]))
    segments = _segments(network, 1 if shares else ranks.size)
    start, target = segments if shares else (each[ranks.part(ranks.size)] for each in segments)
    pixels = torch.randn(images, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(1)).requires_grad_()
    labels, lr = torch.arange(images) % CLASSES, torch.tensor(0.01, requires_grad=True)

    def outer_step(student, start, target, mean) -> list[torch.Tensor]:
        loss = ddfast.match_trajectory(student, start, target, pixels, labels, lr, syn_steps=steps, adjoint=adjoint)
        return mean([loss.detach().mean(), *torch.autograd.grad(loss.mean(), [pixels, lr])])

    mean = list if shares else ranks.mean  # sums over minibatches are made on the way
    rounds = [_seconds(lambda: outer_step(student, start, target, mean)) for _ in range(ROUNDS)]
    ddfast.ops.release_memory()
    sent, reduce = 0, distributed.all_reduce

    def counting(tensor, **options):
        nonlocal sent
        sent += tensor.numel() * tensor.element_size()
        return reduce(tensor, **options)

    distributed.all_reduce = counting
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
    idle = status("VmRSS")
    result = outer_step(student, start, target, mean)
    peak = status("VmHWM") - idle
    distributed.all_reduce = reduce
    size = UnrollSize(steps, pixels.shape, images)
    got = ranks.gather({"peak": peak, "seconds": min(rounds), "sent": sent})
    if not ranks.is_first:
        return
    per_step = STORED if case["stored"] else RECOMPUTING
    expected = result if ranks.size == 1 else outer_step(alone, *segments, list)
    print(
        json.dumps(
            {name: max(one[name] for one in got) for name in ("peak", "seconds", "sent")}
            | {
                "predicted": predict(student, size, adjoint.plan),
                "to_send": sent_bytes(alone.num_parameters, images, steps, images)[WAYS.index(case["way"])],
                "flops": steps * per_step * forward_flops(network) * images / (ranks.size if shares else 1),
                "error": ((result[1] - expected[1]).norm() / expected[1].norm()).item(),
            }
        )
    )


def _seconds(call) -> float:
    began = time.process_time()
    call()
    return time.process_time() - began


def _segments(network: torch.nn.Module, count: int) -> tuple[torch.Tensor, torch.Tensor]:  # [S, P], [S, P]
    """Starts and targets."""
    generator, theta = torch.Generator().manual_seed(0), parameters_to_vector(network.parameters()).detach()
    near, far = torch.randn(2, count, len(theta), generator=generator)
    return theta + 0.01 * near, theta + 0.01 * near + 0.003 * far


if __name__ == "__main__":
    main()
