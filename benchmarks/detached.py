"""How far TESLA's approximate meta-gradient is from the exact one: the table of docs/methods.md.

python -m benchmarks.detached

The usual ConvNet, an expert of the subset of CIFAR-10 that benchmarks.methods uses, random real images, one per class,
DSA, α = 0.01; medians over the draws.
"""

from statistics import median

import torch
from torch.nn.functional import cosine_similarity

import ddfast
from benchmarks.measure import described
from benchmarks.methods import subset
from ddfast import networks
from ddfast.data import DSA, Dataset
from ddfast.runtime import seeds

DRAWS, STEPS = 5, (1, 10, 20, 50)
LR = 0.01


def compared(data: Dataset, store: ddfast.TrajectoryStore, steps: int, draw: int) -> tuple[float, float, float]:
    """Cosine of the image gradients, ratio of their norms, and of the learning rate's gradients."""
    generator = seeds.generator(draw, "detached", steps)
    images, labels = data.random_real(1, generator)
    network = networks.create(store.settings["network"], generator=generator, **data.network_arguments)
    epoch = int(torch.randint(store.epochs - 1, (), generator=generator))
    start, target = store.segment(0, epoch, epoch + 2)
    augment = DSA().draw_steps(steps, len(images), data.image_size, generator)
    gradients = []
    for adjoint in (ddfast.adjoints.CheckpointedUnroll(), ddfast.adjoints.DetachedUnroll()):
        x, lr = images.clone().requires_grad_(), torch.tensor(LR, requires_grad=True)
        loss = ddfast.match_trajectory(
            network, start, target, x, labels, lr, syn_steps=steps, augment=augment, adjoint=adjoint
        )
        gradients.append(torch.autograd.grad(loss, (x, lr)))
    (exact, exact_lr), (detached, detached_lr) = gradients
    cosine = cosine_similarity(exact.flatten(), detached.flatten(), dim=0).item()
    return cosine, (detached.norm() / exact.norm()).item(), (detached_lr / exact_lr).item()


def main() -> None:
    """Print the table."""
    data = subset()
    store = ddfast.train_experts(data, num_experts=1, train_epochs=3, batch_train=64, train_lr=0.01)
    print(described("python -m benchmarks.detached"), "\n")
    print("| steps | cosine of the image gradients | ratio of their norms | ratio of the gradients in α |")
    print("|---|---|---|---|")
    for steps in STEPS:
        columns = zip(*(compared(data, store, steps, draw) for draw in range(DRAWS)), strict=True)
        cells = [f"{median(column):.3f} ({min(column):.3f} to {max(column):.3f})" for column in map(list, columns)]
        print(f"| {steps} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
