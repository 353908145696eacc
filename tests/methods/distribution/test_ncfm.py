"""NCFM: its distance against the definition by complex numbers, and a whole job."""

import torch

import ddfast
from ddfast.methods import NCFM
from ddfast.methods.distribution.ncfm import NCFMSettings
from tests.conftest import normal, relative_error


def method(**settings):
    """One that only compares."""
    made = NCFM.__new__(NCFM)
    made.settings, made.generator = NCFMSettings(**settings), torch.Generator().manual_seed(3)
    return made


def test_the_distance_is_that_of_characteristic_functions():
    real, synthetic = normal(2, 9, 5), normal(2, 4, 5, seed=1)
    got = method(num_frequencies=7, phase_weight=0.25, distance_weight=2.0).compared(real, synthetic)
    t = torch.randn(7, 5, generator=torch.Generator().manual_seed(3)).double()
    for s in range(2):
        r, y = (
            torch.exp(1j * (f / f.norm(dim=1, keepdim=True) @ t.T)).mean(0) for f in (real[s], synthetic[s])
        )  # fmt: skip
        amplitude = (r.abs() - y.abs()) ** 2
        phase = 2 * (r.abs() * y.abs() - (r * y.conj()).real)
        assert relative_error(got[s], 2 * (0.5 * amplitude + 0.25 * phase).sqrt().mean()) < 1e-9


def test_equal_features_have_no_distance_and_a_finite_slope():
    features = normal(1, 6, 5).requires_grad_()
    distance = method(num_frequencies=16).compared(features.detach(), features)
    (slope,) = torch.autograd.grad(distance.sum(), features)
    assert float(distance.detach()) < 1e-3 * 300 and slope.isfinite().all()
    assert torch.autograd.gradcheck(
        lambda x: method(num_frequencies=8).compared(normal(1, 6, 5), x), features.detach().add(0.1).requires_grad_()
    )


def test_it_learns(tmp_path):
    options = {"iterations": 25, "num_eval": 2, "eval_epochs": 100, "network": "convnet:width=16", "device": "cpu"}
    done = ddfast.distill("digits", method="ncfm", output=tmp_path / "digits", **options)
    losses = [record["loss"] for record in done.history]
    assert losses[-1] < 0.9 * losses[0] and done.synthetic.ipc == 4
    assert done.accuracy["distilled"]["mean"] > done.accuracy["random_real"]["mean"]
