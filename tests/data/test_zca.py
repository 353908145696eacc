"""Whitening: what kornia fits, its files, and what happens when they are not there."""

from dataclasses import replace

import pytest
import torch

from ddfast.data import ZCA, Preprocessing, SyntheticSet, load_dataset
from ddfast.evaluation import evaluate
from ddfast.runtime import seeds
from tests.conftest import uniform

LABELS = torch.arange(200) % 2


@pytest.fixture
def images():
    """Images whose neighbouring pixels are correlated, as those of photographs are."""
    noise = uniform(200, 1, 8, 8).float() - 0.1
    return (noise + noise.roll(1, 3) + noise.roll(1, 2)) / 3


@pytest.fixture
def data(images):
    return load_dataset(((images, LABELS), (images[:20], LABELS[:20])), zca=True)


def test_whitening_is_that_of_the_formula(images, data):
    flat = images.flatten(1).double()
    centred = flat - flat.mean(0)
    values, vectors = torch.linalg.eigh(centred.T @ centred / (len(flat) - 1))
    matrix = vectors @ (values + 0.1).rsqrt().diag() @ vectors.T
    expected = (centred @ matrix).view_as(images)
    torch.testing.assert_close(data.preprocessing.apply(images).double(), expected, rtol=1e-3, atol=1e-4)  # float32 SVD


def test_the_inverse_gives_the_images_back(images, data):
    whitened = data.preprocessing.apply(images)
    assert not torch.allclose(whitened, images, atol=0.1)
    torch.testing.assert_close(data.preprocessing.invert(whitened), images, rtol=0, atol=1e-4)


def test_the_matrices_are_kept_once_and_used_again(data, images, monkeypatch):
    monkeypatch.setattr("ddfast.data.zca._fit", lambda *a: pytest.fail("fitted again"))
    again = load_dataset(((images, LABELS), (images, LABELS)), zca=True)
    assert again.preprocessing == data.preprocessing
    assert data.preprocessing.zca.file.name == f"{data.fingerprint}-eps0.1.safetensors"


@pytest.mark.parametrize("damage", ["gone", "truncated", "altered"])
def test_matrices_that_are_gone_or_damaged_are_fitted_anew_and_verified(data, images, damage):
    file = data.preprocessing.zca.file
    whole = file.read_bytes()
    if damage == "gone":
        file.unlink()
    else:
        file.write_bytes(whole[:-9] if damage == "truncated" else whole[:-4] + b"abcd")
    raw = load_dataset(((images, LABELS), (images, LABELS)))
    assert raw.preprocessed_like(data.preprocessing).preprocessing.matches(data.preprocessing)
    assert file.read_bytes() == whole


def test_a_whitening_of_other_data_or_that_differs_is_refused(data, images):
    raw = load_dataset(((images, LABELS), (images, LABELS)))
    zca = data.preprocessing.zca
    other = replace(data.preprocessing, zca=replace(zca, data="0123"))
    with pytest.raises(ValueError, match="the whitening was fitted on the training images 0123"):
        raw.preprocessed_like(other)
    differing = replace(data.preprocessing, zca=replace(zca, probe=tuple(2 * p for p in zca.probe)))
    with pytest.raises(ValueError, match="the whitening fitted again on custom differs from the recorded one"):
        raw.preprocessed_like(differing)


def test_without_its_matrices_a_whitening_says_where_they_were_expected():
    zca = ZCA("nowhere", 0.1, "0", (1.0,))
    with pytest.raises(FileNotFoundError, match=r"nowhere-eps0.1.safetensors: the whitening matrices are not there"):
        Preprocessing((0.0,), (1.0,), zca).apply(torch.zeros(1, 1, 8, 8))


def test_images_too_large_to_be_whitened_are_refused():
    images = uniform(4, 3, 96, 96).float() - 0.1
    with pytest.raises(ValueError, match="zca: expected images of at most 20000 values, got 27648"):
        load_dataset(((images, LABELS[:4]), (images, LABELS[:4])), zca=True)


def test_evaluation_whitens_the_test_images_as_the_set_says(data, images):
    """The set of whitened images is good on whitened test images only: raw ones would be told apart by luck."""
    bright = images * 0.5 + LABELS.view(-1, 1, 1, 1) * 0.5
    halves = ((bright, LABELS), (bright, LABELS))
    whitened = load_dataset(halves, zca=True)
    synthetic = SyntheticSet(
        *whitened.random_real(5, seeds.generator(0)), torch.tensor(0.01), whitened.class_names, whitened.preprocessing
    )
    assert evaluate(synthetic, load_dataset(halves), num_eval=1, eval_epochs=60, networks=("mlp",)).mean > 90


def test_data_that_have_grown_keep_the_whitening_of_a_set_while_its_matrices_are_there(data, images):
    """Without them it is refused: no whitening of other images takes its place."""
    more = torch.cat([images, images[:2] * 0.5]), torch.cat([LABELS, LABELS[:2]])
    grown = load_dataset((more, (images, LABELS)))
    kept = grown.preprocessed_like(data.preprocessing).preprocessing
    assert kept == data.preprocessing and kept.apply(images).equal(data.preprocessing.apply(images))
    data.preprocessing.zca.file.unlink()
    with pytest.raises(ValueError, match="the whitening was fitted on the training images"):
        grown.preprocessed_like(data.preprocessing)
