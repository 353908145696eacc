"""Layouts of folders of pictures: what is for training and testing, what is left out, which data set a name means."""

import os
import shutil
from pathlib import Path

import pytest
import torch

from ddfast.data import load_dataset
from ddfast.data.archives import release, set_of_release
from tests.pictures_for_tests import classes, picture


@pytest.mark.parametrize(
    "train, test",
    [
        ("train", "test"),
        ("train", "val"),
        ("Train", "Valid"),
        ("training", "validation"),
        ("Training", "Testing"),
        ("TRAIN", "VAL"),
    ],
)
def test_training_and_test_folders_have_the_usual_names_in_any_case(tmp_path, train, test):
    classes(tmp_path / train, "abc", 4)
    classes(tmp_path / test, "abc", 2)
    data = load_dataset(tmp_path)
    assert (len(data.train_images), len(data.test_images)) == (12, 6)
    counts = f"12 training images ({train}/) and 6 test images ({test}/) of 3 classes, 16 × 20 px, 3 channels"
    assert data.about["line"] == f"{tmp_path.name}: {counts}, values 0–255"


def test_the_line_is_logged_once(tmp_path, caplog):
    caplog.set_level("INFO", "ddfast")
    data = load_dataset(classes(tmp_path, "ab", 5))
    assert [record.message for record in caplog.records] == [data.about["line"]]
    load_dataset(data)
    assert len(caplog.records) == 1
    for option in ({"test_folder": "val"}, {"value_range": (0, 4095)}):
        with pytest.raises(ValueError, match=f"{next(iter(option))}: expected with what is read now, got "):
            load_dataset(data, **option)


def test_of_test_and_val_the_first_is_read_unless_the_other_is_asked_for(tmp_path):
    classes(tmp_path / "train", "ab", 4)
    classes(tmp_path / "val", "ab", 1)
    classes(tmp_path / "test", "ab", 3)
    classes(tmp_path / "other" / "one", "ab", 2)
    data = load_dataset(tmp_path)
    assert len(data.test_images) == 6
    assert "val/ with 2 pictures skipped (test_folder val reads it)" in data.about["line"]
    assert "other folders skipped: other" in data.about["line"]
    for name in ("val", "VAL", Path("val"), "val/"):
        assert len(load_dataset(tmp_path, test_folder=name).test_images) == 2
    assert len(load_dataset(tmp_path, test_folder="other/one").test_images) == 4
    with pytest.raises(
        FileNotFoundError, match=r"test_folder: expected a folder in .* \(other/, test/, val/\), got 'tests'"
    ):
        load_dataset(tmp_path, test_folder="tests")
    with pytest.raises(ValueError, match="expected another folder than that of training"):
        load_dataset(tmp_path, test_folder="train")
    with pytest.raises(ValueError, match="test_folder: expected with a folder of pictures only"):
        load_dataset("digits", test_folder="val")


@pytest.mark.parametrize("test_set", ["loose pictures", "one folder that is no class", "empty class folders"])
def test_a_test_folder_without_classes_is_skipped_for_val(tmp_path, test_set):
    classes(tmp_path / "train", "ab", 4)
    classes(tmp_path / "val", "ab", 1)
    if test_set == "empty class folders":
        (tmp_path / "test" / "a").mkdir(parents=True)
    else:
        picture(tmp_path / "test" / ("1.png" if test_set == "loose pictures" else "images/1.png"))
    data = load_dataset(tmp_path)
    assert len(data.test_images) == 2
    assert "test/ skipped, which has no pictures in a folder per class" in data.about["line"]
    shutil.rmtree(tmp_path / "val")
    with pytest.raises(
        ValueError, match=r"test: expected pictures in a folder per class as in .*train \(a, b\), found"
    ):
        load_dataset(tmp_path)


def test_class_folders_match_in_any_case_and_encoding_of_their_letters(tmp_path):
    names = {"Caf\u00e9": "Cafe\u0301", "Cat": "cat", "dog": "dog"}  # as macOS writes it, and as others do
    for k, (train, test) in enumerate(names.items()):
        picture(tmp_path / "train" / train / "1.png", value=50 * k)
        picture(tmp_path / "test" / test / "1.png", value=50 * k)
    data = load_dataset(tmp_path)
    assert set(data.class_names) == set(names) and torch.equal(data.train_images, data.test_images)
    assert data.test_labels.tolist() == [0, 1, 2]
    picture(tmp_path / "test" / "Cat" / "2.png")
    with pytest.raises(ValueError, match="Cat and cat are the same class of"):
        load_dataset(tmp_path)
    shutil.rmtree(tmp_path / "test" / "Cat")
    for name in ("cow", "eel"):
        picture(tmp_path / "test" / name / "2.png")
    with pytest.raises(ValueError, match=r"test: cow, eel is no class of .*train, whose classes are "):
        load_dataset(tmp_path)


def test_names_that_are_not_utf8_and_the_home_folder_are_read(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    odd = os.fsdecode(b"f\xfcr")
    classes(tmp_path / "photos", ["a", odd], 5)
    assert load_dataset("~/photos").class_names == ("a", odd)


def test_two_folders_of_one_kind_are_refused(tmp_path):
    for name in ("train", "val", "validation"):
        classes(tmp_path / name, "ab")
    with pytest.raises(ValueError, match="val/ and validation/ mean the same; leave one of them"):
        load_dataset(tmp_path)
    with pytest.raises(FileNotFoundError, match="expected the folder train/ beside test/"):
        load_dataset(classes(tmp_path / "part" / "test", "ab").parent)


@pytest.mark.parametrize("within", ["", "train"])
def test_without_a_split_one_is_drawn_from_every_class_the_same_every_time(tmp_path, within):
    root = classes(tmp_path / "photos" / within, "abc", 11)
    for n in range(2, 11):
        (root / "c" / f"{n}.png").unlink()
    data = load_dataset(tmp_path / "photos")
    assert data.train_labels.bincount().tolist() == [9, 9, 1] and data.test_labels.bincount().tolist() == [2, 2, 1]
    assert "test images (drawn: 1 in 5 of each class, seed 0) of 3 classes" in data.about["line"]
    everything = torch.cat([data.train_images, data.test_images])
    assert len(everything.unique(dim=0)) == 24  # none is in both
    shutil.copytree(tmp_path / "photos", tmp_path / "elsewhere" / "copy")
    copy = load_dataset(tmp_path / "elsewhere" / "copy")
    assert copy.fingerprint == data.fingerprint and copy.test_fingerprint == data.test_fingerprint
    before = {bytes(image.numpy()) for image in data.test_images}
    picture(root / "a" / "more.png", value=255)
    after = {bytes(image.numpy()) for image in load_dataset(tmp_path / "photos").test_images}
    assert len(before & after) >= 4  # one more picture moves one at most


def test_a_class_of_one_picture_has_none_to_test_on_and_this_is_told(tmp_path):
    classes(tmp_path, "ab", 5)
    picture(tmp_path / "c" / "1.png")
    data = load_dataset(tmp_path)
    assert data.test_labels.tolist() == [0, 1] and "no test images of c" in data.about["line"]
    with pytest.raises(ValueError, match="at least two pictures of a class to draw a split from"):
        load_dataset(classes(tmp_path / "single", "ab", 1))


def test_folders_around_a_data_set_are_entered(tmp_path):
    classes(tmp_path / "photos" / "photos-main" / "train", "ab", 2)
    classes(tmp_path / "photos" / "photos-main" / "test", "ab", 1)
    picture(tmp_path / "photos" / "__MACOSX" / "._1.png")
    data = load_dataset(tmp_path / "photos")
    assert len(data.train_images) == 4 and data.name == "photos"
    assert "1 folder __MACOSX skipped" in data.about["line"]


def test_parts_of_unknown_names_are_not_taken_for_classes(tmp_path):
    classes(tmp_path / "seg_train", "abc")
    classes(tmp_path / "seg_test", "abc")
    with pytest.raises(
        ValueError, match=r"can be read as the classes seg_test, seg_train, or as parts with a, b, c in"
    ):
        load_dataset(tmp_path)
    for name in ("cat", "dog"):
        for part in ("train", "test"):
            picture(tmp_path / "by class" / name / part / "1.png")
    with pytest.raises(ValueError, match=r"can be read as the classes cat, dog, or as parts with test, train in each"):
        load_dataset(tmp_path / "by class")
    with pytest.raises(ValueError, match=r"seg_train: no images of class d"):
        (tmp_path / "seg_train" / "d").mkdir()
        load_dataset(tmp_path / "seg_train")


def test_what_is_no_folder_of_pictures_is_refused_in_one_sentence(tmp_path):
    picture(tmp_path / "loose" / "1.png")
    with pytest.raises(FileNotFoundError, match="a folder per class; found no folders"):
        load_dataset(tmp_path / "loose")
    (tmp_path / "arrays" / "a").mkdir(parents=True)
    (tmp_path / "arrays" / "b").mkdir()
    for n in range(3):
        (tmp_path / "arrays" / "a" / f"{n}.npy").write_bytes(b"array")
    with pytest.raises(ValueError, match=r"arrays: no images; 3 files are no pictures: .npy \(3\)"):
        load_dataset(tmp_path / "arrays")
    (tmp_path / "photos.zip").write_bytes(b"PK")
    with pytest.raises(ValueError, match=r"got the file .*photos.zip; unpack an archive first"):
        load_dataset(tmp_path / "photos.zip")
    with pytest.raises(FileNotFoundError, match=r"expected a folder of pictures, there is no .*nowhere"):
        load_dataset(tmp_path / "nowhere")


def test_junk_is_skipped_within_classes_and_as_classes_and_counted(tmp_path):
    classes(tmp_path / "train", "ab", 3)
    classes(tmp_path / "test", "ab", 1)
    for name in (".ipynb_checkpoints", "@eaDir", "__MACOSX"):
        picture(tmp_path / "train" / "a" / name / "1.png")
    for name in ("#recycle", "$RECYCLE.BIN", "lost+found", ".git"):
        picture(tmp_path / "train" / name / "1.png")
    picture(tmp_path / "train" / "b" / "._1.png")
    for name in ("Thumbs.db", ".DS_Store", "desktop.ini"):
        (tmp_path / "test" / "b" / name).write_bytes(b"junk")
    for n in range(7):
        (tmp_path / "train" / "a" / f"{n}.txt").write_text("a label")
    (tmp_path / "train" / "classes.CSV").write_text("a,b")
    picture(tmp_path / "train" / "overview.png")
    data = load_dataset(tmp_path)
    assert len(data.train_images) == 6 and len(data.test_images) == 2
    line = data.about["line"]
    assert (
        "4 hidden files and 7 folders #recycle, $RECYCLE.BIN, .git, .ipynb_checkpoints, @eaDir and 2 more skipped"
        in line
    )
    assert (
        "8 files are no pictures: .txt (7), .csv (1)" in line and "1 picture beside the class folders skipped" in line
    )


def test_links_are_followed_once_and_cycles_end(tmp_path):
    classes(tmp_path / "store", "xy", 4)
    classes(tmp_path / "data" / "train", "ab", 2)
    classes(tmp_path / "data" / "test", "ab", 1)
    a = tmp_path / "data" / "train" / "a"
    (a / "more").symlink_to(tmp_path / "store" / "x")
    (a / "again").symlink_to(tmp_path / "store" / "x")
    (a / "up").symlink_to(a)
    (a / "same.png").symlink_to(a / "0.png")
    (tmp_path / "data" / "train" / "b" / "one.png").symlink_to(tmp_path / "store" / "y" / "0.png")
    (tmp_path / "data" / "train" / "c").symlink_to(tmp_path / "store" / "y")
    with pytest.raises(ValueError, match=r"b/one.png and .*c/0.png are one file, linked into two classes"):
        load_dataset(tmp_path / "data")
    (tmp_path / "data" / "train" / "b" / "one.png").unlink()
    data = load_dataset(tmp_path / "data")
    assert data.train_labels.bincount().tolist() == [6, 2, 4]
    assert "3 links lead to what was read already" in data.about["line"]
    shutil.rmtree(tmp_path / "data" / "test")
    (tmp_path / "data" / "test").symlink_to(tmp_path / "data" / "train")
    assert "12 test pictures are links to training pictures" in load_dataset(tmp_path / "data").about["line"]


def test_pictures_of_whole_and_linked_folders_come_in_the_same_order(tmp_path):
    classes(tmp_path / "whole", "ab", 5)
    (tmp_path / "linked").mkdir()
    for name in "ab":
        (tmp_path / "linked" / name).symlink_to(tmp_path / "whole" / name)
    assert load_dataset(tmp_path / "linked").fingerprint == load_dataset(tmp_path / "whole").fingerprint


def test_a_path_is_always_a_folder_and_a_name_always_the_named_set(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    classes(Path("digits"), "ab", 5)
    for dataset in (Path("digits"), Path("./digits"), "./digits", "digits/", str(tmp_path / "digits")):
        own = load_dataset(dataset)
        assert own.num_classes == 2 and own.name == "digits/"  # not that of the set with published settings
    named = load_dataset("digits")
    assert named.num_classes == 10 and "the folder digits/ here is another: ./digits reads it" in named.about["line"]


def test_another_spelling_of_a_name_is_that_set_unless_a_folder_is_called_so(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert load_dataset("Digits").name == load_dataset("DIGITS").name == "digits"
    classes(Path("Digits"), "ab", 5)
    with pytest.raises(
        ValueError, match=r"'Digits' may be the data set digits or the folder; write digits or ./Digits"
    ):
        load_dataset("Digits")
    assert (
        load_dataset("./Digits").name == "Digits/"
        and load_dataset(classes(Path("imagenette2"), "ab", 5)).name == "imagenette2/"
    )
    for name, path in (
        ("CIFAR-10", "cifar-10-batches-py"),
        ("Fashion_MNIST", "FashionMNIST"),
        ("tinyImageNet", "tiny-"),
    ):
        with pytest.raises(FileNotFoundError, match=path):
            load_dataset(name, data_root=tmp_path)
    with pytest.raises(ValueError, match=r"got 'imagenete'; did you mean imagenette\?"):
        load_dataset("imagenete")


@pytest.mark.parametrize(
    "name, train, test, files, expected",
    [
        ("imagenette", 12894, 500, ["n01440764_10026.JPEG"], "imagenette"),
        ("imagenette", 9469, 3925, ["ILSVRC2012_val_00000293.JPEG"], "imagenette2"),
        ("imagenette", 9469, 3925, [], "imagenette2"),
        ("imagenette", 1500, 500, ["n01440764_10026.webp"], "imagenette (1500 + 500 images)"),
        ("imagenette", 1500, 500, ["ILSVRC2012_val_00000293.webp"], "imagenette2 (1500 + 500 images)"),
        ("imagewoof", 9025, 3929, [], "imagewoof2"),
        ("imagemeow", 13000, 500, [], "imagemeow"),
        ("imagemeow", 5000, 500, [], "imagemeow (5000 + 500 images)"),
        ("mnist", 60000, 10000, [], "mnist"),
        ("mnist", 10000, 60000, [], "mnist (10000 + 60000 images)"),
        ("svhn", 604388, 26032, [], "svhn (604388 + 26032 images)"),
        ("digits", 1437, 360, [], "digits"),
    ],
)
def test_another_release_than_the_published_one_has_a_name_of_its_own(name, train, test, files, expected):
    own, notes = release(name, train, test, [Path(file) for file in files])
    assert own == expected and bool(notes) == (own != name) and set_of_release(own) == name
    assert all(f"published for {name}" in note and "do not compare" in note for note in notes)


def test_several_folders_of_a_subset_are_told(tmp_path):
    for folder in ("imagenette", "imagenette2-160"):
        for part in ("train", "val"):
            for n in range(10):
                picture(tmp_path / folder / part / f"n{n:08d}" / "1.png", value=20 * n)
    data = load_dataset("imagenette", data_root=tmp_path, image_size=16)
    assert data.name == "imagenette (10 + 10 images)"
    assert "(imagenette/train/)" in data.about["line"] and "imagenette2-160 beside it not read" in data.about["line"]


def test_a_folder_of_many_pictures_lists_each_once_whatever_the_order_of_the_disk(tmp_path, monkeypatch):
    classes(tmp_path, "ab", 12)
    data, scandir = load_dataset(tmp_path), os.scandir

    class Reversed:
        def __init__(self, path):
            self.entries = sorted(scandir(path), key=lambda entry: entry.name, reverse=True)

        def __enter__(self):
            return self.entries

        def __exit__(self, *error):
            pass

    monkeypatch.setattr("ddfast.data.listing.os.scandir", Reversed)
    assert load_dataset(tmp_path).fingerprint == data.fingerprint
