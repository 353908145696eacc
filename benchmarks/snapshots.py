"""What rounded snapshots of experts cost and change: the table of docs/experts.md.

python -m benchmarks.snapshots

An expert of MTT's settings on all of CIFAR-10, a ConvNet of width 32, 14 epochs. The image gradient is that of 10
random real images, 20 inner steps, DSA, α = 0.01, against a segment of two epochs; the same draws for every format.
An unroll enlarges what its start is off by, so a start that is off by float32's own rounding stands beside the formats.
"""

import zlib
from collections.abc import Callable
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory

import torch
from torch import Tensor
from torch.nn.functional import cosine_similarity

import ddfast
from benchmarks.measure import described
from ddfast import networks
from ddfast.data import DSA, Dataset
from ddfast.experts import FORMATS
from ddfast.experts.snapshots import rounding_error
from ddfast.runtime import seeds

EPOCHS, DRAWS, STEPS, LR = 14, 12, 20, 0.01


def read_back(snapshots: Tensor, how: str) -> tuple[Tensor, int]:  # [E + 1, P] -> [E + 1, P], bytes
    """What a store of this format gives, and its size; of bfloat16, which is no such format, what it would be."""
    if how == "bfloat16":
        return snapshots.bfloat16().float(), 2 * snapshots.numel()
    with TemporaryDirectory() as folder:
        store = ddfast.TrajectoryStore.create(folder, {}, len(snapshots) - 1, snapshots=how)
        store.add(0, snapshots)
        rows = torch.stack([store.snapshot(0, epoch) for epoch in store.kept_epochs])
        return rows, sum(file.stat().st_size for file in Path(folder).glob("*.safetensors"))


def compressed(snapshots: Tensor) -> int:  # [E + 1, P]
    """Bytes without loss, each snapshot by itself: its bits xor the first one's, like bytes together, by zlib."""
    bits = snapshots.view(torch.int32)
    rows = [bits[0], *(row ^ bits[0] for row in bits[1:])]
    return sum(len(zlib.compress(row.view(torch.uint8).view(-1, 4).T.contiguous().numpy(), 6)) for row in rows)


def gradients(data: Dataset, network: str, draw: int) -> Callable[[Tensor, Tensor], Tensor]:
    """The image gradient of a draw of images, segment and augmentation, as a function of the snapshots [E + 1, P] that
    starts and that targets are taken from."""
    generator = seeds.generator(draw, "snapshots")
    images, labels = data.random_real(1, generator)
    net = networks.create(network, generator=generator, **data.network_arguments)
    epoch = int(torch.randint(EPOCHS - 1, (), generator=generator))
    draws = DSA().draw_steps(STEPS, 10, data.image_size, generator)

    def gradient(starts: Tensor, targets: Tensor) -> Tensor:
        x, ends = images.clone().requires_grad_(), (starts[epoch], targets[epoch + 2])
        loss = ddfast.match_trajectory(net, *ends, x, labels, torch.tensor(LR), syn_steps=STEPS, augment=draws)
        return torch.autograd.grad(loss, x)[0].flatten()

    return gradient


def main() -> None:
    """Print the table."""
    data, network = ddfast.load_dataset("cifar10"), "convnet:width=32"
    store = ddfast.train_experts(data, network=network, num_experts=1, train_epochs=EPOCHS)
    snapshots = torch.stack([store.snapshot(0, epoch) for epoch in store.kept_epochs])
    print(described("python -m benchmarks.snapshots"), "\n")
    print(f"without loss: {compressed(snapshots) / snapshots.numel():.2f} bytes a parameter\n")
    print(
        "| snapshots | bytes a parameter | off by | an epoch's movement | cosine, target rounded | start rounded too |"
    )
    print("|---|---|---|---|---|---|")
    drawn = [gradients(data, network, draw) for draw in range(DRAWS)]
    exact = [gradient(snapshots, snapshots) for gradient in drawn]

    def cosines(starts: Tensor, targets: Tensor) -> str:
        pairs = ((gradient(starts, targets), true) for gradient, true in zip(drawn, exact, strict=True))
        values = [cosine_similarity(got.double(), true.double(), dim=0).item() for got, true in pairs]
        return f"{median(values):.5f} ({min(values):.3f})"

    for how in (*list(FORMATS)[1:], "bfloat16"):
        rows, size = read_back(snapshots, how)
        error = rounding_error(snapshots, rows.__getitem__)
        cells = [f"{error[f'{of}_mean']:.1e} ({error[f'{of}_max']:.1e})" for of in ("snapshot", "segment")]
        cells += [cosines(snapshots, rows), cosines(rows, rows)]
        print(f"| `{how}` | {size / snapshots.numel():.2f} | {' | '.join(cells)} |", flush=True)
    signs = torch.randint(2, snapshots.shape, generator=seeds.generator(0)) * 2 - 1
    nearby = snapshots * (1 + signs * torch.finfo(torch.float32).eps)
    print(f"| a start off by float32's rounding | | 1.2e-07 | | | {cosines(nearby, snapshots)} |")


if __name__ == "__main__":
    main()
