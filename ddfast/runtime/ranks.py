"""Several processes that make the same call together: who takes which part, and how what they have is joined."""

import datetime
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from importlib import import_module
from typing import Any, TypeVar

import torch
from torch import Tensor, distributed
from torch.distributed.rendezvous import rendezvous

T = TypeVar("T")

LOST_AFTER = datetime.timedelta(hours=2)  # one process may train experts or evaluate for long while others wait


class RankError(ConnectionError):
    """Another process of this call failed, or was lost."""


class Ranks:
    """The processes of one call, by their ranks in a torch.distributed group; None for this process alone.

    Every method but `mine`, `part` and `leave` is a collective call: all ranks make it, in the same order. RankError
    where another rank failed meanwhile or is gone.
    """

    def __init__(self, group: "distributed.ProcessGroup | None" = None) -> None:
        self._group = group
        self.rank = 0 if group is None else distributed.get_rank(group)
        self.size = 1 if group is None else distributed.get_world_size(group)

    @property
    def is_first(self) -> bool:
        """Whether this process is the one that writes what is written once."""
        return self.rank == 0

    def mine(self, items: Sequence[T]) -> Sequence[T]:
        """This rank's part of some pieces of work: every size-th."""
        return items[self.rank :: self.size]

    def part(self, count: int) -> slice:
        """This rank's part of `count` things in a row: as near to count / size as can be."""
        return slice(self.rank * count // self.size, (self.rank + 1) * count // self.size)

    def sum(self, tensors: Sequence[Tensor]) -> list[Tensor]:
        """The sums of tensors of the same shapes over all ranks, the same bits everywhere."""
        if self.size == 1:
            return list(tensors)
        flat = torch.cat([tensor.detach().reshape(-1) for tensor in tensors])
        with _lost():
            distributed.all_reduce(flat, group=self._group)
        pieces = flat.split([tensor.numel() for tensor in tensors])
        return [piece.view(tensor.shape) for piece, tensor in zip(pieces, tensors, strict=True)]

    def mean(self, tensors: Sequence[Tensor]) -> list[Tensor]:
        """Their means."""
        return [total / self.size for total in self.sum(tensors)] if self.size > 1 else list(tensors)

    def gather(self, value: T) -> list[T]:
        """The values of all ranks, in their order."""
        if self.size == 1:
            return [value]
        values: list[Any] = self.size * [None]
        with _lost():
            distributed.all_gather_object(values, value, group=self._group)
        return values

    def together(self, function: Callable[[], T]) -> T:
        """What the function returns here, once it has ended well on all ranks.

        Where it raises on some, the first of them raises that, and the others RankError.
        """
        if self.size == 1:
            return function()
        result, problem = None, None
        try:
            result = function()
        except Exception as error:
            problem = error
        sentences = self.gather(None if problem is None else f"{type(problem).__name__}: {problem}")
        failed = next((rank for rank, sentence in enumerate(sentences) if sentence is not None), self.rank)
        if failed != self.rank:
            raise RankError(f"process {failed} of this run ended ({sentences[failed]})")
        if problem is not None:
            raise problem
        return result

    def in_turn(self, function: Callable[[], T]) -> T:
        """As `together`, the first rank before the others: they find what it left in a cache."""
        result = self.together(lambda: function() if self.is_first else None)
        others = self.together(lambda: None if self.is_first else function())
        return result if self.is_first else others

    def first(self, function: Callable[[], T]) -> T:
        """What the function returns on the first rank, the only one that calls it; copies on the others."""
        result = self.together(function if self.is_first else lambda: None)
        if self.size == 1:
            return result
        box = [result]
        with _lost():
            distributed.broadcast_object_list(box, distributed.get_global_rank(self._group, 0), group=self._group)
        return box[0]

    def leave(self) -> None:
        """End the group and its threads: one that needs the interpreter while that ends would abort the process."""
        if self._group is not None:
            distributed.destroy_process_group(self._group)
            self._group = None


ALONE = Ranks()


def expect_ranks(ranks: object) -> None:
    """TypeError for anything else than the processes of a call."""
    if not isinstance(ranks, Ranks):
        raise TypeError(f"ranks: expected a ddfast.ranks.Ranks, got {type(ranks).__name__}")


@contextmanager
def _lost() -> Iterator[None]:
    try:
        yield
    except RuntimeError as error:
        sentence = next(iter(str(error).splitlines()), type(error).__name__)
        raise RankError(f"another process of this run was lost, or does something else ({sentence})") from None


@contextmanager
def launched() -> Iterator[Ranks]:
    """The processes that torchrun started, this one on a GPU of its own; without torchrun, this one alone.

    Gloo on CPUs, and where several share a GPU, NCCL on GPUs, met through the address that torchrun put into the
    environment.
    """
    if not distributed.is_torchelastic_launched():
        yield ALONE
        return
    backend = "gloo"
    if torch.cuda.is_available():
        count = torch.cuda.device_count()
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]) % count)
        if int(os.environ["LOCAL_WORLD_SIZE"]) <= count:
            backend = "cpu:gloo,cuda:nccl"
    import_module("torch.distributed.nn")  # imported later (optimisers do), it would hold the group to the end

    with _lost():
        store, rank, size = next(rendezvous("env://", timeout=LOST_AFTER))
        # The store outlives a restart: without a part of its own an attempt may read where those before it listened.
        store = distributed.PrefixStore(f"attempt {os.environ['TORCHELASTIC_RESTART_COUNT']}", store)
        distributed.init_process_group(backend, store=store, rank=rank, world_size=size, timeout=LOST_AFTER)
    ranks, ended = Ranks(distributed.group.WORLD), False
    try:
        yield ranks
        ended = True
    finally:
        if ended or backend == "gloo":  # after an error NCCL could wait for those that are gone
            ranks.leave()
