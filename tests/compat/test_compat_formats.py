"""The files of DC, IDC, NCFM, FTD, DATM, KIP and SRe2L, as their code writes them: recognised by what they hold."""

import json
import math
import os
import pickle
import zipfile
from dataclasses import replace
from pathlib import Path

import numpy
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor
from torch.nn.functional import one_hot

import ddfast
from ddfast import SyntheticSet, compat
from ddfast.compat.dc import network_of
from ddfast.compat.idc import decoded
from ddfast.compat.labels import as_labels
from ddfast.data.augment import FULL_STRATEGY
from tests.compat.test_compat_sets import command, contents, same
from tests.conftest import normal
from tests.conftest import uniform as uniform_from_a_tenth


def uniform(*shape: int, seed: int = 0) -> Tensor:
    """Pixels of 0 to 1."""
    return uniform_from_a_tenth(*shape, seed=seed) - 0.1


@pytest.fixture(scope="module")
def digits():
    return ddfast.load_dataset("digits")


def made(digits, soft: bool = False, **other) -> SyntheticSet:
    labels = normal(20, 10).float() if soft else torch.arange(10).repeat_interleave(2)
    about = digits.class_names, digits.preprocessing, FULL_STRATEGY
    return replace(SyntheticSet(normal(20, 1, 16, 16).float(), labels, torch.tensor(0.01), *about), **other)


def result_of_dc(experiments: int = 3) -> dict:
    """As DC's code saves it: accuracies are numbers of numpy."""
    data = [[normal(20, 1, 16, 16, seed=n).float(), torch.arange(10).repeat_interleave(2)] for n in range(experiments)]
    return {"data": data, "accs_all_exps": {"ConvNet": [numpy.float64(0.5), numpy.float32(0.25)], "n": numpy.int64(3)}}


def test_every_experiment_of_dc_is_read_and_the_first_by_default(tmp_path, digits, caplog):
    caplog.set_level("INFO", "ddfast")
    file, whole = tmp_path / "res_DSA_CIFAR10_ConvNetD4_2ipc.pt", result_of_dc()
    torch.save(whole, file)
    assert compat.recognise(file) == compat.recognise(tmp_path) == "dc"
    compat.convert(file, tmp_path / "first", dataset="digits")
    first = SyntheticSet.load(tmp_path / "first")
    assert first.images.equal(whole["data"][0][0]) and first.labels.equal(whole["data"][0][1])
    assert (float(first.lr), first.dsa_strategy, first.network) == (
        pytest.approx(0.01),
        f"dsa:{FULL_STRATEGY}",
        "convnet:depth=4",
    )
    assert "3 experiments, the first is read; --experiment 0 to 2, or all" in caplog.text
    assert "dsa_strategy dsa:color_crop_cutout_flip_scale_rotate, as its name" in caplog.text
    done = command("convert", str(file), str(tmp_path / "all"), "--dataset", "digits", "--experiment", "all")
    assert done.exit_code == 0, done.output
    for n in range(3):
        assert SyntheticSet.load(tmp_path / "all" / f"experiment_{n}").images.equal(whole["data"][n][0])
    for wrong in (3, -1, True):
        with pytest.raises(ValueError, match=r"experiment: expected one from 0 to 2 of .*ipc\.pt, got"):
            compat.read_dc(file, digits, experiment=wrong)


def test_numbers_of_an_older_numpy_are_read(tmp_path, digits):
    torch.save(result_of_dc(), tmp_path / "new.pt")
    with zipfile.ZipFile(tmp_path / "new.pt") as new, zipfile.ZipFile(tmp_path / "old.pt", "w") as old:
        for entry in new.infolist():
            old.writestr(entry, new.read(entry).replace(b"numpy._core", b"numpy.core"))
    assert b"numpy.core" in (tmp_path / "old.pt").read_bytes()
    assert compat.read_dc(tmp_path / "old.pt", digits).images.equal(result_of_dc()["data"][0][0])


@pytest.mark.parametrize(
    ("name", "wanted"),
    [
        ("ConvNet", "convnet"),
        ("ConvNetD5", "convnet:depth=5"),
        ("ConvNetW256", "convnet:width=256"),
        ("ConvNetBN", "convnet:norm=batchnorm"),
        ("ConvNetNN", "convnet:norm=none"),
        ("ConvNetAS", None),
        ("ResNet18", None),
    ],
)
def test_names_of_models_become_names_of_networks(name, wanted, digits):
    assert network_of(name) == wanted


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("res_DC_MNIST_ConvNet_1ipc.pt", ("mnist", "convnet:first_padding=3", "dc:crop_scale_rotate")),
        ("res_DC_CIFAR10_ConvNet_1ipc.pt", ("cifar10", "convnet", "none")),
        ("res_DC_MNIST_ConvNetBN_1ipc.pt", ("mnist", "convnet:norm=batchnorm:first_padding=3", "dc:crop_noise")),
        ("res_DM_CIFAR100_ConvNetBN_10ipc.pt", ("cifar100", "convnet:norm=batchnorm", f"dsa:{FULL_STRATEGY}")),
        ("res_DM_TinyImageNet_ResNet18_10ipc.pt", ("tiny-imagenet", None, f"dsa:{FULL_STRATEGY}")),
        ("mine.pt", (None, None, None)),
    ],
)
def test_the_name_of_a_result_of_dc_says_what_it_was_made_with(name, said):
    hints = compat.dc.hints(Path(name))
    assert tuple(hints.get(key) for key in ("dataset", "network", "dsa_strategy")) == said


@pytest.mark.parametrize("name", ["dc.pt", "file.npz", "file.safetensors", "tensors.pt"])
@pytest.mark.parametrize("soft", [False, True])
def test_a_set_survives_a_single_file_exactly(name, soft, tmp_path, digits):
    format = {"dc.pt": "dc", "tensors.pt": "tensors"}.get(name, name[5:])
    wanted = made(digits, soft, network="convnet:width=4")
    if name == "file.npz":  # values that look like pixels are still what they were
        wanted = replace(wanted, images=uniform(20, 1, 16, 16).float())
    wanted.save(tmp_path / "set")
    if soft and format == "dc":
        with pytest.raises(
            ValueError, match="a file of DC's code holds classes, and the set's labels are soft; labels="
        ):
            compat.convert(tmp_path / "set", tmp_path / name, format)
        compat.convert(tmp_path / "set", tmp_path / name, format, labels="classes")
        wanted = replace(wanted, labels=wanted.classes)
    else:
        done = command("convert", str(tmp_path / "set"), str(tmp_path / name), "--to", format)
        assert done.exit_code == 0, done.output
    assert compat.recognise(tmp_path / name) == format
    read = {"dataset": "digits", "zca": False, "network": "convnet:width=4"}
    compat.convert(tmp_path / name, tmp_path / "again", **read)
    assert same(SyntheticSet.load(tmp_path / "again"), wanted)
    before = (tmp_path / name).read_bytes()
    compat.convert(tmp_path / "again", tmp_path / name, format)  # the same bytes, so nothing to do
    assert (tmp_path / name).read_bytes() == before
    replace(wanted, images=wanted.images + 1).save(tmp_path / "other")
    with pytest.raises(FileExistsError, match="exists with different contents"):
        compat.convert(tmp_path / "other", tmp_path / name, format)
    with pytest.raises(ValueError, match="expected a name that ends in"):
        compat.convert(tmp_path / "again", tmp_path / "folder", format)


def tiles_one_by_one(images: Tensor, labels: Tensor, factor: int) -> tuple[list[Tensor], list[int]]:
    """The tiles of IDC's decoding, each cut and enlarged by itself: by class, then by place, then by image."""
    side = math.ceil(images.shape[-1] / factor)
    enlarge = torch.nn.Upsample(size=tuple(images.shape[2:]), mode="bilinear")
    found, classes = [], []
    for k in labels.unique():
        for row in range(factor):
            for column in range(factor):
                for image in images[labels == k]:
                    whole = torch.full((image.shape[0], factor * side, factor * side), 0.5)
                    whole[:, : image.shape[1], : image.shape[2]] = image
                    tile = whole[:, row * side : (row + 1) * side, column * side : (column + 1) * side]
                    found.append(enlarge(tile[None])[0])
                    classes.append(int(k))
    return found, classes


@pytest.mark.parametrize("factor", [1, 2, 3])
def test_tiles_of_idc_are_decoded_as_one_by_one(factor):
    images, labels = uniform(6, 3, 16, 16).float(), torch.tensor([0, 0, 1, 1, 2, 2])
    wanted, classes = tiles_one_by_one(images, labels, factor)
    got, of_classes = decoded(images, labels, factor)
    assert of_classes.tolist() == classes and len(got) == 6 * factor**2
    torch.testing.assert_close(got, torch.stack(wanted), rtol=0, atol=0)


def test_sets_of_idc_and_ncfm_are_read_with_the_factor_that_is_said(tmp_path, digits, caplog):
    caplog.set_level("INFO", "ddfast")
    order = torch.randperm(20, generator=torch.Generator().manual_seed(0))
    pixels, classes = uniform(20, 1, 16, 16).float(), torch.arange(10).repeat_interleave(2)
    file = tmp_path / "distilled_data" / "data_20000.pt"
    file.parent.mkdir()
    torch.save([pixels[order].requires_grad_(), classes[order]], file)
    assert compat.recognise(file) == compat.recognise(file.parent) == "idc"
    with pytest.raises(ValueError, match=r"factor: expected the tiles a side of the images of .*data_20000.pt"):
        compat.convert(file, tmp_path / "set", dataset="digits", lr=0.01)
    whole = compat.read_idc(file, digits, lr=0.01, factor=1)
    assert whole.labels.equal(classes) and len(whole) == 20
    wanted = digits.preprocessing.apply(pixels)
    assert all(wanted[2 * k : 2 * k + 2].sum().isclose(whole.images[2 * k : 2 * k + 2].sum()) for k in range(10))
    (file.parent / "args.txt").write_text(json.dumps({"factor": 2, "dataset": "cifar10", "decode_type": "single"}))
    compat.convert(file, tmp_path / "set", dataset="digits", lr=0.01)
    tiled = SyntheticSet.load(tmp_path / "set")
    assert len(tiled) == 80 and tiled.labels.equal(torch.arange(10).repeat_interleave(8))
    torch.testing.assert_close(
        tiled.images, digits.preprocessing.apply(decoded(pixels[order], classes[order], 2)[0]), rtol=0, atol=1e-6
    )
    assert "factor 2, as its name or the arguments beside it say" in caplog.text


def test_of_a_folder_of_ncfm_the_last_set_is_read_and_other_files_are_left_out(tmp_path, digits, caplog):
    caplog.set_level("INFO", "ddfast")
    for value, tag in enumerate(("init", "900", "1000")):
        torch.save([torch.full((10, 1, 16, 16), value / 10), torch.arange(10)], tmp_path / f"data_{tag}.pt")
    torch.save({"optimizer": {}}, tmp_path / "last.pt")
    compat.convert(tmp_path, tmp_path / "set", dataset="digits", lr=0.01, factor=1)
    pixels = digits.preprocessing.invert(SyntheticSet.load(tmp_path / "set").images)
    torch.testing.assert_close(pixels, torch.full_like(pixels, 0.2))
    assert "skipped, unknown format: last.pt" in caplog.text


def test_a_set_goes_to_idc_and_back_but_for_rounding(tmp_path, digits):
    wanted = made(digits)
    compat.write_idc(wanted, tmp_path / "data.pt")
    pixels, classes = torch.load(tmp_path / "data.pt", weights_only=True)
    assert classes.equal(wanted.labels) and pixels.equal(digits.preprocessing.invert(wanted.images))
    back = compat.read_idc(tmp_path / "data.pt", digits, lr=0.01, factor=1)
    torch.testing.assert_close(back.images, wanted.images, rtol=0, atol=1e-5)


def test_normalised_images_are_not_taken_for_pixels_of_idc(tmp_path, digits):
    torch.save([3 * normal(20, 1, 16, 16).float(), torch.arange(20) // 2], tmp_path / "data.pt")
    with pytest.raises(ValueError, match=r"expected pixels of about 0 to 1, got values from .* --values preprocessed"):
        compat.read_idc(tmp_path / "data.pt", digits, lr=0.01, factor=1)
    read = compat.read_idc(tmp_path / "data.pt", digits, lr=0.01, factor=1, values="preprocessed")
    assert read.images.equal(3 * normal(20, 1, 16, 16).float())


@pytest.mark.parametrize("folder", ["ema_logged_files", "run/ema", "run/Normal"])
def test_averaged_images_of_ftd_and_folders_of_datm_are_found(folder, tmp_path, digits):
    (tmp_path / folder).mkdir(parents=True)
    before = "ema_" if "ema" in folder else ""
    for value, tag in ((1.0, "1000"), (2.0, "best")):
        torch.save(torch.full((10, 1, 16, 16), value), tmp_path / folder / f"{before}images_{tag}.pt")
        torch.save(torch.arange(10), tmp_path / folder / f"{before}labels_{tag}.pt")
    torch.save(torch.zeros(1), tmp_path / folder / "images_zca_1000.pt")
    path = tmp_path / "run" if folder == "run/Normal" else tmp_path / folder
    assert compat.recognise(path) == "mtt"
    assert compat.read_mtt(path, digits, lr=0.1).images.mean() == 2
    assert compat.read_mtt(tmp_path / folder / f"{before}images_1000.pt", digits, lr=0.1).images.mean() == 1
    if before:
        with pytest.raises(ValueError, match="lr: no file beside"):  # FTD writes none; DATM's ema_lr_best.pt is read
            compat.read_mtt(path, digits)
        torch.save(torch.tensor(0.25), tmp_path / folder / "ema_lr_best.pt")
        assert float(compat.read_mtt(path, digits).lr) == 0.25


ROWS = one_hot(torch.arange(10).repeat_interleave(2), 10)


@pytest.mark.parametrize(
    ("labels", "wanted", "said"),
    [
        (ROWS.float(), "classes", "every row is one-hot, read as classes; --labels logits reads rows as label logits"),
        (ROWS, "classes", "one-hot"),
        (ROWS.half(), "classes", "one-hot"),
        (ROWS.double() - 0.1, "classes", "one-hot"),  # KIP's
        (ROWS.argmax(1)[:, None], "classes", ""),  # a column
        (0.9 * ROWS + 0.01, "probabilities", "every row sums to 1, read as probabilities; --labels logits"),
        (torch.full((20, 10), 0.1), "probabilities", "every row sums to 1"),
        (3.0 * ROWS, "logits", "read as label logits, whose softmax is the target; --labels classes"),
        (normal(20, 10).float(), "logits", "read as label logits"),
        (normal(20, 10).softmax(1).float() * 1.01, "logits", "read as label logits"),
    ],
)
def test_rows_of_labels_are_read_as_what_they_are_and_that_is_said(labels, wanted, said, caplog):
    caplog.set_level("INFO", "ddfast")
    read = as_labels(labels, "labels.pt", None)
    assert said in caplog.text
    if wanted == "classes":
        assert read.equal(ROWS.argmax(1))
    elif wanted == "probabilities":
        torch.testing.assert_close(read.softmax(1), labels.float(), rtol=1e-6, atol=1e-7)
    else:
        assert read.equal(labels.float())


def test_what_rows_of_labels_are_can_be_said(digits, tmp_path):
    rows, soft = ROWS.float(), 0.9 * ROWS + 0.01
    assert as_labels(rows, "labels", "logits").equal(rows)
    assert as_labels(soft, "labels", "classes").equal(ROWS.argmax(1))
    assert as_labels(rows, "labels", "probabilities").softmax(1).equal(rows)
    with pytest.raises(ValueError, match=r"labels: expected rows of zeros with a single 1; are they logits?"):
        as_labels(soft, "labels", "onehot")
    torch.save(normal(20, 1, 16, 16).float(), tmp_path / "images_best.pt")
    torch.save(rows, tmp_path / "labels_best.pt")
    assert compat.read_mtt(tmp_path, digits, lr=0.1).is_hard
    assert compat.read_mtt(tmp_path, digits, lr=0.1, labels="logits").is_soft


def test_labels_are_written_as_asked_for(digits, tmp_path):
    for kind, wanted in (("onehot", ROWS.float()), ("probabilities", ROWS.float()), (None, ROWS.argmax(1))):
        compat.write_mtt(made(digits), tmp_path / f"as {kind}", labels=kind)
        assert torch.load(tmp_path / f"as {kind}" / "labels_best.pt").equal(wanted)
    with pytest.raises(ValueError, match="labels: the set's are soft; expected probabilities or logits, or classes"):
        compat.write_mtt(made(digits, soft=True), tmp_path / "no", labels="onehot")


PIXELS = (uniform(20, 16, 16, 1) * 255).round()


@pytest.mark.parametrize(
    ("images", "values"),
    [
        (PIXELS.byte().numpy(), "bytes"),  # [I, H, W, C]
        (PIXELS[..., 0].numpy(), "bytes"),  # floats of whole numbers, [I, H, W]
        (PIXELS.float().numpy().reshape(20, 256), "bytes"),
        (PIXELS.long().numpy(), "bytes"),
        ((PIXELS / 255).float().numpy(), "unit"),
        ((PIXELS / 255).numpy(), "unit"),  # float64
        ((PIXELS / 100 - 1).float().numpy(), "preprocessed"),
    ],
)
def test_images_of_arrays_are_read_in_every_layout_and_range(images, values, tmp_path, digits, caplog):
    caplog.set_level("INFO", "ddfast")
    numpy.savez(tmp_path / "set.npz", x_train=images, y_train=numpy.arange(20)[:, None] // 2)
    read = compat.read_arrays(tmp_path / "set.npz", digits, lr=0.01)
    channels_first = PIXELS.permute(0, 3, 1, 2)
    pixels = (channels_first / 255).float()
    wanted = (channels_first / 100 - 1).float() if values == "preprocessed" else digits.preprocessing.apply(pixels)
    torch.testing.assert_close(read.images, wanted, rtol=0, atol=1e-6)
    assert f"read as {values}; use --values to read them otherwise" in caplog.text
    assert read.labels.equal(torch.arange(20) // 2)


def test_values_can_be_said_and_are_checked(tmp_path, digits, caplog):
    numpy.savez(tmp_path / "set.npz", images=uniform(20, 1, 16, 16)[:, 0].numpy(), labels=numpy.arange(20) // 2, lr=0.5)
    read = compat.read_arrays(tmp_path / "set.npz", digits, values="preprocessed")
    assert read.images.equal(uniform(20, 1, 16, 16).float()) and float(read.lr) == 0.5
    with pytest.raises(ValueError, match="expected whole numbers from 0 to 255 as bytes, got values from"):
        compat.read_arrays(tmp_path / "set.npz", digits, values="bytes")
    with pytest.raises(ValueError, match="values: expected one of preprocessed, unit, bytes, got 'percent'"):
        compat.read_arrays(tmp_path / "set.npz", digits, values="percent")
    torch.save(uniform(10, 1, 16, 16).float(), tmp_path / "images_best.pt")
    torch.save(torch.arange(10), tmp_path / "labels_best.pt")
    compat.read_mtt(tmp_path, digits, lr=0.1)
    assert "the range of pixels, but read as preprocessed; use --values unit to read pixels" in caplog.text
    unit = compat.read_mtt(tmp_path, digits, lr=0.1, values="unit")
    assert unit.images.equal(digits.preprocessing.apply(uniform(10, 1, 16, 16).float()))


def test_folders_of_sre2l_are_read_by_their_numbers(tmp_path, digits):
    for k in range(10):
        folder = tmp_path / "syn" / f"new{k:03d}"
        folder.mkdir(parents=True)
        for n in range(2):
            Image.fromarray((uniform(16, 16, seed=k) * 200).byte().numpy()).save(folder / f"class{k:03d}_id{n:03d}.jpg")
    named = replace(digits, class_names=tuple(f"digit {k}" for k in range(10)))
    read = compat.read_png(tmp_path / "syn", named, lr=0.1)
    assert read.labels.equal(torch.arange(10).repeat_interleave(2)) and read.images.shape == (20, 1, 16, 16)
    (tmp_path / "syn" / "new009").rename(tmp_path / "syn" / "new010")
    with pytest.raises(ValueError, match=r"expected a folder of pictures per class of digits .*, got new010"):
        compat.read_png(tmp_path / "syn", named, lr=0.1)


def test_a_damaged_end_of_an_archive_is_one_sentence(tmp_path, digits):
    compat.write_dc(made(digits), tmp_path / "res.pt")
    whole = (tmp_path / "res.pt").read_bytes()
    assert whole[-42:-38] == b"PK\x06\x07"  # where the end lies, by a number of disks before it
    (tmp_path / "res.pt").write_bytes(whole[:-26] + b"\x09" + whole[-25:])
    with pytest.raises(ValueError, match=r"res.pt: not a whole file of torch.save: its end is missing or damaged"):
        compat.read_dc(tmp_path / "res.pt", digits)


class Thing:
    """A class of somebody's code."""


@pytest.mark.parametrize(
    ("value", "sentence"),
    [
        (
            {"optimizer": {}, "epoch": 3},
            r"of no known format: a dict with the entries optimizer, epoch; known are replay",
        ),
        ({}, "an empty dict"),
        ([], "an empty list"),
        ([1, 2], "a list of 2, its first a int"),
        ([torch.zeros(3)], r"a list of 1, its first a tensor \[3\] of float32"),
        (torch.zeros(2, 3), r"a tensor \[2, 3\] of float32"),
        (
            torch.zeros(2, 1, 4, 4),
            r"a tensor \[2, 1, 4, 4\], images without labels; expected images_<tag>.pt with labels",
        ),
        ([torch.zeros(3, 1, 4, 4), torch.zeros(2)], "a list of 2, its first a tensor"),
        ({"data": [torch.zeros(3)]}, "a dict with the entry data"),
        (
            Thing(),
            r"holds more than tensors: objects of tests\.compat\.test_compat_formats\.Thing, whose code would be run",
        ),
    ],
)
def test_what_is_unknown_is_said_to_be_with_what_it_holds(value, sentence, tmp_path):
    torch.save(value, tmp_path / "some.pt")
    for path in (tmp_path / "some.pt", tmp_path):
        with pytest.raises(ValueError, match=sentence):
            compat.recognise(path)


def test_files_that_can_be_read_in_two_ways_are_read_as_is_said(tmp_path, digits):
    pairs = [[torch.ones(10, 1, 16, 16) * n, torch.arange(10.0)] for n in range(3)]
    torch.save(pairs, tmp_path / "pairs.pt")
    with pytest.raises(ValueError, match=r"pairs.pt: can be read as dc or as replay-buffer; say which with --from"):
        compat.recognise(tmp_path / "pairs.pt")
    done = command("convert", str(tmp_path / "pairs.pt"), str(tmp_path / "set"), "--from", "dc", "--dataset", "digits")
    assert done.exit_code == 0 and SyntheticSet.load(tmp_path / "set").images.sum() == 0, done.output
    with pytest.raises(ValueError, match=r"--from: expected one of replay-buffer, state-dict, mtt.*, got 'zip'"):
        compat.convert(tmp_path / "pairs.pt", tmp_path / "no", source_format="zip", dataset="digits")


def test_arrays_of_objects_are_refused_and_run_nothing(tmp_path, monkeypatch):
    class Evil:
        def __reduce__(self):
            return os.mkdir, ("evil",)

    monkeypatch.chdir(tmp_path)
    numpy.savez("set.npz", images=numpy.array([Evil()], dtype=object), labels=numpy.arange(1))
    torch.save({"images": Evil()}, "set.pt")
    Path("set.pkl").write_bytes(pickle.dumps(Evil(), protocol=2))
    before = contents(tmp_path)
    for name, sentence in (
        ("npz", "holds arrays of objects"),
        ("pt", "objects of posix.mkdir"),
        ("pkl", "posix.mkdir"),
    ):
        with pytest.raises(ValueError, match=rf"set.{name}: .*{sentence}"):
            compat.recognise(f"set.{name}")
    assert contents(tmp_path) == before


def test_safetensors_of_others_are_no_sets_of_ddfast(tmp_path, digits):
    save_file(
        {"images": normal(20, 1, 16, 16).float(), "targets": torch.arange(20) // 2}, tmp_path / "other.safetensors"
    )
    made(digits).save(tmp_path / "own")
    assert compat.recognise(tmp_path / "other.safetensors") == "safetensors"
    assert (
        compat.recognise(tmp_path / "own.safetensors") == compat.recognise(tmp_path / "own") == "ddfast's synthetic set"
    )
    (tmp_path / "own.json").unlink()
    assert compat.recognise(tmp_path / "own.safetensors") == "ddfast's synthetic set"
    save_file({"x": torch.zeros(1)}, tmp_path / "unknown.safetensors")
    with pytest.raises(ValueError, match="of no known format: a dict with the entry x"):
        compat.recognise(tmp_path / "unknown.safetensors")


def test_a_set_is_evaluated_on_the_network_that_it_was_made_for(tmp_path, digits, caplog):
    caplog.set_level("INFO", "ddfast")
    options = {"num_eval": 1, "eval_epochs": 1, "eval_batch": 32}
    plain = made(digits)
    assert list(ddfast.evaluate(plain, digits, **options).accuracies) == ["convnet"]
    assert "the set does not record the network it was distilled for; using convnet (width 128)" in caplog.text
    plain.save(tmp_path / "set")
    command("convert", str(tmp_path / "set"), str(tmp_path / "theirs"), "--to", "mtt")
    read = "--dataset digits --no-zca --network convnet:width=4".split()
    done = command("convert", str(tmp_path / "theirs"), str(tmp_path / "again"), *read)
    assert done.exit_code == 0, done.output
    caplog.clear()
    evaluated = "--dataset digits --num-eval 1 --eval-epochs 1 --no-random-real".split()
    done = command("evaluate", str(tmp_path / "again"), *evaluated)
    assert done.exit_code == 0 and "\nconvnet:width=4  distilled images  " in done.stdout, done.output
    assert "does not say" not in caplog.text
