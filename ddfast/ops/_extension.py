"""Loading ddfast._C, whose import registers the compiled kernels."""

import importlib
import importlib.util
import os
import re
from types import ModuleType

import torch


def _major_minor(version: str) -> str:
    return ".".join(version.split("+")[0].split(".")[:2])


def _built_for(path: str) -> str | None:
    """The torch version that a compiled ddfast._C names in its bytes, readable even where it cannot be loaded."""
    with open(path, "rb") as file:
        found = re.search(rb"ddfast was built for torch ([0-9][^ ]*) ", file.read())
    return found.group(1).decode() if found else None


def _load_extension() -> ModuleType | None:
    """Import ddfast._C. Its plain absence is the pure-PyTorch build; anything else that is wrong raises."""
    if os.environ.get("DDFAST_EXTENSION", "1") == "0":
        return None
    spec = importlib.util.find_spec("ddfast._C")
    if spec is None:
        return None
    built_for = _built_for(spec.origin)
    if built_for is not None and _major_minor(built_for) != _major_minor(torch.__version__):
        raise ImportError(
            f"ddfast._C was built for torch {built_for}, but torch {torch.__version__} is installed; install the "
            f"wheel of ddfast for that torch, or rebuild it with "
            f"`pip install --no-build-isolation --force-reinstall --no-deps ddfast` (or, in a checkout, "
            f"`pip install --no-build-isolation -e .`), or set DDFAST_EXTENSION=0 to run without it"
        )
    return importlib.import_module("ddfast._C")


def why_no_extension() -> str:
    """Why EXTENSION is None, and what to do about it."""
    if os.environ.get("DDFAST_EXTENSION") == "0":
        return "DDFAST_EXTENSION=0 switches them off; unset it"
    return "ddfast._C was not built; reinstall ddfast with `pip install --no-build-isolation .` in its source folder"


EXTENSION = _load_extension()


def release_memory() -> None:
    """Give back what the ops keep for their next call on a CPU: at most what the last unroll needed at once."""
    if EXTENSION is not None:
        EXTENSION.release_memory()
