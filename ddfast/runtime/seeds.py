"""What makes two runs alike: random streams from one seed, and the same algorithms; global states are left as found."""

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


@contextmanager
def same_algorithms(wanted: bool = True) -> Iterator[None]:
    """A context in which cuDNN uses deterministic algorithms only, chosen without timing them; after it, torch's
    settings are as they were. Where it is not wanted nothing changes."""
    cudnn = torch.backends.cudnn
    found = cudnn.deterministic, cudnn.benchmark
    if wanted:
        cudnn.deterministic, cudnn.benchmark = True, False
    try:
        yield
    finally:
        cudnn.deterministic, cudnn.benchmark = found
