"""Independent random streams from one seed; the global random state is left as found."""

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager

import torch


def generator(seed: int, *purpose: str | int) -> torch.Generator:
    """A CPU generator for one purpose of one run: the same for the same arguments, unrelated for others."""
    digest = hashlib.sha256(repr((seed, *purpose)).encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "little") >> 1)


@contextmanager
def dropout_from(stream: torch.Generator, device: torch.device) -> Iterator[None]:
    """A context in which the global random state, all that dropout can draw from, is made from a generator's seed;
    after it, it is as it was. No number is drawn from the generator."""
    cuda = []
    if device.type == "cuda":
        cuda = [torch.cuda.current_device() if device.index is None else device.index]
    seed = generator(stream.initial_seed(), "dropout").initial_seed()
    with torch.random.fork_rng(devices=cuda):
        for state in (torch.random.default_generator, *(torch.cuda.default_generators[index] for index in cuda)):
            state.manual_seed(seed)
        yield
