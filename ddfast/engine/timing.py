"""How long a step takes: of training, of an unroll, of classifying."""

import time
from collections.abc import Callable
from typing import Any

import torch

from ddfast import networks
from ddfast.engine.adjoints import CheckpointedUnroll
from ddfast.engine.planner import Plan
from ddfast.engine.students import Training, student_of
from ddfast.engine.unroll import unroll
from ddfast.runtime import seeds

TIMED_IMAGES = 64  # on a CPU a larger minibatch takes as many times longer
TIMED_STEPS = 2  # inner steps of a timed outer step
Sizes = dict[str, Any]  # channels, num_classes and image_size of data: their network_arguments
LONG_ENOUGH = 0.5  # seconds: a step that takes longer is timed once


@seeds.same_algorithms()
def time_training(
    network: str,
    sizes: Sizes,
    batch: int,
    augment: Any,  # its side_by_side
    device: torch.device,
) -> tuple[float, float]:
    """Seconds of a training step on a minibatch, and of classifying an image; on random images."""
    generator = seeds.generator(0, "timed")
    net = _network(network, sizes, device)
    images, labels, times = _minibatch(sizes, batch, device)
    training = Training([net], images.shape[1:], lr=1e-6)

    def step() -> None:
        training.step(augment.side_by_side(images[None], [generator]), labels[None])

    with seeds.dropout_from(generator, device):
        seconds = timed(step, device) * times
    with torch.no_grad():
        net.eval()
        return seconds, timed(lambda: net(images), device) / len(images)


@seeds.same_algorithms()
def time_unroll(
    network: str,
    sizes: Sizes,
    batch: int,
    augment: Any,  # its draw_steps
    device: torch.device,
    *,
    stored: bool = True,  # whether the plan stores the inner steps, or computes them again
) -> float:
    """Seconds of an inner step of an outer step, with its backward, on random images."""
    generator = seeds.generator(0, "timed")
    net = _network(network, sizes, device)
    student, (images, labels, times) = student_of(net), _minibatch(sizes, batch, device)
    start = torch.cat([p.detach().reshape(-1) for p in net.parameters()])[None]
    adjoint = CheckpointedUnroll(plan=Plan(stored_steps=TIMED_STEPS if stored else 0))

    def step() -> None:
        learned, rate = images.clone().requires_grad_(), torch.tensor(1e-6, device=device, requires_grad=True)
        draws = augment.draw_steps(TIMED_STEPS, len(images), sizes["image_size"], generator)
        end = unroll(student, start, learned, labels, rate, syn_steps=TIMED_STEPS, augment=draws, adjoint=adjoint)
        torch.autograd.grad(end.square().sum(), (learned, rate))

    with seeds.dropout_from(generator, device):
        return timed(step, device) * times / TIMED_STEPS


def _network(name: str, sizes: Sizes, device: torch.device) -> torch.nn.Module:
    return networks.create(name, generator=seeds.generator(0, "timed"), **sizes).to(device)


def _minibatch(sizes: Sizes, batch: int, device: torch.device) -> tuple[torch.Tensor, torch.Tensor, float]:
    """Random images and their labels, and how many times larger the minibatch that they stand for is."""
    count = batch if device.type == "cuda" else min(batch, TIMED_IMAGES)
    images = torch.randn(count, sizes["channels"], *sizes["image_size"], generator=seeds.generator(0, "timed"))
    return images.to(device), (torch.arange(count) % sizes["num_classes"]).to(device), batch / count


def timed(step: Callable[[], object], device: torch.device) -> float:
    """Seconds of a step: the second one, where the first is short, for it prepares what the others use."""
    seconds = 0.0
    for _ in range(2):
        began = time.perf_counter()
        step()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        seconds = time.perf_counter() - began
        if seconds > LONG_ENOUGH:
            break
    return seconds
