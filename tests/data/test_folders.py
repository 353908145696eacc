"""Data sets from files: image folders of every kind, the archives known by name, and what may be wrong with them."""

import gzip
import pickle

import numpy
import pytest
import torch
from PIL import Image

from ddfast.data import load_dataset
from ddfast.data.archives import IMAGENET_SUBSETS
from ddfast.data.images import inspect_files, resized
from tests.pictures_for_tests import picture


@pytest.fixture
def folder(tmp_path):
    """Three classes of odd sizes and modes."""
    for k, name in enumerate(("ant", "bee", "cow")):
        for n in range(4):
            picture(tmp_path / "train" / name / f"{n}.png", (40 + 10 * n, 35 + 7 * k), value=60 * k + n)
        picture(tmp_path / "val" / name / "x.jpg", (90, 50), value=60 * k)
    picture(tmp_path / "train" / "cow" / "deep" / "er.WEBP", (33, 70), "RGBA")
    (tmp_path / "train" / "cow" / "notes.txt").write_text("no image")
    (tmp_path / "train" / ".hidden").mkdir()
    return tmp_path


def test_a_folder_of_any_sizes_becomes_squares_of_a_power_of_two(folder):
    data = load_dataset(folder)
    assert data.class_names == ("ant", "bee", "cow") and data.channels == 3
    assert data.image_size == (32, 32) and data.train_images.dtype == torch.uint8
    assert data.train_labels.bincount().tolist() == [4, 4, 5] and len(data.test_images) == 3
    assert data.train_images[:4, 0].float().mean().item() == pytest.approx(2, abs=3)  # class by class, file by file
    assert data.name == folder.name


def test_a_size_can_be_asked_for_and_images_be_cropped_instead_of_stretched(folder):
    assert load_dataset(str(folder), image_size=(24, 48)).image_size == (24, 48)
    image = torch.arange(64.0).view(1, 1, 4, 16) / 64
    cropped = resized(image, (4, 4), "crop")
    assert torch.equal(cropped, image[:, :, :, 6:10])
    spans = [(x[0, 0, 0, 3] - x[0, 0, 0, 0]).item() for x in (resized(image, (4, 4), "stretch"), cropped)]
    assert spans == pytest.approx([12 / 64, 3 / 64], rel=0.1)  # of the whole row, and of its middle


def test_one_size_that_all_have_is_kept_and_larger_ones_shrink_to_128(tmp_path):
    paths = [picture(tmp_path / f"{n}.png", (50, 40)) for n in range(3)]
    assert inspect_files(paths) == ((40, 50), 3)
    large = [picture(tmp_path / f"large{n}.png", (900, 700)) for n in range(2)]
    assert inspect_files(large) == ((128, 128), 3)
    tiny = [picture(tmp_path / "tiny.png", (5, 9)), picture(tmp_path / "tiny2.png", (9, 5))]
    assert inspect_files(tiny)[0] == (16, 16)


def test_grey_16_bit_palette_and_turned_images_are_read_as_they_look(tmp_path):
    for k in "ab":
        for part in ("train", "test"):
            picture(tmp_path / part / k / "1.png", (16, 16), "L")
            deep = numpy.full((16, 16), 0xC000 if k == "a" else 0x4000, dtype=numpy.uint16)
            Image.fromarray(deep).save(tmp_path / part / k / "2.png")
    data = load_dataset(tmp_path)
    assert data.channels == 1
    assert data.train_images[1].unique().tolist() == pytest.approx([0xC000 / 0xFFFF])
    assert data.train_images[3].unique().tolist() == pytest.approx([0x4000 / 0xFFFF])
    turned = Image.new("RGB", (30, 20), "black")
    turned.putpixel((0, 0), (255, 255, 255))
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by 90 degrees to the right
    turned.save(tmp_path / "train" / "a" / "3.png", exif=exif)
    picture(tmp_path / "train" / "b" / "3.png", (20, 30), "P")
    data = load_dataset(tmp_path, image_size=(30, 20))
    assert data.channels == 3 and data.train_images[2, 0, 0, 19] == 1


def test_images_larger_than_memory_lie_in_a_mapped_file_and_are_the_same(folder, monkeypatch):
    resident = load_dataset(folder)
    monkeypatch.setattr("ddfast.data.images.free_bytes", lambda device: 0)
    mapped = load_dataset(folder)
    assert torch.equal(mapped.train_images, resident.train_images)
    assert mapped.fingerprint == resident.fingerprint


def test_unreadable_images_are_named(folder):
    good = (folder / "train" / "bee" / "1.png").read_bytes()
    (folder / "train" / "bee" / "1.png").write_bytes(good[: len(good) // 2])
    (folder / "train" / "cow" / "2.png").write_bytes(b"no picture at all")
    with pytest.raises(ValueError, match=r"2 of 16 pictures cannot be read: .*bee/1.png \(.*; .*cow/2.png \("):
        load_dataset(folder)


def test_missing_parts_and_empty_or_unknown_classes_are_named(folder, tmp_path):
    with pytest.raises(ValueError, match=r"train: is one part of a data set \(train, val\); give "):
        load_dataset(folder / "train")
    with pytest.raises(FileNotFoundError, match=r"expected the folders train/ and test/ \(or val/\), .*found deep/"):
        load_dataset(folder / "train" / "cow")
    (folder / "train" / "dog").mkdir()
    with pytest.raises(ValueError, match="train: no images of class dog"):
        load_dataset(folder)
    (folder / "train" / "dog").rmdir()
    (folder / "val" / "eel").mkdir()
    with pytest.raises(ValueError, match="val: eel is no class of"):
        load_dataset(folder)
    (folder / "val" / "eel").rmdir()
    (folder / "val" / "bee" / "x.jpg").unlink()
    assert len(load_dataset(folder).test_images) == 2  # a class may lack test images


@pytest.mark.parametrize(
    "name, expected",
    [
        ("mnist", "MNIST/raw/{train,t10k}"),
        ("fashion-mnist", "FashionMNIST/raw/"),
        ("cifar10", "cifar-10-batches-py/"),
        ("CIFAR100", "cifar-100-python/{train,test,meta}"),
        ("svhn", "{train,test}_32x32.mat"),
        ("tiny_imagenet", "tiny-imagenet-200/train/<wnid>/images"),
        ("imagenette", "imagenette/{train,val}/<class>"),
        ("imagefruit", "imagenet/{train,val}/<class>"),
    ],
)
def test_a_named_set_that_is_not_there_says_which_files_are_expected_where(name, expected, tmp_path, monkeypatch):
    monkeypatch.setenv("DDFAST_DATA", str(tmp_path))
    with pytest.raises(FileNotFoundError) as caught:
        load_dataset(name)
    assert str(tmp_path) in str(caught.value) and expected in str(caught.value)
    assert not list(tmp_path.iterdir())


def test_subsets_come_from_their_own_folder_or_from_all_of_imagenet_in_the_same_order(tmp_path):
    wnids = [f"n{index:08d}" for index in range(1000)]
    indices = IMAGENET_SUBSETS["imagewoof"]
    for root, classes in (
        (tmp_path / "whole" / "imagenet", range(1000)),
        (tmp_path / "part" / "imagewoof2-160", indices),
    ):
        for index in classes:
            for part in ("train", "val"):
                file = root / part / wnids[index] / "a.png"
                file.parent.mkdir(parents=True)
                if index in indices:
                    picture(file, (12, 12), value=indices.index(index) * 20)
                else:
                    file.write_bytes(b"never read")
    whole, part = (load_dataset("imagewoof", data_root=tmp_path / which, image_size=16) for which in ("whole", "part"))
    assert whole.fingerprint == part.fingerprint and whole.class_names == part.class_names
    assert whole.class_names[0] == "Australian terrier" and whole.class_names[-1] == "Old English sheepdog"
    by_label = whole.train_images[whole.train_labels.argsort()]
    assert by_label[:, 0, 8, 8].tolist() == pytest.approx([20 * k for k in range(10)], abs=2)
    with pytest.raises(ValueError, match=r"expected the 10 classes of imagenette or .* found 3, such as a"):
        (tmp_path / "imagenette" / "val").mkdir(parents=True)
        for k in "abc":
            picture(tmp_path / "imagenette" / "train" / k / "1.png")
            picture(tmp_path / "imagenette" / "val" / k / "1.png")
        load_dataset("imagenette", data_root=tmp_path)


@pytest.mark.parametrize("layout", ["original", "by class"])
def test_tiny_imagenet_in_its_original_layout_and_sorted_by_class(tmp_path, layout):
    root = tmp_path / "tiny-imagenet-200"
    for k, wnid in enumerate(("n01", "n02")):
        for n in range(3):
            picture(root / "train" / wnid / "images" / f"{wnid}_{n}.JPEG", (64, 64), value=90 * k)
        if layout == "by class":
            picture(root / "val" / wnid / "images" / "v.JPEG", (64, 64), value=90 * k)
    if layout == "original":
        picture(root / "val" / "images" / "val_0.JPEG", (64, 64), value=90)
        picture(root / "val" / "images" / "val_1.JPEG", (64, 64), value=0)
        (root / "val" / "val_annotations.txt").write_text("val_0.JPEG\tn02\t0\t0\t9\t9\nval_1.JPEG\tn01\t0\t0\t9\t9\n")
    (root / "words.txt").write_text("n01\tgoldfish, Carassius auratus\nn02\ttench\nn03\tother\n")
    data = load_dataset("tiny-imagenet", data_root=tmp_path)
    assert data.class_names == ("goldfish", "tench") and data.image_size == (64, 64)
    assert data.train_labels.tolist() == [0, 0, 0, 1, 1, 1]
    assert data.test_labels.tolist() == ([1, 0] if layout == "original" else [0, 1])
    assert (
        data.name == "tiny-imagenet (6 + 2 images)"
        and "published for tiny-imagenet do not compare" in data.about["line"]
    )
    by_path = load_dataset(root)  # the classes by their folders, the same pictures
    assert by_path.class_names == ("n01", "n02") and torch.equal(by_path.test_images, data.test_images)
    brighter = data.test_images[:, 0].float().mean((1, 2))
    assert (brighter[data.test_labels == 1] > brighter[data.test_labels == 0]).all()


def test_cifar100_svhn_and_fashion_mnist_are_read_as_torchvision_has_them(tmp_path, monkeypatch):
    """Files in the archives' formats, a few images each; torchvision's checksums of them are not asked for."""
    from scipy.io import savemat
    from torchvision import datasets

    monkeypatch.setattr(datasets.CIFAR100, "_check_integrity", lambda self: True)
    monkeypatch.setattr("torchvision.datasets.cifar.check_integrity", lambda *a: True)
    monkeypatch.setattr("torchvision.datasets.svhn.check_integrity", lambda *a, **k: True)
    rng = numpy.random.default_rng(0)
    pixels = rng.integers(0, 256, (6, 3, 32, 32), dtype=numpy.uint8)
    cifar = tmp_path / "cifar-100-python"
    cifar.mkdir()
    for part in ("train", "test"):
        (cifar / part).write_bytes(pickle.dumps({"data": pixels.reshape(6, -1), "fine_labels": list(range(6))}))
    (cifar / "meta").write_bytes(pickle.dumps({"fine_label_names": list("abcdef")}))
    data = load_dataset("cifar100", data_root=tmp_path)
    assert numpy.array_equal(data.train_images.numpy(), pixels) and data.class_names == tuple("abcdef")
    for part in ("train", "test"):
        labels = numpy.array([[k % 10 + 1] for k in range(20)])  # 10 is the digit 0
        savemat(
            tmp_path / f"{part}_32x32.mat", {"X": numpy.tile(pixels[0].transpose(1, 2, 0)[..., None], 20), "y": labels}
        )
    data = load_dataset("svhn", data_root=tmp_path)
    assert numpy.array_equal(data.train_images[3].numpy(), pixels[0])
    assert data.train_labels[:10].tolist() == [1, 2, 3, 4, 5, 6, 7, 8, 9, 0]
    raw = tmp_path / "FashionMNIST" / "raw"
    raw.mkdir(parents=True)
    grey = rng.integers(0, 256, (20, 28, 28), dtype=numpy.uint8)
    for part in ("train", "t10k"):
        header = b"\0\0\x08\x03" + b"".join(n.to_bytes(4, "big") for n in grey.shape)
        (raw / f"{part}-images-idx3-ubyte").write_bytes(header + grey.tobytes())
        labels = (numpy.arange(20) % 10).astype(numpy.uint8)
        (raw / f"{part}-labels-idx1-ubyte").write_bytes(b"\0\0\x08\x01" + (20).to_bytes(4, "big") + labels.tobytes())
    data = load_dataset("fashion-mnist", data_root=tmp_path)
    assert numpy.array_equal(data.train_images[:, 0].numpy(), grey) and data.class_names[9] == "Ankle boot"
    assert data.preprocessing.mean == (0.2861,)
    for file in raw.glob("*-ubyte"):  # as they are published, in a folder that nothing is written to
        file.with_name(f"{file.name}.gz").write_bytes(gzip.compress(file.read_bytes()))
        file.unlink()
    packed = sorted(raw.iterdir())
    raw.chmod(0o500)
    try:
        assert load_dataset("fashion-mnist", data_root=tmp_path).fingerprint == data.fingerprint
        assert load_dataset("fashion-mnist", data_root=tmp_path).fingerprint == data.fingerprint
    finally:
        raw.chmod(0o700)
    assert sorted(raw.iterdir()) == packed
    packed[0].write_bytes(packed[0].read_bytes()[:-20])
    with pytest.raises(ValueError, match=r"ubyte.gz: damaged \(Compressed file ended"):
        load_dataset("fashion-mnist", data_root=tmp_path)


def test_a_download_without_internet_names_the_set_and_where_files_go(tmp_path, monkeypatch):
    def offline(*arguments, **options):
        raise OSError("<urlopen error [Errno -3] Temporary failure in name resolution>")

    monkeypatch.setattr("torchvision.datasets.mnist.download_and_extract_archive", offline)
    with pytest.raises(OSError, match=r"mnist: cannot be downloaded \(<urlopen .*\); put .*/MNIST/raw/.* by hand"):
        load_dataset("mnist", data_root=tmp_path, download=True)


def test_only_imagenette_among_the_subsets_can_be_downloaded(tmp_path):
    with pytest.raises(ValueError, match="imagewoof: cannot be downloaded, only imagenette can; expected"):
        load_dataset("imagewoof", data_root=tmp_path, download=True)
