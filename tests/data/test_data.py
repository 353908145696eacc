"""Data sets and synthetic sets."""

import json
from dataclasses import replace

import pytest
import torch
from safetensors.torch import save_file
from torch.utils.data import TensorDataset
from torchvision.transforms.v2.functional import to_pil_image

from ddfast.data import Preprocessing, SyntheticSet, Texture, load_dataset
from ddfast.runtime import seeds
from tests.conftest import assert_close, uniform


@pytest.fixture
def pair():
    train = TensorDataset(uniform(12, 3, 8, 6).float() - 0.1, torch.arange(12) % 3)
    test = TensorDataset(uniform(6, 3, 8, 6, seed=1).float() - 0.1, torch.arange(6) % 3)
    return train, test


@pytest.fixture
def synthetic():
    preprocessing = Preprocessing((0.5,), (0.25,))
    images = uniform(4, 1, 8, 8).float()
    return SyntheticSet(images, torch.tensor([0, 0, 1, 1]), torch.tensor(0.02), ("null", "eins"), preprocessing)


def test_digits_are_all_there_normalised_and_split_by_class():
    data = load_dataset("digits")
    assert data.train_images.shape == (1437, 1, 16, 16) and len(data.test_images) == 360
    images, labels = data.train_batches(torch.device("cpu")).take(torch.arange(1437))
    assert images.mean().item() == pytest.approx(0, abs=1e-3)
    assert images.std().item() == pytest.approx(1, abs=1e-3)
    assert torch.equal(labels, data.train_labels) and data.test_labels.bincount().min() >= 34
    assert torch.allclose(data.preprocessing.invert(images), data.train_images, atol=1e-5)


def test_digits_are_the_same_every_time():
    assert load_dataset("digits").fingerprint == load_dataset("digits").fingerprint


def test_a_pair_of_torch_data_sets(pair):
    data = load_dataset(pair)
    assert data.channels == 3 and data.image_size == (8, 6) and data.num_classes == 3
    assert torch.equal(data.train_images, pair[0].tensors[0]) and torch.equal(data.test_labels, pair[1].tensors[1])
    assert load_dataset(data) is data


def test_tensors_arrays_and_pictures_are_the_same_data_set():
    tensors = (torch.arange(12 * 3 * 8 * 8) % 251).byte().view(12, 3, 8, 8)
    labels = torch.arange(12) % 3
    pictures = [(to_pil_image(image), int(label)) for image, label in zip(tensors, labels, strict=True)]
    by_tensors = load_dataset(((tensors, labels), (tensors, labels)))
    by_arrays = load_dataset(((tensors.numpy(), labels.numpy()), (tensors.numpy(), labels.numpy())))
    by_pictures = load_dataset((pictures, pictures))
    assert by_tensors.train_images.dtype == torch.uint8
    assert by_tensors.fingerprint == by_arrays.fingerprint == by_pictures.fingerprint
    grey = load_dataset(((tensors[:, 0], labels), (tensors[:, 0], labels)))
    assert grey.channels == 1
    assert load_dataset((pictures, pictures), image_size=(4, 6)).image_size == (4, 6)


def test_uint8_and_float_images_give_the_same_batches():
    images, labels = (torch.arange(12 * 64) % 256).byte().view(12, 1, 8, 8), torch.arange(12) % 2
    floats = images.float() / 255
    batches = [
        load_dataset(((x, labels), (x, labels))).train_batches(torch.device("cpu")).take(torch.tensor([3, 1]))
        for x in (images, floats)
    ]
    assert_close(batches[0][0], batches[1][0])
    assert batches[0][1].tolist() == [1, 1]


@pytest.mark.parametrize("zca", [False, True])
def test_images_that_do_not_fit_on_the_device_stream_and_are_the_same(monkeypatch, zca):
    images, labels = uniform(12, 1, 8, 8).float() - 0.1, torch.arange(12) % 2
    data = load_dataset(((images, labels), (images, labels)), zca=zca)
    resident = data.train_batches(torch.device("cpu"))
    monkeypatch.setattr("ddfast.data.batches.free_bytes", lambda device: 0)
    streaming = data.train_batches(torch.device("cpu"))
    assert streaming._images is data.train_images
    orders = [list(b.shuffled(5, seeds.generator(3))) for b in (resident, streaming)]
    assert [len(x) for x, _ in orders[0]] == [5, 5, 2]
    for (x, y), (u, v) in zip(*orders, strict=True):
        torch.testing.assert_close(x, u, rtol=1e-4, atol=1e-4)  # of products over other chunks
        assert torch.equal(y, v)
    seen = torch.cat([y for _, y in orders[0]])
    assert sorted(seen.tolist()) == sorted(labels.tolist())


def test_random_real_images_are_of_every_class_and_drawn_from_the_generator():
    data = load_dataset("digits")
    images, labels = data.random_real(2, seeds.generator(1))
    assert labels.tolist() == [k for k in range(10) for _ in range(2)]
    assert torch.equal(images, data.random_real(2, seeds.generator(1))[0])
    assert not torch.equal(images, data.random_real(2, seeds.generator(2))[0])
    real = data.preprocessing.apply(data.train_images)
    assert all((real == image).flatten(1).all(1).any() for image in images)


@pytest.mark.parametrize(
    "dataset, error, sentence",
    [
        (
            "digitz",
            ValueError,
            "dataset: expected one of digits, mnist, .*, an image folder, .* got 'digitz'; did you mean digits",
        ),
        (3, TypeError, "dataset: expected a name, an image folder, .* a pair .* with train and test; got int"),
        (([], []), ValueError, "dataset: the training set is empty"),
        (([("picture", 0)], []), ValueError, "training images as tensors or arrays .* PIL images, got str"),
        (([{"image": 0}], []), ValueError, r"columns for images .* and labels .*, got image; rename yours"),
        (([(torch.zeros(8), 0)], []), ValueError, r"training images as tensors or arrays .* got \[8\]"),
        (([(torch.zeros(1, 8, 8), 0.5)], 2 * [(torch.zeros(1, 8, 8), 0)]), ValueError, "as training labels, got 0.5"),
        (
            ((torch.zeros(4, 1, 8, 8), torch.zeros(3)), (torch.zeros(4, 1, 8, 8), torch.zeros(4))),
            ValueError,
            r"training images \[N, C, H, W\] and as many labels, got \[4, 1, 8, 8\] and 3",
        ),
    ],
)
def test_what_is_no_data_set_is_refused_in_one_sentence(dataset, error, sentence):
    with pytest.raises(error, match=sentence):
        load_dataset(dataset)


def test_nan_label_range_and_constant_images_are_refused(pair):
    train, test = pair
    broken = train.tensors[0].clone()
    broken[3, 0, 0, 0] = float("nan")
    with pytest.raises(ValueError, match="the training images hold values that are not finite"):
        load_dataset((TensorDataset(broken, train.tensors[1]), test))
    with pytest.raises(ValueError, match="test images of class 9 and no training images"):
        load_dataset((train, TensorDataset(test.tensors[0], torch.tensor([0, 1, 2, 0, 1, 9]))))
    images = train.tensors[0]
    with pytest.raises(ValueError, match="image_size: expected that of the data set"):
        load_dataset(load_dataset(pair), image_size=9)
    for size in (0, "8x8", (8, 8, 8)):
        with pytest.raises(ValueError, match="image_size: expected"):
            load_dataset(pair, image_size=size)
    with pytest.raises(ValueError, match="resize: expected one of stretch, crop, got 'fit'"):
        load_dataset(pair, resize="fit")
    with pytest.raises(ValueError, match="test images of class 1 and no training images"):
        load_dataset((TensorDataset(images, torch.arange(12) % 2 * 2), test))
    named = load_dataset(pair)
    with pytest.raises(ValueError, match="custom: no training images of class 1"):
        replace(named, train_labels=torch.arange(12) % 2 * 2)
    with pytest.raises(ValueError, match="expected at least two classes, got 1"):
        load_dataset((TensorDataset(images, torch.zeros(12).long()), TensorDataset(images, torch.zeros(12).long())))
    with pytest.raises(ValueError, match="expected pixels that differ"):
        load_dataset(2 * (TensorDataset(torch.zeros(4, 1, 8, 8), torch.arange(4)),))


def test_more_images_per_class_than_there_are_is_refused(pair):
    with pytest.raises(ValueError, match="ipc: expected at most the 4 training images of class '0', got 5"):
        load_dataset(pair).random_real(5, seeds.generator(0))


def test_a_synthetic_set_comes_back_as_it_was_saved(synthetic, tmp_path):
    synthetic.save(tmp_path / "set")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["set.json", "set.safetensors"]
    for name in ("set", "set.json", "set.safetensors"):
        loaded = SyntheticSet.load(tmp_path / name)
        assert torch.equal(loaded.images, synthetic.images) and torch.equal(loaded.labels, synthetic.labels)
        assert torch.equal(loaded.lr, synthetic.lr)
        assert (loaded.class_names, loaded.preprocessing) == (synthetic.class_names, synthetic.preprocessing)


def test_soft_labels_and_how_to_train_come_back_too(synthetic, tmp_path):
    soft = replace(synthetic, labels=uniform(4, 2).float(), dsa_strategy="flip_scale")
    soft.save(tmp_path / "set")
    loaded = SyntheticSet.load(tmp_path / "set")
    assert torch.equal(loaded.labels, soft.labels) and loaded.dsa_strategy == "flip_scale"
    assert (
        torch.equal(loaded.targets, soft.labels.softmax(1))
        and loaded.classes.tolist() == soft.labels.argmax(1).tolist()
    )
    assert json.loads((tmp_path / "set.json").read_text())["labels"] == "logits"


def test_a_canvas_comes_back_and_says_what_networks_see(synthetic, tmp_path):
    assert synthetic.image_size == tuple(synthetic.images.shape[2:])
    canvases = replace(synthetic, images=uniform(4, 1, 8, 12).float(), parameterisation=Texture(2))
    assert canvases.image_size == (4, 6) and canvases.detached().canvas == 2
    canvases.save(tmp_path / "set")
    assert SyntheticSet.load(tmp_path / "set").canvas == 2


def test_a_name_with_a_dot_is_kept_whole(synthetic, tmp_path):
    synthetic.save(tmp_path / "lr0.01")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["lr0.01.json", "lr0.01.safetensors"]
    assert len(SyntheticSet.load(tmp_path / "lr0.01")) == 4


def test_files_that_are_no_synthetic_set_are_named(synthetic, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"set\.safetensors: no such file"):
        SyntheticSet.load(tmp_path / "set")
    synthetic.save(tmp_path / "set")
    whole = (tmp_path / "set.safetensors").read_bytes()
    (tmp_path / "set.safetensors").write_bytes(whole[:-40])
    with pytest.raises(ValueError, match=r"set\.safetensors: not a whole file of ddfast"):
        SyntheticSet.load(tmp_path / "set")
    (tmp_path / "set.safetensors").write_bytes(whole[:-4] + b"abcd")
    with pytest.raises(ValueError, match=r"set\.safetensors: damaged: its checksum differs"):
        SyntheticSet.load(tmp_path / "set")


def save_as_before_there_were_checksums(synthetic, path):
    values = {"images": synthetic.images, "labels": synthetic.labels, "lr": synthetic.lr}
    save_file(values, path.with_suffix(".safetensors"))
    synthetic.save(path.with_name("new"))
    about = json.loads(path.with_name("new.json").read_text())
    del about["parameterisation"], about["sha256"]
    path.with_suffix(".json").write_text(json.dumps(about))


def test_a_set_of_two_files_without_a_checksum_is_read_as_ever(synthetic, tmp_path):
    save_as_before_there_were_checksums(synthetic, tmp_path / "set")
    loaded = SyntheticSet.load(tmp_path / "set")
    assert torch.equal(loaded.images, synthetic.images) and loaded.canvas == 1
    (tmp_path / "set.json").unlink()
    with pytest.raises(FileNotFoundError, match=r"set\.json: no such file; set.safetensors does not say how to use it"):
        SyntheticSet.load(tmp_path / "set")
    save_as_before_there_were_checksums(synthetic, tmp_path / "set")
    (tmp_path / "set.json").write_text("{")
    with pytest.raises(ValueError, match=r"set\.json: not a JSON file"):
        SyntheticSet.load(tmp_path / "set")
    (tmp_path / "set.json").write_text(json.dumps({"format": "other"}))
    with pytest.raises(ValueError, match=r"set\.json: not a ddfast synthetic set"):
        SyntheticSet.load(tmp_path / "set")


def test_the_file_for_people_does_not_count_and_a_difference_is_told(synthetic, tmp_path, caplog):
    """As a save that is killed between its two files leaves it."""
    synthetic.save(tmp_path / "set")
    old = (tmp_path / "set.json").read_bytes()
    replace(synthetic, dsa_strategy="flip").save(tmp_path / "set")
    assert SyntheticSet.load(tmp_path / "set").dsa_strategy == "flip" and not caplog.text
    for other in (old, b"{"):
        (tmp_path / "set.json").write_bytes(other)
        assert SyntheticSet.load(tmp_path / "set").dsa_strategy == "flip"
        assert "set.json: differs from what set.safetensors records; the latter is used" in caplog.text
        caplog.clear()
    (tmp_path / "set.json").unlink()
    assert SyntheticSet.load(tmp_path / "set").dsa_strategy == "flip" and not caplog.text


def test_a_failed_save_leaves_the_old_files(synthetic, tmp_path, monkeypatch):
    synthetic.save(tmp_path / "set")

    def full_disk(tensors, path, metadata):
        path.write_bytes(b"half")
        raise OSError("No space left on device")

    monkeypatch.setattr("safetensors.torch.save_file", full_disk)
    with pytest.raises(OSError, match="No space left"):
        replace(synthetic, images=synthetic.images + 1).save(tmp_path / "set")
    monkeypatch.undo()
    assert torch.equal(SyntheticSet.load(tmp_path / "set").images, synthetic.images)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["set.json", "set.safetensors"]


@pytest.mark.parametrize(
    "change, sentence",
    [
        ({"images": torch.zeros(4, 8, 8)}, r"images: expected \[I, C, H, W\]"),
        ({"labels": torch.tensor([0, 1])}, r"labels: expected int64 \[4\]"),
        ({"labels": torch.zeros(4, 3)}, r"or label logits \[4, 2\], got torch.float32 \[4, 3\]"),
        ({"images": torch.zeros(4, 3, 8, 8)}, "images: expected 1 channels as in the preprocessing, got 3"),
        ({"labels": torch.tensor([0, 1, 2, 0])}, "labels: expected classes 0 to 1"),
        ({"lr": torch.zeros(2)}, r"lr: expected \[\], got \[2\]"),
        ({"parameterisation": 0}, "canvas: expected a whole number of at least 1, got 0"),
        (
            {"images": torch.zeros(4, 1, 8, 6), "parameterisation": 4},
            r"canvas: expected a divisor of both sides, \[8, 6\], got 4",
        ),
    ],
)
def test_parts_that_do_not_fit_are_refused(synthetic, change, sentence):
    with pytest.raises(ValueError, match=sentence):
        replace(synthetic, **change)
