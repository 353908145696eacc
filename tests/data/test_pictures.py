"""Pictures of every format and depth, damaged ones, and what is told of them."""

import errno
import io
import json
import os
from pathlib import Path

import numpy
import pytest
import tifffile
import torch
import torchvision
from PIL import Image

from ddfast.data import Preprocessing, SyntheticSet, images, load_dataset
from ddfast.data.images import read_files, read_pictures
from ddfast.evaluation import data_for
from ddfast.run.expert_options import expert_options
from ddfast.run.resolve import resolve
from ddfast.run.resume import resolve_resumed
from tests.pictures_for_tests import array_picture, classes, deep_png, picture

SIZE = (16, 16)
RAMP = numpy.arange(256).reshape(SIZE)  # every value of 8 bits once


def folder_of(root, write, parts=("train", "test"), count=2):
    """Two classes of pictures that `write(path without ending, number)` makes."""
    for part in parts:
        for k, name in enumerate("ab"):
            for n in range(count):
                (root / part / name).mkdir(parents=True, exist_ok=True)
                write(root / part / name / f"{n}", 2 * k + n)
    return root


def line_of(data) -> str:
    return data.about["line"]


@pytest.mark.parametrize("bits", [10, 12, 14, 16])
def test_integers_in_a_container_of_16_bits_keep_every_step(tmp_path, bits):
    top = 2**bits - 1
    steps = (RAMP * (top // 255)).astype("uint16")
    steps[-1, -1] = top
    folder_of(tmp_path, lambda path, n: array_picture(path.with_suffix(".png"), numpy.roll(steps, n)))
    data = load_dataset(tmp_path)
    assert data.train_images.dtype == torch.float32 and data.preprocessing.value_range == (0, top)
    assert torch.equal(data.train_images[0, 0], torch.from_numpy(steps.astype("float32")) / top)
    assert len(data.train_images[0].unique()) == 256
    assert f"values 0–{top}" in line_of(data) and ("bits" in line_of(data)) == (bits < 16)


def test_the_range_is_that_of_training_and_test_pictures_together(tmp_path):
    def write(path, n):
        top = 60000 if path.parts[-3] == "test" else 900
        array_picture(path.with_suffix(".tif"), (RAMP * (top // 256) + n).astype("uint16"))

    data = load_dataset(folder_of(tmp_path, write))
    assert data.preprocessing.value_range == (0, 65535) and data.test_images.max() > 0.9
    assert "values 0–65535, which reach from 0 to " in line_of(data)
    given = load_dataset(tmp_path, value_range=(0, 1023))
    assert "values from 0 to 59673, cut off at the range" in line_of(given) and given.test_images.max() == 1
    assert given.train_images.max() == pytest.approx((255 * 3 + 3) / 1023)


@pytest.mark.parametrize(
    "kind, values, value_range",
    [
        ("float32", RAMP / 255, (0, 1)),
        ("float32", RAMP * 1e-3 - 0.1, (-0.1, 0.155)),
        ("float64", RAMP / 255, (0, 1)),
        ("float16", RAMP / 512, (0, 1)),
        ("int16", RAMP * 10 - 1000, (-1000, 1553)),
        ("int8", numpy.clip(RAMP - 128, -128, 124), (-128, 127)),
        ("int32", RAMP * 4000, (0, 255 * 4000 + 3)),
        ("uint32", RAMP * 2**23 + 2**31, (2**31, 255 * 2**23 + 2**31 + 3)),
    ],
)
def test_tiffs_of_floats_and_signed_numbers_keep_their_precision(tmp_path, kind, values, value_range):

    def write(path, n):
        more = n if numpy.dtype(kind).kind in "iu" else 0
        tifffile.imwrite(path.with_suffix(".tiff"), (values + more).astype(kind))

    data = load_dataset(folder_of(tmp_path, write))
    assert data.preprocessing.value_range == pytest.approx(value_range, rel=1e-6)
    low, high = value_range
    expected = torch.from_numpy((values - low) / (high - low)).float()
    torch.testing.assert_close(data.train_images[0, 0], expected, rtol=0, atol=2e-3 if kind == "float16" else 1e-6)


@pytest.mark.parametrize("kind", ["uint8", "uint16"])
def test_a_tiff_in_which_0_is_white_is_read_as_it_looks(tmp_path, kind):
    top = numpy.iinfo(kind).max
    tifffile.imwrite(tmp_path / "1.tif", (RAMP * (top // 255)).astype(kind), photometric="miniswhite")
    image = read_files([tmp_path / "1.tif"], SIZE, 1)[0, 0] / (255 if kind == "uint8" else 1)
    torch.testing.assert_close(image, 1 - torch.from_numpy(RAMP).float() / 255)


def test_the_thumbnail_in_a_cameras_raw_file_is_no_picture(tmp_path):
    classes(tmp_path, "ab")
    picture(tmp_path / "a" / "1.tif").rename(tmp_path / "a" / "1.DNG")
    data = load_dataset(tmp_path)
    assert len(data.train_images) + len(data.test_images) == 6 and "1 file is no picture: .dng (1)" in line_of(data)


def test_16_bits_of_several_channels_are_read_from_png_and_tiff(tmp_path):
    colours = (numpy.arange(16 * 16 * 3).reshape(16, 16, 3) * 85).astype("uint16")
    deep_png(tmp_path / "1.png", colours)
    tifffile.imwrite(tmp_path / "2.tif", colours, photometric="rgb")
    tifffile.imwrite(tmp_path / "3.tif", colours.transpose(2, 0, 1), photometric="rgb", planarconfig="separate")
    opaque = numpy.concatenate([colours, numpy.full((16, 16, 1), 65535, "uint16")], 2)
    deep_png(tmp_path / "4.png", opaque)
    images = read_files(sorted(tmp_path.iterdir()), SIZE, 3)
    for image in images:
        assert torch.equal(image, torch.from_numpy(colours.transpose(2, 0, 1).astype("float32")) / 65535)
    see_through = opaque.copy()
    see_through[..., 3] = 0
    deep_png(tmp_path / "5.png", see_through)
    deep_png(tmp_path / "6.png", numpy.stack([colours[..., 0], see_through[..., 3]], 2))
    pictures = read_pictures([[tmp_path / "5.png", tmp_path / "6.png"]], SIZE)
    assert (pictures.images[0] == 1).all() and "2 pictures with transparency over white" in pictures.notes


def test_pictures_of_8_bits_beside_deeper_ones_keep_their_own_range(tmp_path):
    def write(path, n):
        if n % 2:
            array_picture(path.with_suffix(".png"), RAMP.astype("uint8"))
        else:
            array_picture(path.with_suffix(".png"), (RAMP * 16).astype("uint16"))

    data = load_dataset(folder_of(tmp_path, write))
    assert data.preprocessing.value_range == (0, 4095)
    torch.testing.assert_close(data.train_images[0], data.train_images[1], rtol=0, atol=1e-2)
    assert data.train_images[1].max() == 1 and "4 pictures of 8 bits read as 0–255" in line_of(data)


def test_floats_beside_integers_are_refused_until_a_range_is_given(tmp_path):
    def write(path, n):
        array_picture(path.with_suffix(".tif"), (RAMP * 200).astype("uint16") if n else (RAMP / 255).astype("float32"))

    with pytest.raises(
        ValueError, match=r"value_range: expected pictures of one kind; .* 0 to 51000 and floats of 0 to 1"
    ):
        load_dataset(folder_of(tmp_path, write))
    assert load_dataset(tmp_path, value_range=(0, 65535)).preprocessing.value_range == (0, 65535)


@pytest.mark.parametrize("value_range", [(1, 0), (0,), "0..1", (0, float("inf")), (float("nan"), 1), 3])
def test_what_is_no_range_is_refused(tmp_path, value_range):
    with pytest.raises(ValueError, match="value_range: expected auto, or the values of black and white"):
        load_dataset(classes(tmp_path, "ab"), value_range=value_range)


def test_a_set_of_deep_pictures_is_evaluated_on_pictures_that_are_read_like_its_own(tmp_path):
    folder_of(tmp_path, lambda path, n: array_picture(path.with_suffix(".png"), (RAMP * 16 + n).astype("uint16")))
    data = load_dataset(tmp_path)
    described = Preprocessing.described(data.preprocessing.describe())
    assert described == data.preprocessing and described.value_range == (0, 4095)
    labels = torch.arange(2)
    synthetic = SyntheticSet(torch.randn(2, 1, 16, 16), labels, torch.tensor(0.1), data.class_names, described)
    array_picture(tmp_path / "test" / "a" / "bright.png", (RAMP * 256).astype("uint16"))
    assert load_dataset(tmp_path).preprocessing.value_range == (0, 65535)
    again = data_for(synthetic, tmp_path)
    assert again.preprocessing == described and torch.equal(again.train_images, data.train_images)
    with pytest.raises(ValueError, match=r"was read with values 0–65535, the set was made with 0–4095"):
        data_for(synthetic, load_dataset(tmp_path))
    assert "value_range" not in load_dataset("digits").preprocessing.describe()  # as sets and experts have it


@pytest.mark.parametrize(
    "ending, format, options",
    [
        ("jpg", "JPEG", {"quality": 95}),
        ("JFIF", "JPEG", {"quality": 95}),
        ("gif", "GIF", {}),
        ("webp", "WEBP", {"lossless": True}),
        ("bmp", "BMP", {}),
        ("TIFF", "TIFF", {}),
        ("pgm", "PPM", {}),
        ("ppm", "PPM", {}),
        ("jp2", "JPEG2000", {}),
        ("tga", "TGA", {}),
        ("png", "BMP", {}),  # by its content, whatever the ending says
        ("dat", "PNG", {}),
        ("", "JPEG", {"quality": 95}),
    ],
)
def test_every_format_is_read_whatever_its_ending(tmp_path, ending, format, options):
    def write(path, n):
        pixels = numpy.roll(RAMP, 40 * n).astype("uint8")
        encoded = io.BytesIO()
        Image.fromarray(pixels).convert("RGB" if ending == "ppm" else "L").save(encoded, format, **options)
        path.with_name(f"{n}.{ending}".rstrip(".")).write_bytes(encoded.getvalue())
        picture(path.with_name(f"beside{n}.png"), SIZE, "L")

    data = load_dataset(folder_of(tmp_path, write))
    assert len(data.train_images) == 8 and data.channels == (3 if ending in ("ppm", "webp") else 1)
    error = (data.train_images[0, 0].int() - torch.from_numpy(RAMP)).abs().float().mean()
    assert error < (8 if format == "JPEG" else 0.01)


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "YCbCr", "I", "F"])
def test_a_picture_of_every_mode_looks_the_same(tmp_path, mode):
    grey = numpy.where(RAMP % 2, 255, 0).astype("uint8")
    image = Image.fromarray(grey)
    image = image.convert("RGB").convert(mode) if mode in ("CMYK", "YCbCr", "P") else image.convert(mode)
    if mode == "F":
        image = Image.fromarray(grey.astype("float32") / 255)
    image.save(tmp_path / "1.tif")
    pictures = read_pictures([[tmp_path / "1.tif"]])
    values = pictures.images[0][0, 0].float() / (1 if pictures.images[0].dtype == torch.float32 else 255)
    torch.testing.assert_close(values, torch.from_numpy(grey).float() / 255, rtol=0, atol=0.01)


def test_what_is_see_through_lies_over_white_and_this_is_told(tmp_path):
    hidden = Image.new("RGBA", SIZE, (200, 0, 0, 0))  # red that nobody sees
    hidden.save(tmp_path / "1.png")
    Image.new("RGBA", SIZE, (200, 0, 0, 255)).save(tmp_path / "2.png")
    palette = Image.new("P", SIZE, 1)
    palette.putpalette([0, 0, 0, 0, 0, 255])
    palette.save(tmp_path / "3.png", transparency=1)
    Image.new("RGB", SIZE, (9, 9, 9)).save(tmp_path / "4.png", transparency=(9, 9, 9))
    pictures = read_pictures([sorted(tmp_path.iterdir())])
    assert pictures.images[0][:, 1, 3, 3].tolist() == [255, 0, 255, 255]
    assert pictures.notes == ["3 pictures with transparency over white"]


def test_of_animations_and_pages_the_first_is_read_and_this_is_told(tmp_path):
    frames = [Image.new("L", SIZE, value) for value in (10, 200)]
    frames[0].save(tmp_path / "1.gif", save_all=True, append_images=frames[1:])
    frames[0].save(tmp_path / "2.tif", save_all=True, append_images=frames[1:])
    pictures = read_pictures([sorted(tmp_path.iterdir())])
    assert pictures.images[0].unique().tolist() == [10]
    assert pictures.notes == ["2 files of several frames or pages: the first is read"]


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("ending", ["jpg", "png", "webp", "tif", "deep.tif"])
def test_pictures_are_turned_as_their_exif_says_and_so_is_their_size(tmp_path, ending, orientation):
    image = Image.new("RGB", (24, 16), "black")
    image.paste("white", (0, 0, 8, 8))  # top left
    exif = Image.Exif()
    exif[0x0112] = orientation
    file = tmp_path / f"1.{ending}"
    if ending == "deep.tif":
        deep = numpy.asarray(image).astype("uint16") * 257
        tifffile.imwrite(file, deep, photometric="rgb", extratags=[(274, "H", 1, orientation, True)])
    else:
        image.save(file, exif=exif)
    pictures = read_pictures([[file]]).images[0][0]
    assert pictures.shape[1:] == ((24, 16) if orientation > 4 else (16, 24))
    corners = [pictures[0, y, x] > pictures.max() / 2 for y, x in ((2, 2), (2, -3), (-3, -3), (-3, 2))]
    assert corners.index(True) == (0, 1, 2, 3, 0, 1, 2, 3)[orientation - 1] and sum(corners) == 1


def test_all_pictures_that_cannot_be_read_are_named_at_once_and_skipped_if_asked(tmp_path):
    classes(tmp_path / "train", "ab", count=6)
    classes(tmp_path / "test", "ab", count=2)
    good = (tmp_path / "train" / "a" / "1.png").read_bytes()
    (tmp_path / "train" / "a" / "1.png").write_bytes(good[: len(good) // 2])
    (tmp_path / "train" / "b" / "2.png").write_bytes(b"")
    (tmp_path / "train" / "b" / "3.jpg").write_bytes(b"<html>not found</html>")
    (tmp_path / "train" / "b" / "4.png").unlink()
    (tmp_path / "train" / "b" / "4.png").symlink_to(tmp_path / "nowhere.png")
    (tmp_path / "test" / "a" / "0.png").write_bytes(good[:-30])
    sentence = (
        r"^5 of 17 pictures cannot be read: .*a/1.png \(.*b/2.png \(not a picture\); .*b/3.jpg .*b/4.png .*test/a/0.png"
    )
    with pytest.raises(ValueError, match=sentence + ".*; delete or mend them, or give skip_unreadable$"):
        load_dataset(tmp_path)
    data = load_dataset(tmp_path, skip_unreadable=True)
    assert data.train_labels.bincount().tolist() == [5, 4] and len(data.test_images) == 3
    assert data.train_images[:, 0, 8, 8].tolist() == [20, 22, 23, 24, 25, 50, 51, 53, 55]  # each with its own label
    assert "5 unreadable pictures skipped" in line_of(data) and len(data.about["skipped"]) == 5


def test_of_many_unreadable_pictures_twenty_are_named(tmp_path):
    classes(tmp_path, "ab", count=3)
    for n in range(30):
        (tmp_path / "a" / f"broken{n:02d}.png").write_bytes(b"broken")
    with pytest.raises(ValueError, match=r"30 of 36 .*broken") as caught:
        load_dataset(tmp_path)
    assert str(caught.value).count("broken") == 20 and "and 10 more" in str(caught.value)


def test_a_class_that_is_all_unreadable_is_refused(tmp_path):
    classes(tmp_path / "train", "ab")
    classes(tmp_path / "test", "ab")
    for file in (tmp_path / "train" / "b").iterdir():
        file.write_bytes(b"broken")
    with pytest.raises(ValueError, match="no training picture of class b can be read"):
        load_dataset(tmp_path, skip_unreadable=True)


def test_bombs_floats_that_are_not_finite_and_files_without_permission_are_unreadable(tmp_path, monkeypatch):
    classes(tmp_path, "ab")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 5000)
    Image.new("L", (200, 200)).save(tmp_path / "a" / "bomb.png")
    array_picture(tmp_path / "a" / "nan.tif", numpy.full(SIZE, numpy.nan, "float32"))
    forbidden = picture(tmp_path / "b" / "forbidden.png")
    forbidden.chmod(0)
    expected = ["bomb", "values that are not finite"] + ["Permission denied"] * (os.getuid() != 0)
    with pytest.raises(ValueError, match=f"^{len(expected)} of 9 ") as caught:
        load_dataset(tmp_path)
    assert all(word in str(caught.value) for word in expected)


SHORTAGES = {
    "memory": MemoryError(),
    "memory, in the system's words": OSError(errno.ENOMEM, "Cannot allocate memory"),
    "handles": OSError(errno.EMFILE, "Too many open files"),
}


@pytest.mark.parametrize("fails_in", ["read_header", "read_pixels"])
@pytest.mark.parametrize("lacks", SHORTAGES)
def test_no_picture_is_left_out_for_a_lack_of_memory_or_handles(tmp_path, monkeypatch, lacks, fails_in):
    classes(tmp_path, "ab")
    read, calls = getattr(images, fails_in), []

    def fails_once(file, *args):
        calls.append(file)
        if len(calls) == 3:
            raise SHORTAGES[lacks]
        return read(file, *args)

    monkeypatch.setattr(images, fails_in, fails_once)
    monkeypatch.setattr("ddfast.runtime.files.free_bytes", lambda device: 2**20)
    with pytest.raises(MemoryError if "memory" in lacks else OSError) as found:
        load_dataset(tmp_path, skip_unreadable=True)
    assert str(found.value).startswith(f"{tmp_path}/")


def test_a_file_of_another_ending_is_not_left_out_for_a_lack_of_handles(tmp_path, monkeypatch):
    classes(tmp_path, "ab")
    picture(tmp_path / "a" / "photo.png").rename(tmp_path / "a" / "photo.x")
    opened = Image.open

    def fails(file, *args, **kwargs):
        if str(file).endswith(".x"):
            raise SHORTAGES["handles"]
        return opened(file, *args, **kwargs)

    monkeypatch.setattr(Image, "open", fails)
    with pytest.raises(OSError, match=r"photo\.x: cannot be read .Too many open files"):
        load_dataset(tmp_path)


def test_a_picture_on_a_bad_spot_of_the_disk_may_be_skipped(tmp_path, monkeypatch):
    classes(tmp_path, "ab")
    read, bad = images.read_pixels, sorted((tmp_path / "a").iterdir())[0]

    def fails(file, *args):
        if file == bad:
            raise OSError(errno.EIO, "Input/output error")
        return read(file, *args)

    monkeypatch.setattr(images, "read_pixels", fails)
    assert load_dataset(tmp_path, skip_unreadable=True).about["skipped"] == [f"{bad} (Input/output error)"]


@pytest.mark.parametrize("error", [MemoryError(), RuntimeError("DefaultCPUAllocator: can't allocate memory")])
@pytest.mark.parametrize("name, cls", [("mnist", "MNIST"), ("cifar10", "CIFAR10"), ("svhn", "SVHN")])
def test_a_named_set_that_memory_does_not_hold_is_not_called_damaged(tmp_path, monkeypatch, name, cls, error):
    def fails(*_, **__):
        raise error

    monkeypatch.setattr(torchvision.datasets, cls, fails)
    with pytest.raises(MemoryError, match=f"^{name}: memory ran out while it was read$"):
        load_dataset(name, data_root=tmp_path)


def test_pictures_in_a_pair_keep_16_bits_too():
    deep = [(Image.fromarray((RAMP * 200 + n).astype("uint16")), n % 2) for n in range(4)]
    data = load_dataset((deep, deep))
    assert data.train_images.dtype == torch.float32 and len(data.train_images[0].unique()) == 256


def test_deep_pictures_larger_than_memory_lie_in_a_mapped_file_and_are_the_same(tmp_path, monkeypatch):
    folder_of(tmp_path, lambda path, n: array_picture(path.with_suffix(".png"), (RAMP * 16 + n).astype("uint16")))
    picture(tmp_path / "train" / "a" / "broken.png").write_bytes(b"broken")
    resident = load_dataset(tmp_path, skip_unreadable=True)
    monkeypatch.setattr("ddfast.data.images.free_bytes", lambda device: 0)
    assert load_dataset(tmp_path, skip_unreadable=True).fingerprint == resident.fingerprint


def test_a_run_records_how_its_pictures_were_read_and_is_resumed_with_it(tmp_path, caplog):
    caplog.set_level("WARNING", "ddfast")
    root = folder_of(
        tmp_path / "photos",
        lambda path, n: array_picture(path.with_suffix(".png"), (RAMP * 4 + n).astype("uint16")),
        ("train", "test", "val"),
    )
    picture(root / "val" / "a" / "broken.png").write_bytes(b"broken")
    given = {"dataset": str(root), "test_folder": Path("val"), "value_range": (0, 2047), "skip_unreadable": True}
    config = json.loads(json.dumps(resolve(given | {"device": "cpu"}).config))
    assert (config["test_folder"], config["value_range"], config["skip_unreadable"]) == ("val", [0, 2047], True)
    assert (
        config["data"]["sources"] == ["train/", "val/"] and "broken.png (not a picture)" in config["data"]["skipped"][0]
    )
    experts = expert_options(str(root), 1, None, None, {name: given[name] for name in given if name != "dataset"})
    assert experts["dataset"].test_fingerprint == config["test_fingerprint"]
    assert experts["dataset"].preprocessing.describe() == config["preprocessing"]
    with pytest.raises(ValueError, match=r"test_folder: the run in .* has 'val', got 'test'"):
        resolve_resumed(config, {"test_folder": "test"}, tmp_path)
    again = resolve_resumed(config, {"value_range": (0, 2047)}, tmp_path)
    assert again.config["preprocessing"] == config["preprocessing"] and not caplog.records


def test_a_run_is_resumed_with_the_range_it_found_and_new_test_pictures_are_told(tmp_path, caplog):
    root = folder_of(tmp_path, lambda path, n: array_picture(path.with_suffix(".png"), (RAMP * 4 + n).astype("uint16")))
    config = json.loads(json.dumps(resolve({"dataset": root, "value_range": "auto", "device": "cpu"}).config))
    assert config["value_range"] is None and config["preprocessing"]["value_range"] == [0, 1023]
    array_picture(root / "test" / "a" / "bright.png", (RAMP * 256).astype("uint16"))
    job = resolve_resumed(config, {}, tmp_path)
    assert job.data.preprocessing.value_range == (0, 1023) and job.data.fingerprint == config["fingerprint"]
    assert "the test images differ from those of the run in" in caplog.text
