"""Scores against their definitions, corruptions, and what a table says of a set."""

import json
import logging
import math
import time
from dataclasses import replace

import numpy
import pytest
import torch
from PIL import Image

import ddfast
from ddfast import SyntheticSet
from ddfast.data import load_dataset
from ddfast.evaluation import evaluate, evaluate_random_real, more_baselines
from ddfast.evaluation.corruptions import CORRUPTIONS, corrupted, corruptions
from ddfast.evaluation.costs import cost_of
from ddfast.evaluation.scores import (
    augmentation_robust_score,
    calibration_error,
    confusion,
    label_robust_score,
    log_loss,
    recalls,
)
from ddfast.run import transfer
from ddfast.run.transfer import save_transfer, transfer_table
from ddfast.runtime import seeds
from tests.conftest import uniform

HOW = {"num_eval": 2, "eval_epochs": 30, "networks": ("mlp", "convnet:width=8")}


@pytest.fixture
def data(pair):
    return load_dataset(pair)


@pytest.fixture
def good(data):
    images, labels = data.random_real(3, seeds.generator(0))
    made = SyntheticSet(images, labels, torch.tensor(0.01), data.class_names, data.preprocessing, network="mlp")
    return replace(made, dsa_strategy="flip_scale")


def test_confusion_and_recalls():
    logits = torch.eye(3)[[0, 1, 1, 2, 0]]
    matrix = confusion(logits, torch.tensor([0, 0, 1, 2, 2]), 3)
    assert matrix.tolist() == [[1, 1, 0], [0, 1, 0], [1, 0, 1]]
    assert recalls(matrix.tolist()) == [50, 100, 50]
    assert math.isnan(recalls([[0, 0], [1, 3]])[0])


def test_the_calibration_error_is_that_of_its_definition():
    """Against numpy, bin by bin, and of two cases that are known."""
    generator = seeds.generator(0)
    logits, labels = 3 * torch.randn(500, 4, generator=generator), torch.randint(4, (500,), generator=generator)
    shares = logits.double().softmax(1).numpy()
    sure, right, expected = shares.max(1), shares.argmax(1) == labels.numpy(), 0.0
    for low in numpy.arange(15) / 15:
        inside = (sure > low) & (sure <= low + 1 / 15)
        if inside.any():
            expected += inside.mean() * abs(right[inside].mean() - sure[inside].mean())
    assert calibration_error(logits, labels) == pytest.approx(expected, abs=1e-12)
    surely_wrong = torch.tensor([[50.0, 0.0]] * 4)
    assert calibration_error(surely_wrong, torch.tensor([1, 1, 1, 1])) == pytest.approx(1)
    assert calibration_error(surely_wrong, torch.tensor([0, 0, 0, 0])) == pytest.approx(0)
    assert log_loss(torch.zeros(4, 2), torch.tensor([0, 1, 0, 1])) == pytest.approx(math.log(2))


def test_dd_rankings_scores_are_shares():
    """At the ends of their range, and at nothing gained."""
    assert label_robust_score(hlr=-1, ior=1) == pytest.approx(1) and label_robust_score(hlr=1, ior=-1) == 0
    assert augmentation_robust_score(1, 1) == pytest.approx(1) and augmentation_robust_score(-1, -1) == 0
    nothing = (1 - math.exp(-1)) / (math.e - math.exp(-1))
    assert label_robust_score(0.2, 0.2) == pytest.approx(nothing) == pytest.approx(augmentation_robust_score(0.1, -0.1))
    assert label_robust_score(0.2, 0.4, weight=1) > label_robust_score(0.2, 0.4, weight=0.5)


@pytest.fixture
def smooth():
    """Makes images of so many channels in [0, 1], of whole shades."""
    wave = torch.linspace(0, 9, 20).sin() / 4 + 0.4
    shades = torch.rand(3, 4, 1, 1, generator=seeds.generator(0)) / 9
    return lambda channels: (255 * ((wave[:, None] * wave) + shades[:, :channels])).round() / 255


@pytest.fixture
def photographs(tmp_path, monkeypatch):
    """Stands for the package with frost, which is not imported; its photographs are smooth and bright."""
    folder = tmp_path / "imagecorruptions" / "frost"
    folder.mkdir(parents=True)
    (folder.parent / "__init__.py").write_text("raise ImportError")
    for n in range(1, 7):
        shades = numpy.linspace(100 + 10 * n, 250, 300).astype("uint8")
        Image.fromarray(numpy.broadcast_to(shades, (200, 300)).copy()).save(folder / f"frost{n}.png")
    monkeypatch.syspath_prepend(tmp_path)
    return folder


def test_frost_is_there_with_its_photographs_and_lies_on_top(photographs, monkeypatch):
    assert corruptions() == list(CORRUPTIONS)
    black = torch.zeros(40, 1, 32, 32)
    found = corrupted(black, "frost", 2, seeds.generator(0))
    for place, image in enumerate(found):  # a fifth of the size: 60 pixels from a shade of 110 to 150, to 250
        assert 0.3 * 110 / 255 < image.min() and image.max() < 0.3 * 250 / 255 + 1e-6, place
        assert (image.diff(dim=-1) > 0).all() and image.diff(dim=-2).abs().max() < 1e-6
    assert len({float(image[0, 0, 0]) for image in found}) > 20
    large = corrupted(torch.zeros(1, 3, 300, 320), "frost", 1, seeds.generator(0))
    assert large.min() > 0.2 * 110 / 255  # where photographs are too small, they are magnified
    monkeypatch.setattr("ddfast.evaluation.corruptions.PHOTOGRAPHS", "a_package_that_is_not_there")
    assert corruptions() == [name for name in CORRUPTIONS if name != "frost"]


@pytest.mark.usefixtures("photographs")
@pytest.mark.parametrize("name", CORRUPTIONS)
@pytest.mark.parametrize("channels", [1, 3, 4])
def test_corrupted_images_are_images_and_the_same_every_time(smooth, name, channels):
    """Of uint8 or float."""
    images = smooth(channels)
    for severity in (1, 3, 5):
        found = corrupted(images, name, severity, seeds.generator(0))
        assert found.shape == images.shape and found.min() >= 0 and found.max() <= 1
        assert torch.equal(found, corrupted(images, name, severity, seeds.generator(0)))
        assert (found - images).square().mean() > 1e-6
        as_bytes = corrupted((255 * images).round().to(torch.uint8), name, severity, seeds.generator(0))
        assert (found - as_bytes).abs().max() < 0.005  # a shade of JPEG's, at most


@pytest.mark.usefixtures("photographs")
@pytest.mark.parametrize("name", [name for name in CORRUPTIONS if name not in ("glass_blur", "elastic")])
@pytest.mark.parametrize("channels", [1, 3, 4])
def test_corruptions_harm_more_the_stronger_they_are(smooth, name, channels):
    """Glass and elastic do other harm at other strengths."""
    images = smooth(channels)
    harms = []
    for severity in (1, 3, 5):
        found = corrupted(images, name, severity, seeds.generator(0))
        harms.append(float((found - images).square().mean()))
    assert 0 < harms[0] <= harms[1] <= harms[2] and harms[0] < harms[2]


@pytest.mark.parametrize(("severity", "reach"), [(1, 1), (4, 2)])
def test_glass_moves_pixels_as_far_as_it_reaches(severity, reach):
    columns = (torch.arange(20) / 255).expand(2, 1, 20, 20)
    moved = 255 * corrupted(columns, "glass_blur", severity, seeds.generator(0)) - torch.arange(20)
    assert reach - 0.6 < moved.abs().max() < reach + 0.01
    if severity == 1:  # hardly blurred
        assert (moved - moved.round()).abs().max() < 1e-3 and len(moved.round().unique()) == 3


@pytest.mark.parametrize(("severity", "is_plane"), [(1, True), (3, False), (5, False)])
def test_elastic_is_an_affine_map_at_first_and_a_rough_one_later(severity, is_plane):
    columns = (torch.arange(32) / 64).expand(2, 1, 32, 32)
    found = 64 * corrupted(columns, "elastic", severity, seeds.generator(0))[:, :, 8:24, 8:24]
    bends = found.diff(2, -1).abs().max() + found.diff(2, -2).abs().max()
    assert (found - 64 * columns[:, :, 8:24, 8:24]).abs().max() > 0.3
    assert bends < 1e-3 if is_plane else bends > 0.05


def test_blurs_are_larger_in_larger_images():
    edge = (torch.arange(128) >= 64).float().expand(1, 1, 128, 128)
    for name in ("gaussian_blur", "defocus_blur", "motion_blur"):
        small = corrupted(edge[..., 48:80, 48:80], name, 5, seeds.generator(0))[0, 0, 16]
        large = corrupted(edge, name, 5, seeds.generator(0))[0, 0, 64]
        widths = [float((row * (1 - row)).sum()) for row in (small, large)]
        assert 3 < widths[1] / widths[0] < 5.5, (name, widths)


def test_zoom_blur_is_a_mean_of_magnified_images():
    one = torch.zeros(1, 1, 33, 33)
    one[..., 16, 16] = one[..., 16, 26] = 1
    found = corrupted(one, "zoom_blur", 5, seeds.generator(0))[0, 0]
    assert found[16, 16] > 0.9 and float(found[16, 24:].sum()) == pytest.approx(1, abs=0.15)
    assert found[16, 25] < 1e-6 and found[16, 27:29].min() > 0.1 and found[16, 31:].max() < 1e-6


@pytest.mark.parametrize("name", ["idc", "ncfm"])
def test_cutmix_and_adamw_train_networks(data, good, name):
    options = {"num_eval": 1, "networks": ("mlp",), "dsa_strategy": "none"}
    found = evaluate(good, data, protocol=name, eval_epochs=60, **options)
    assert found.mean > 80
    assert evaluate(good, data, protocol=name, eval_epochs=60, **options) == found
    soft = replace(good, labels=9 * torch.nn.functional.one_hot(good.labels).float())
    assert evaluate(soft, data, protocol=name, eval_epochs=60, **options).mean > 80


def test_protocols_of_papers_bring_their_augmentation(data, good, monkeypatch):
    used = []
    original = ddfast.evaluation.schedule.augmentation
    monkeypatch.setattr(ddfast.evaluation.schedule, "augmentation", lambda s: used.append(s) or original(s))
    digits = replace(data, name="mnist")
    some = digits.of_classes([0, 1])
    assert (some.name, some.origin, some.of_classes([1, 0]).origin) == ("mnist, 2 classes", "mnist", "mnist")
    for name, network, of in (
        ("dc", "mlp", data), ("dc", "mlp", digits), ("dc", "convnet:norm=batchnorm:width=8", data),
        ("dsa", "mlp", data), ("dsa", "mlp", digits), ("idc", "mlp", data), ("ddfast", "mlp", data),
        ("fedd3", "mlp", data), ("dsa", "mlp", some),
    ):  # fmt: skip
        made = good.of_classes([0, 1]) if of is some else good
        evaluate(made, of, protocol=name, networks=(network,), num_eval=1, eval_epochs=1, eval_lr=0.01)
    evaluate_random_real(data, 1, protocol="dsa", networks=("mlp",), num_eval=1, eval_epochs=1, augmented=False)
    assert used == [
        "none", "dc:crop_scale_rotate", "dc:crop_noise", "dsa:color_crop_cutout_flip_scale_rotate",
        "dsa:color_crop_cutout_scale_rotate", "dsa:color_crop_flip_scale_rotate", "flip_scale", "none",
        "dsa:color_crop_cutout_scale_rotate", "none",
    ]  # fmt: skip


def test_other_baselines_are_those_that_differ():
    assert more_baselines("none", True, True) == []
    assert more_baselines("all", True, True) == ["plain", "labelled"]
    assert more_baselines("all", False, False) == [] and more_baselines("labelled", False, True) == []


def test_random_real_images_get_the_labels_of_an_expert(data):
    """Labels that say another class teach that class."""

    def wrong(n, images):
        assert len(images) == 3
        return 20 * torch.nn.functional.one_hot(torch.tensor([1, 2, 0]), 3).float()

    options = {"num_eval": 2, "eval_epochs": 60, "networks": ("mlp",)}
    assert evaluate_random_real(data, 1, **options).mean > 80
    assert evaluate_random_real(data, 1, labels=wrong, **options).mean < 20


def test_a_transfer_table_says_all_of_a_set(data, good, tmp_path, caplog):
    caplog.set_level(logging.INFO, "ddfast")
    table = transfer_table(good, data, scores=True, baselines="all", full_epochs=20, **HOW)
    rows = {(row["network"], row["trained_on"]): row for row in table["rows"]}
    real = "random real images, 3 per class"
    assert [key[1] for key in rows][:4] == ["distilled images", real, f"{real}, not augmented", "full data"]
    assert len(rows) == 8 and table["own"] == "mlp"
    own = rows["mlp", "distilled images"]
    assert own["lr"] == pytest.approx(0.01) and own["n"] == 2 and own["seconds"] > 0
    assert own["parameters"] == 256 * 128 + 128 + 128 * 128 + 128 + 128 * 3 + 3
    assert own["flops"] == 2 * (256 * 128 + 128 * 128 + 128 * 3)
    other = rows["convnet:width=8", "distilled images"]["mean"]
    assert table["others"] == {"mean": other, "best": {"network": "convnet:width=8", "mean": other}}
    scores, full = table["scores"], rows["mlp", "full data"]["mean"]
    assert scores["improvement_over_random"] == pytest.approx((own["mean"] - rows["mlp", real]["mean"]) / 100)
    assert scores["hard_label_recovery"] == pytest.approx((full - own["mean"]) / 100)
    assert scores["share_of_full_accuracy"] == pytest.approx(own["mean"] / full)
    expected = label_robust_score(scores["hard_label_recovery"], scores["improvement_over_random"])
    assert scores["label_robust_score"] == pytest.approx(expected)
    whole = torch.tensor(scores["confusion"])
    assert whole.sum() == 2 * len(data.test_labels) and whole.diagonal().sum() / whole.sum() == pytest.approx(
        own["mean"] / 100, abs=1e-4
    )
    assert set(scores["accuracy_of_classes"]) == set(data.class_names)
    assert numpy.mean(list(scores["accuracy_of_classes"].values())) == pytest.approx(own["mean"], abs=1)
    assert set(scores["accuracy_on_corrupted_images"]) == set(corruptions())
    assert scores["compression"] == data.train_images.numel() / good.bytes
    save_transfer(table, tmp_path / "table.json")
    assert json.loads((tmp_path / "table.json").read_text())["rows"][0]["network"] == "mlp"


def test_the_score_of_augmentation_is_of_trainings_with_and_without(data, good, monkeypatch):
    """Sets without augmentation get DSA's; protocols lose theirs, and give no such score without one."""
    used, given, how = [], [], HOW | {"networks": ("mlp",), "num_eval": 1, "eval_epochs": 20, "scores": True}
    original = ddfast.evaluation.schedule.augmentation
    monkeypatch.setattr(ddfast.evaluation.schedule, "augmentation", lambda s: used.append(s) or original(s))
    monkeypatch.setattr(transfer, "augmentation_robust_score", lambda *pair: given.append(pair))
    plain = transfer_table(good, data, **how | {"dsa_strategy": "none"})["scores"]
    assert used == 2 * ["none"] + 2 * ["dsa:color_crop_cutout_flip_scale_rotate"]
    assert given[0][1] == plain["improvement_over_random"]
    used.clear()
    published = transfer_table(good, data, protocol="dsa", **how)["scores"]
    assert used == 2 * ["dsa:color_crop_cutout_flip_scale_rotate"] + 2 * ["none"]
    assert given[1][0] == published["improvement_over_random"]
    assert "augmentation_robust_score" not in transfer_table(good, data, protocol="fedd3", **how)["scores"]


def test_seconds_of_a_table_are_those_of_training(data, good, monkeypatch):
    original = ddfast.evaluation.judging.Judge.__call__

    def slow(*arguments):
        time.sleep(1)
        return original(*arguments)

    monkeypatch.setattr(ddfast.evaluation.judging.Judge, "__call__", slow)
    found = evaluate(good, data, networks=("mlp",), num_eval=2, eval_epochs=1)
    assert all(0 < record["seconds"] < 1 for record in found.records["mlp"])


def test_rates_and_baselines_that_mean_nothing_are_told_before_any_training(data, good, monkeypatch):
    monkeypatch.setattr(ddfast.evaluation.schedule, "train_networks", None)
    with pytest.raises(ValueError, match="eval_lr: has rates of vgg11; expected those of mlp"):
        evaluate(good, data, networks=("mlp",), eval_lr={"vgg11": 0.1})
    with pytest.raises(ValueError, match="baselines: expected one of none, plain, labelled, all"):
        transfer_table(good, data, baselines="random", networks=("mlp",))
    with pytest.raises(ValueError, match="networks: expected a tuple of names"):
        transfer_table(good, data, networks="mlp")
    with pytest.raises(ValueError, match="vgg12"):
        transfer_table(good, data, networks=("mlp", "vgg12"))


@pytest.mark.parametrize("width", [8, 128])
def test_flops_are_those_of_convolutions_and_products_whatever_computes_them(data, width):
    """The wider ConvNet's convolutions are an op of ours on a CPU; by hand, of maps of 16 and 8 pixels a side."""
    by_hand = 2 * 9 * (width * 16**2 + width**2 * 8**2) + 2 * width * 4**2 * 3
    assert cost_of(f"convnet:width={width}", data).flops == by_hand


def test_a_network_that_ends_at_chance_is_marked(data, good):
    rows = transfer_table(good, data, num_eval=1, eval_epochs=2, networks=("mlp",), eval_lr=1e-9)["rows"]
    assert all(row["at_chance"] for row in rows if row["mean"] < 36)
    noise = replace(good, labels=good.labels.roll(3))
    (row,) = transfer_table(
        noise, data, num_eval=1, eval_epochs=30, networks=("mlp",), random_real=False, dsa_strategy="none"
    )["rows"]
    assert row["at_chance"]


def test_a_table_needs_a_data_set(good, tmp_path):
    with pytest.raises(ValueError, match="say what to test"):
        transfer_table(good)
    good.save(tmp_path / "set")
    with pytest.raises(ValueError, match=r"say what to test .*set on"):
        transfer_table(tmp_path / "set")
    images = uniform(9, 1, 16, 16) / 2
    with pytest.raises(ValueError, match="synthetic: expected the classes of"):
        transfer_table(tmp_path / "set", ((images, torch.arange(9) % 2), (images, torch.arange(9) % 2)))
