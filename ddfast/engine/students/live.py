"""How much memory tensors take at the most while something runs, without looking at the machine."""

from typing import Any

from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter


class LiveBytes(TorchDispatchMode):
    """Context manager that counts the bytes of the tensors that are made in it; `peak` is the most alive at once.

    `alive` is how many are alive now. On the meta device nothing is computed or allocated, and the count is the same.
    What an op uses inside is not seen.
    """

    def __init__(self) -> None:
        super().__init__()
        self.peak = 0
        self._alive: dict[int, tuple[StorageWeakRef, int]] = {}

    @property
    def alive(self) -> int:
        """Bytes of the tensors that were made in it and still exist."""
        return sum(size for storage, size in self._alive.values() if not storage.expired())

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = {t.untyped_storage()._cdata for t in tree_iter((args, kwargs)) if isinstance(t, Tensor)}
        result = func(*args, **(kwargs or {}))
        self._alive = {key: entry for key, entry in self._alive.items() if not entry[0].expired()}
        for tensor in tree_iter(result):
            if isinstance(tensor, Tensor) and (key := tensor.untyped_storage()._cdata) not in given | set(self._alive):
                self._alive[key] = (StorageWeakRef(tensor.untyped_storage()), tensor.untyped_storage().nbytes())
        self.peak = max(self.peak, sum(size for _, size in self._alive.values()))
        return result
