"""What the tests share: inputs from one place, one tolerance table."""

import pytest
import torch
from torch.utils.data import TensorDataset

from ddfast.methods import METHODS
from ddfast.runtime import seeds

# Kernel against reference, (relative, absolute): a few rounding errors of the type.
TOLERANCES = {torch.float64: (1e-9, 1e-9), torch.float32: (1e-4, 1e-5), torch.bfloat16: (1.6e-2, 1e-2)}


OF_TRAJECTORIES = [name for name, method in METHODS.items() if method.needs.experts]

# A whole job in a second or two, as keyword arguments of ddfast.distill.
SMALL = {
    "iterations": 3,
    "num_experts": 2,
    "train_epochs": 2,
    "batch_train": 6,
    "syn_steps": 3,
    "expert_epochs": 1,
    "max_start_epoch": 2,
    "lr_img": 100.0,
    "lr_lr": 1e-4,
    "num_eval": 2,
    "eval_epochs": 3,
}


def normal(*shape: int, seed: int = 0, dtype=torch.float64, device="cpu") -> torch.Tensor:
    """Standard normal numbers, the same for the same arguments."""
    return torch.randn(shape, generator=seeds.generator(seed, *shape), dtype=torch.float64).to(device, dtype)


def uniform(*shape: int, seed: int = 0, dtype=torch.float64, device="cpu") -> torch.Tensor:
    """Numbers from [0.1, 1.1)."""
    numbers = torch.rand(shape, generator=seeds.generator(seed, "uniform", *shape), dtype=torch.float64)
    return (numbers + 0.1).to(device, dtype)


def interrupt_after(count: int):
    """A progress that stops a run after so many iterations, as Ctrl-C does."""

    def progress(distillation):
        for record in distillation:
            yield record
            if record["iteration"] == count:
                raise KeyboardInterrupt

    return progress


def relative_error(got: torch.Tensor, expected: torch.Tensor) -> float:
    """‖got − expected‖ / ‖expected‖ in float64."""
    got, expected = got.double().cpu(), expected.double().cpu()
    return ((got - expected).norm() / expected.norm().clamp_min(1e-300)).item()


def assert_close(got: torch.Tensor, expected: torch.Tensor) -> None:
    """Equal within the table's row for the type of `got`."""
    relative, absolute = TOLERANCES[got.dtype]
    torch.testing.assert_close(got, expected.to(got.dtype), rtol=relative, atol=absolute)


@pytest.fixture(
    params=[
        "cpu",
        pytest.param(
            "cuda",
            marks=[
                pytest.mark.cuda,
                pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
            ],
        ),
    ]
)
def device(request) -> str:
    """Every device that an op has to work on."""
    return request.param


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory, monkeypatch):
    """Tests never touch the user's cache; experts that one test trained are there for the next."""
    monkeypatch.setenv("DDFAST_CACHE", str(tmp_path_factory.getbasetemp() / "cache"))


@pytest.fixture(scope="session")
def pair():
    """Three classes that differ in brightness: easy to learn."""
    labels = torch.arange(24) % 3
    images = uniform(24, 1, 16, 16).float() * 0.3 + labels.view(-1, 1, 1, 1) * 0.3
    return TensorDataset(images, labels), TensorDataset(images[:9], labels[:9])
