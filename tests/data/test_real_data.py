"""The real CIFAR-10 and MNIST, where DDFAST_DATA says that they are."""

import os

import pytest
import torch

from ddfast.data import load_dataset

pytestmark = pytest.mark.skipif(not os.environ.get("DDFAST_DATA"), reason="DDFAST_DATA names no folder of data sets")


@pytest.mark.parametrize(
    "name, shape, mean, std", [("cifar10", (50000, 3, 32, 32), 0, 1.22), ("mnist", (60000, 1, 28, 28), 0, 1)]
)
def test_named_sets_are_whole_and_normalised_with_the_fields_statistics(name, shape, mean, std):
    data = load_dataset(name)
    assert data.train_images.shape == shape and len(data.test_images) == 10000
    assert data.train_labels.bincount().min() >= 5000 and data.num_classes == 10
    images, _ = data.train_batches(torch.device("cpu")).take(torch.arange(len(data.train_images)))
    assert images.mean().item() == pytest.approx(mean, abs=0.02)
    assert images.std().item() == pytest.approx(std, abs=0.03)  # the field's std of CIFAR is not that of all pixels
    assert load_dataset(name).fingerprint == data.fingerprint


def test_cifar10_has_its_classes():
    assert load_dataset("cifar10").class_names[:3] == ("airplane", "automobile", "bird")


def test_a_whitened_cifar10_image_comes_back():
    """Fitted on 2000 images, which is quick; the whole fit is the same code."""
    data = load_dataset("cifar10")
    some = torch.arange(2000)
    halves = ((data.train_images[some], data.train_labels[some]), (data.test_images[:100], data.test_labels[:100]))
    small = load_dataset(halves, zca=True)
    whitened, _ = small.train_batches(torch.device("cpu")).take(torch.arange(100))
    variances = whitened.flatten(1).var(0)
    assert variances.max() < 2  # of 3072 directions none is larger than another by much
    back = small.preprocessing.invert(whitened)
    torch.testing.assert_close(back, data.train_images[:100].float() / 255, rtol=0, atol=1e-3)
