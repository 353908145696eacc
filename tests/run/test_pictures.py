"""The pictures of a run."""

import numpy
import pytest
import torch
from PIL import Image
from torch.utils.data import TensorDataset

import ddfast
from ddfast.data import Preprocessing, SyntheticSet, load_dataset
from ddfast.data.sheet import CAPTION, PADDING
from ddfast.run.pictures import MOST_THUMBNAILS, save_curves, save_images, save_thumbnail
from tests.conftest import SMALL, uniform

NAMES = ("first", "second", "third with a name too long for its picture")


def pixels(path) -> numpy.ndarray:
    with Image.open(path) as picture:
        return numpy.asarray(picture.convert("RGB"))


@pytest.mark.parametrize("per_class", [1, 4, 12])
def test_images_stand_class_by_class_under_its_name_denormalised(tmp_path, per_class):
    values = torch.linspace(0.1, 0.9, 3 * per_class)
    raw = values.view(-1, 1, 1, 1).expand(-1, 1, 8, 8)
    labels = torch.arange(3).repeat(per_class)  # not in the order of the classes
    preprocessing = Preprocessing((0.4,), (0.2,))
    synthetic = SyntheticSet(preprocessing.apply(raw), labels, torch.tensor(0.1), NAMES, preprocessing)
    save_images(synthetic, tmp_path / "images.png")
    got = pixels(tmp_path / "images.png")
    across, tile = max(1, 10 // per_class), 64
    for k in range(3):
        left = PADDING + k % across * (per_class * (tile + PADDING) + PADDING)
        top = PADDING + k // across * (tile + 2 * PADDING + CAPTION)
        assert got[top : top + CAPTION, left : left + per_class * tile].min() < 128  # its name, in black
        for column, value in enumerate(values[labels == k].tolist()):
            middle = got[top + CAPTION + tile // 2, left + column * (tile + PADDING) + tile // 2]
            assert middle.tolist() == pytest.approx([255 * value] * 3, abs=1)


def test_whitened_images_are_shown_as_they_look(tmp_path):
    images = uniform(60, 1, 8, 8).float() - 0.1
    labels = torch.arange(60) % 2
    data = load_dataset(((images, labels), (images, labels)), zca=True)
    whitened = data.preprocessing.apply(images[:2])
    synthetic = SyntheticSet(whitened, torch.tensor([0, 1]), torch.tensor(0.1), ("a", "b"), data.preprocessing)
    save_images(synthetic, tmp_path / "images.png")
    rows, columns = PADDING + CAPTION + 4 + 8 * numpy.arange(8), PADDING + 4 + 8 * numpy.arange(8)
    got = pixels(tmp_path / "images.png")[numpy.ix_(rows, columns)]
    numpy.testing.assert_allclose(got[:, :, 0], 255 * images[0, 0].numpy(), atol=2)


def test_images_with_many_channels_have_a_picture_too(tmp_path):
    labels = torch.arange(9) % 3
    images = uniform(9, 5, 16, 16).float() - 0.1
    pair = TensorDataset(images, labels), TensorDataset(images, labels)
    assert (ddfast.distill(pair, output=tmp_path / "run", **SMALL).path / "images.png").exists()


def test_curves_show_loss_and_learning_rate_also_where_an_iteration_has_none(tmp_path):
    history = [{"iteration": n, "loss": 1.0 / n, "lr": 0.01} for n in range(1, 9)] + [
        {"iteration": 9, "loss": None, "lr": 0.01}
    ]
    save_curves(history, tmp_path / "curves.png")
    assert pixels(tmp_path / "curves.png").std() > 5
    save_curves([], tmp_path / "none.png")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["curves.png"]


def test_thumbnails_of_a_long_run_stay_few(tmp_path):
    data = load_dataset("digits")
    images, labels = data.train_images[:4], data.train_labels[:4]
    synthetic = SyntheticSet(
        data.preprocessing.apply(images), labels, torch.tensor(0.1), data.class_names, data.preprocessing
    )
    for iteration in range(10, 1010, 10):
        save_thumbnail(synthetic, tmp_path / "thumbnails", iteration)
    kept = sorted(int(file.stem) for file in (tmp_path / "thumbnails").iterdir())
    assert MOST_THUMBNAILS // 2 <= len(kept) <= MOST_THUMBNAILS
    assert kept[0] == 10 and kept[-1] == 1000
    assert pixels(tmp_path / "thumbnails/000010.webp").std() > 5


def test_a_run_keeps_thumbnails_at_its_checkpoints(tmp_path):
    run = ddfast.distill(output=tmp_path / "run", **{**SMALL, "iterations": 5, "checkpoint_every": 2}).path
    assert sorted(file.stem for file in (run / "thumbnails").iterdir()) == ["000002", "000004", "000005"]
