"""Calls ops with damaged arguments, in a process of their own: `python -m tests.ops.fuzz <seed> <cases> <log> [op …]`.

The last line of the log is the call that ended the process. What an op may do: return, or raise one sentence that names
an argument.
"""

import random
import re
import resource
import signal
import sys

import torch
from torch import Tensor

from tests.conftest import normal, uniform
from tests.ops import test_dsa_augment as dsa
from tests.ops.test_conv3x3 import arguments as conv3x3_arguments
from tests.ops.test_convnet import Case, op_arguments
from tests.ops.test_norm_relu_pool import face_arguments

ROOM = 4 * 2**30  # bytes that a call may ask for; a size that is absurd fails at once
MOST_SECONDS = 20
INTEGERS = (-1, 0, 1, 2, 3, 5, 7, 31, 62, 63, 64, 2**31 - 1, 2**31, 2**32, 2**62, 2**63 - 1, -(2**63))
FLOATS = (float("nan"), float("inf"), -float("inf"), -1.0, 0.0, 1e-320, 1e308)
STRINGS = ("", "float16", "bfloat16", "float32", "DEFAULT", "x" * 10_000, "\0", "größe {} %s")
DTYPES = (torch.float32, torch.float64, torch.float16, torch.bfloat16, torch.int64, torch.int32, torch.bool)
DTYPES = (*DTYPES, torch.uint8, torch.complex64)
# What PyTorch says of arguments before an op is reached, and of memory.
OTHERS = (
    r"ddfast::\w+\(\) |Tried to convert a List|Overflow when unpacking long|DefaultCPUAllocator|Could not run 'ddfast::"
    r"|.*(can't allocate memory|out of memory|not enough memory|Storage size calculation overflowed)"
    r"|.*(derivatives are not available|is not differentiable)"
)


PLAIN = Case()
ROUNDED = Case(students=2, border=1, size=(11, 9), precision="bfloat16")


def arguments_of_all_ops(case: Case) -> dict[str, tuple]:
    """Arguments that every op takes, by its name."""
    row = [normal(2, 3, seed=seed) for seed in (1, 2, 3)]
    of_convnet = op_arguments(case)
    parameters, images, labels, direction, _, _, *sizes = of_convnet["convnet_grad_jvp"]
    dtype = parameters.dtype
    _, _, kept = torch.ops.ddfast.convnet_grad(parameters, images, labels, True, *sizes)
    soft = uniform(len(images), sizes[2], dtype=dtype)
    lr, batches = torch.tensor(0.05, dtype=dtype), torch.tensor([[0, 1], [3, 2], [2, 2]])
    rows = dsa.rows()[:6].reshape(3, 2, 16).to(dtype)
    steps = (3, 0.0, 0.1)
    given = (parameters, images, soft, lr, batches, rows, *steps, 2, *sizes)
    last, states, stored = torch.ops.ddfast.unroll(*given)
    moments, adam = (0.1 * parameters, parameters.square()), (3, 1, 2, 0.9, 0.999, 1e-8, 0.1, 0.2)
    by_adam = (parameters, *moments, images, soft, lr, batches, rows, *adam, 2, *sizes)
    *ends, gradients, begins, stored_by_adam = torch.ops.ddfast.unroll_adam(*by_adam)
    return {
        "gradient_distance": (*row[:2], [0, 1, 2], 0),
        "gradient_distance_backward": (
            normal(2),
            *row[:2],
            normal(2, 1, 3).double(),
            [0, 1, 2],
            1,
            [True, True],
        ),
        "param_distance": (*row, normal(3)),
        "param_distance_backward": (normal(2), *row, None, normal(2), normal(2), [True, False, True]),
        **face_arguments((2, 3, 5, 4)),
        **{name: (dsa.images()[:3], dsa.rows()[:3]) for name in dsa.FACES},
        **conv3x3_arguments((2, 2, 16, 18, 5, 4), dtype=torch.float32),
        **of_convnet,
        "convnet_grad_jvp": (parameters, images, labels, direction, kept, [True, True, True], *sizes),
        "unroll": given,
        "unroll_adam": by_adam,
        "unroll_adam_backward": (*ends, gradients, begins, *by_adam[3:8], stored_by_adam, [True] * 6, *adam, *sizes),
        "unroll_backward": (last, states, *given[1:6], stored, [True] * 4, *steps, *sizes),
    }


def damaged_tensor(tensor: Tensor, draw: random.Random) -> Tensor | None:
    """Another tensor in the place of one."""
    kind = draw.choice(
        "size size rank empty stride expand dtype grad meta value value none freed sparse scalar huge".split()
    )
    if kind == "none":
        return None
    if kind == "size" and tensor.dim():
        dim, by = draw.randrange(tensor.dim()), draw.choice((0, 1, -1, 2, 17))
        size = max(0, tensor.shape[dim] + by) if by else 1
        index = torch.arange(size) % max(tensor.shape[dim], 1)
        return tensor.index_select(dim, index) if tensor.shape[dim] else tensor
    if kind == "rank":
        return draw.choice((tensor[None], tensor[..., None], tensor.flatten(), tensor.reshape(-1, 1)))
    if kind == "empty":
        return tensor.new_empty(draw.choice(((0,), (0, 0), (0, *tensor.shape[1:]), (*tensor.shape[:-1], 0))))
    if kind == "stride" and tensor.dim():
        wide = torch.stack([tensor, tensor], -1)[..., 0]
        return draw.choice((wide, tensor.transpose(0, -1), tensor.transpose(0, -1).contiguous().transpose(0, -1)))
    if kind == "expand":
        return tensor.flatten()[:1].squeeze().expand(tensor.shape) if tensor.numel() else tensor
    if kind == "huge":  # a size of 2^40 that needs no memory
        dim = draw.randrange(tensor.dim() + 1)
        shape = list(tensor.shape) or [1]
        shape[min(dim, len(shape) - 1)] = draw.choice((2**10, 2**31, 2**40))
        return tensor.new_zeros(()).expand(shape)
    if kind == "dtype":
        return tensor.to(draw.choice(DTYPES))
    if kind == "grad":
        return tensor.detach().clone().requires_grad_() if tensor.is_floating_point() else tensor
    if kind == "meta":
        return tensor.to("meta")
    if kind == "value" and tensor.numel():
        other = tensor.detach().clone()
        whole = not other.is_floating_point() and not other.is_complex()
        value = draw.choice((-1, 100, 2**62, -(2**63)) if whole else FLOATS)
        places = other.view(-1) if other.is_contiguous() else other.unsqueeze(0)
        if other.dtype != torch.bool and (not whole or other.dtype == torch.int64):
            places[draw.randrange(len(places))] = torch.tensor(value).to(other.dtype)
        return other
    if kind == "freed":
        other = tensor.detach().clone()
        other.untyped_storage().resize_(draw.choice((0, other.untyped_storage().nbytes() // 2)))
        return other
    if kind == "sparse" and tensor.device.type == "cpu":
        return tensor.detach().to_sparse()
    if kind == "scalar":
        return tensor.new_zeros(())
    return tensor


def damaged(value, kind: str, draw: random.Random):
    """Another value of an argument whose type in the schema is `kind`."""
    if kind.startswith("List") or isinstance(value, list):
        value = list(value)
        way = draw.choice(("shorter", "longer", "empty", "item", "twice"))
        if way == "item" and value:
            at = draw.randrange(len(value))
            value[at] = damaged_tensor(value[at], draw) if isinstance(value[at], Tensor) else not value[at]
            return [item for item in value if item is not None]
        spare = value[:1] or ([True] if "bool" in kind else [normal(2)])
        return {
            "shorter": value[: draw.randrange(len(value) + 1)],
            "longer": value + draw.randrange(1, 5) * spare,
            "empty": [],
        }.get(way, value + value)
    if isinstance(value, bool):
        return not value
    if isinstance(value, int):
        return draw.choice(INTEGERS)
    if isinstance(value, float):
        return draw.choice(FLOATS)
    if isinstance(value, str):
        return draw.choice(STRINGS)
    return damaged_tensor(normal(3) if value is None else value, draw)


def said(value) -> str:
    """A value in a few words, its memory unread."""
    if isinstance(value, list):
        return f"[{', '.join(map(said, value))}]"
    if not isinstance(value, Tensor):
        return repr(value)[:60]
    if value.layout != torch.strided:
        return f"{value.layout}{list(value.shape)}"
    known = (str(value.dtype).removeprefix("torch."), *(["meta"] if value.is_meta else []))
    known += ("requires_grad",) if value.requires_grad else ()
    known += (f"strides {value.stride()}",) if not value.is_contiguous() else ()
    known += ("freed",) if _freed(value) else ()
    return f"{list(value.shape)}({', '.join(known)})"


def _freed(tensor: Tensor) -> bool:
    """Whether the memory of some elements is gone."""
    if tensor.is_meta or tensor.layout != torch.strided or not tensor.numel():
        return False
    last = tensor.storage_offset() + sum((n - 1) * s for n, s in zip(tensor.shape, tensor.stride(), strict=True))
    return (last + 1) * tensor.itemsize > tensor.untyped_storage().nbytes()


def complaint(op, arguments: list) -> str | None:
    """What is wrong with how an op, and its derivative where it has one, takes these arguments; None for nothing."""
    flat = [item for a in arguments for item in (a if isinstance(a, list) else [a])]
    tensors = [item for item in flat if isinstance(item, Tensor)]
    kernels = bool(tensors) and not any(tensor.is_meta or tensor.layout != torch.strided for tensor in tensors)
    if not kernels and (any(map(_freed, tensors)) or any(tensor.numel() > 2**20 for tensor in tensors)):
        return None  # of freed memory PyTorch itself makes an end, and it reads long what is large
    try:
        results = op(*arguments)
        results = [r for r in (results if isinstance(results, tuple) else [results]) if isinstance(r, Tensor)]
        leaves = [tensor for tensor in tensors if tensor.requires_grad]
        roots = [r for r in results if r.requires_grad]
        if roots and leaves:
            torch.autograd.grad([r.sum() for r in roots], leaves, allow_unused=True)
    except Exception as error:
        if not kernels:
            return None  # no kernel runs: PyTorch or a reference in Python says what is wrong
        names = "|".join(argument.name for argument in op._schema.arguments)
        if not re.match(rf"(({names})(, )?)+: expected|{OTHERS}", str(error)):
            return f"{type(error).__name__}: {error}".splitlines()[0]
    return None


def main(seed: int, cases: int, log: str, *chosen: str) -> None:
    """As many cases of each op, and of each case one to three damaged arguments."""
    valid = [arguments_of_all_ops(PLAIN), arguments_of_all_ops(ROUNDED)]
    with open("/proc/self/statm", encoding="ascii") as file:
        used = int(file.read().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + ROOM, used + ROOM))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    complaints = 0
    with open(log, "w", encoding="utf-8") as file:
        for name in chosen or valid[0]:
            op = getattr(torch.ops.ddfast, name).default
            [op(*each[name]) for each in valid]
            kinds = [str(argument.type) for argument in op._schema.arguments]
            for case in range(cases):
                draw = random.Random(f"{seed} {name} {case}")
                arguments = list(valid[case % 2][name])
                for at in draw.sample(range(len(arguments)), min(len(arguments), draw.choice((1, 1, 1, 2, 3)))):
                    arguments[at] = damaged(arguments[at], kinds[at], draw)
                file.write(f"case {case} of seed {seed}: {name}({', '.join(map(said, arguments))})\n")
                file.flush()
                signal.alarm(MOST_SECONDS)
                complaints += 1 if (words := complaint(op, arguments)) else 0
                signal.alarm(0)
                file.write(f"    not a sentence about an argument: {words}\n" if words else "")
        file.write("done\n")
    sys.exit(bool(complaints))


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), *sys.argv[3:])
