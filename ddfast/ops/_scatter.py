"""Adding rows at indices that may repeat, in the same order in every run."""

from torch import Tensor


def add_rows(
    total: Tensor,  # [I, …], changed in place
    indices: Tensor | None,  # int64 [B]; None: all rows, as they come
    values: Tensor,  # [B, …]
) -> Tensor:  # total
    """total[indices] += values; a row that the indices repeat gets every term."""
    if indices is None:
        return total.add_(values)
    if total.device.type == "cpu":
        return total.index_add_(0, indices, values)  # index_put_ adds with atomics on a CPU, index_add_ on CUDA
    return total.index_put_((indices,), values, accumulate=True)
