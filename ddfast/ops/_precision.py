"""The precision of convolutions: what may be asked for, and float32 without TF32."""

import contextlib
from collections.abc import Iterator

import torch

PRECISIONS = ("default", "float32", "bfloat16")

# From the whole to its parts: a setting that nobody made is that of its backend, and a backend's that of all backends.
_SETTINGS = (
    ("generic", "all"),
    ("cuda", "all"),
    ("mkldnn", "all"),
    ("cuda", "matmul"),
    ("cuda", "conv"),
    ("cuda", "rnn"),
    ("mkldnn", "matmul"),
    ("mkldnn", "conv"),
    ("mkldnn", "rnn"),
)


def expect_precision(precision: str) -> None:
    """ValueError for what is not one of PRECISIONS."""
    if precision not in PRECISIONS:
        raise ValueError(f"precision: expected one of {', '.join(PRECISIONS)}, got {precision!r}")


def computing_in(precision: str) -> contextlib.AbstractContextManager:
    """Context manager in which matrix products and convolutions of float32 tensors have this precision.

    "float32" switches off TF32 and whatever else PyTorch may round float32 to, in the whole process, and puts back what
    was set; the others change nothing.
    """
    return _strict_float32() if precision == "float32" else contextlib.nullcontext()


@contextlib.contextmanager
def apart_from_autocast(precision: str, device: torch.device) -> Iterator[None]:
    """As `computing_in`, for an op whose precision is its own business: autocast does not reach into it."""
    enabled = device.type != "meta" and torch.is_autocast_enabled(device.type)
    off = torch.autocast(device.type, enabled=False) if enabled else contextlib.nullcontext()
    with computing_in(precision), off:
        yield


def is_strict_float32() -> bool:
    """Whether convolutions of float32 tensors on a CPU were asked to be strict, as within `computing_in("float32")`."""
    return torch._C._get_fp32_precision_getter("mkldnn", "conv") == "ieee"


@contextlib.contextmanager
def _strict_float32() -> Iterator[None]:
    """The settings are torch.backends.fp32_precision, .cudnn.conv.fp32_precision and so on, by the functions behind
    them: torch.backends.mkldnn.fp32_precision reads one setting and writes another."""
    read, write, found = torch._C._get_fp32_precision_getter, torch._C._set_fp32_precision_setter, []
    try:
        for setting in _SETTINGS:
            # One that was never made cannot be made so again; it follows those above it, which were written before.
            if (precision := read(*setting)) != "ieee":
                write(*setting, "ieee")
                found.append((setting, precision))
        yield
    finally:
        for setting, precision in reversed(found):
            write(*setting, precision)
