"""The methods give the numbers that were written down: `python -m tests.methods.test_recorded_values` writes them anew,
after a change that is meant to change them."""

import json
import tempfile
from pathlib import Path

import pytest
import torch
from torch.utils.data import TensorDataset

import ddfast
from tests.conftest import OF_TRAJECTORIES, uniform
from tests.methods.test_method_jobs import job

FILE = Path(__file__).parent / "recorded_values.json"
BOUND = 1e-3  # float32: a rounding error that moves a ReLU changes a gradient by about as much
VARIANTS: dict[str, dict] = {name: {"method": name} for name in OF_TRAJECTORIES} | {
    "pad": {"method": "pad", "curriculum": "none"},
    "edf": {"method": "edf", "cam_strength": 0.0},
    "selmatch": {"method": "selmatch", "init": "real"},
    "tesla, target labels": {"method": "tesla", "labels": "target"},
    "mtt, two segments, L1, averaged": {"method": "mtt", "segments": 2, "distance": "l1", "ema_decay": 0.5},
    "ftd, a part of the set, GSAM": {"method": "ftd", "optimizer": "gsam", "rho": 0.05, "alpha": 0.5, "batch_syn": 3},
    "mtt, soft labels, dsa": {"method": "mtt", "labels": "soft", "lr_label": 1.0, "dsa_strategy": "dsa:scale_flip"},
    "pp, momentum, noise": {"method": "pp", "syn_momentum": 0.5, "start_noise": 0.01, "init": "noise"},
}


def values_of(variant: str, output: Path) -> dict[str, list[float]]:
    """The losses of two outer steps, the learning rate, what label logits sum to and how far images moved."""
    labels = torch.arange(24) % 3
    images = uniform(24, 1, 16, 16).float() * 0.3 + labels.view(-1, 1, 1, 1) * 0.3
    pair = TensorDataset(images, labels), TensorDataset(images[:9], labels[:9])
    how = {"iterations": 2, "ipc": 2, "lr_teacher": 0.01, "lr_lr": 1e-6, "lr_img": 5.0, "num_eval": 1, "eval_epochs": 1}
    how |= VARIANTS[variant]
    done = ddfast.distill(pair, output=output, **job(how.pop("method"), **how))
    synthetic, averaged = done.synthetic, done.averaged or done.synthetic
    first = ddfast.SyntheticSet.load(output / "initial").images
    moved, mean_moved = synthetic.images - first, averaged.images - first
    return {
        "losses": [record["loss"] for record in done.history],
        "lr": [float(synthetic.lr)],
        "labels": synthetic.labels.double().square().sum(0).reshape(-1).tolist(),
        "moved": [float(moved.norm()), *moved.flatten()[:: moved.numel() // 12].tolist()],
        "average moved": [float(mean_moved.norm())],
    }


@pytest.mark.parametrize("variant", VARIANTS)
def test_the_numbers_are_those_that_were_written_down(variant, tmp_path):
    recorded, found = json.loads(FILE.read_text())[variant], values_of(variant, tmp_path / "run")
    assert recorded.keys() == found.keys()
    for name in recorded:
        expected, got = (torch.tensor(values[name], dtype=torch.float64) for values in (recorded, found))
        assert expected.shape == got.shape and (got - expected).norm() <= BOUND * expected.norm(), name


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        values = {variant: values_of(variant, Path(folder) / str(n)) for n, variant in enumerate(VARIANTS)}
    FILE.write_text(json.dumps(values, indent=1) + "\n")
