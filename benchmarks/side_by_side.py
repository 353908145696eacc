"""Whether networks that are not fused train faster side by side: torch.func over stacked parameters, or one by one.

python -m benchmarks.side_by_side

Steps of SGD of five networks on a minibatch each; gradients are compared. What is said of it: docs/speed.md.
"""

import time
from statistics import median

import torch
from torch import Tensor
from torch.func import functional_call, grad, stack_module_state, vmap
from torch.nn.functional import cross_entropy

from benchmarks.measure import DEVICE, described, relative_error
from ddfast import networks
from ddfast.runtime.seeds import generator

NAMES = ("mlp", "lenet", "alexnet", "vgg11", "resnet18")
COUNT, ROUNDS = 5, 5


def one_by_one(nets: list[torch.nn.Module], images: Tensor, labels: Tensor) -> Tensor:
    """Gradients of all networks."""
    rows = []
    for net, x, y in zip(nets, images, labels, strict=True):
        gradients = torch.autograd.grad(cross_entropy(net(x), y), list(net.parameters()))
        rows.append(torch.cat([g.flatten() for g in gradients]))
    return torch.stack(rows)


def together(nets: list[torch.nn.Module], images: Tensor, labels: Tensor) -> Tensor:
    """The same, of stacked parameters."""
    parameters, buffers = stack_module_state(nets)

    def loss(p: dict, b: dict, x: Tensor, y: Tensor) -> Tensor:
        return cross_entropy(functional_call(nets[0], (p, b), (x,)), y)

    found = vmap(grad(loss))(parameters, buffers, images, labels)
    return torch.cat([found[name].flatten(1) for name, _ in nets[0].named_parameters()], 1)


def main() -> None:
    """Print a table."""
    print(described("python -m benchmarks.side_by_side"), "\n")
    print("| network | images | one by one, ms | side by side, ms | ratio | error |\n|---|---|---|---|---|---|")
    sizes = {"channels": 3, "num_classes": 10, "image_size": (32, 32)}
    for name in NAMES:
        nets = [networks.create(name, generator=generator(n), **sizes).to(DEVICE) for n in range(COUNT)]
        for batch in (10, 100):
            images = torch.randn(COUNT, batch, 3, 32, 32, generator=generator(0)).to(DEVICE)
            labels = (torch.arange(batch) % 10).expand(COUNT, batch).to(DEVICE)
            seconds: dict[str, list[float]] = {"one": [], "all": []}
            found: dict[str, Tensor] = {}
            for _ in range(ROUNDS):  # in turn: other work on the machine meets both
                for key, step in (("one", one_by_one), ("all", together)):
                    began = time.perf_counter()
                    found[key] = step(nets, images, labels)
                    seconds[key].append(time.perf_counter() - began)
            one, every = (1000 * median(seconds[key]) for key in ("one", "all"))
            error = relative_error([found["all"]], [found["one"]])
            print(f"| {name} | {batch} | {one:.1f} | {every:.1f} | {one / every:.2f} | {error:.1e} |", flush=True)


if __name__ == "__main__":
    main()
