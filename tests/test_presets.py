"""Presets: every published row, and which one is taken."""

import pytest

from ddfast.methods import MTTSettings
from ddfast.presets import choose_preset, load_presets

# syn_steps, expert_epochs, max_start_epoch, batch_syn, zca, lr_img, lr_lr, lr_teacher (Cazenavette et al. 2022)
PUBLISHED = {
    "cifar10/ipc1": (50, 2, 2, 10, True, 100, 1e-7, 0.01),
    "cifar10/ipc10": (30, 2, 20, 100, True, 100, 1e-5, 0.001),
    "cifar10/ipc50": (30, 2, 40, 500, False, 1000, 1e-5, 0.001),
    "cifar100/ipc1": (20, 3, 20, 100, True, 1000, 1e-5, 0.01),
    "cifar100/ipc10": (20, 2, 20, 1000, False, 1000, 1e-5, 0.01),
    "cifar100/ipc50": (80, 2, 40, 125, True, 1000, 1e-5, 0.01),
    "tiny-imagenet/ipc1": (10, 2, 10, 200, False, 1e4, 1e-4, 0.01),
    "tiny-imagenet/ipc10": (20, 2, 40, 200, False, 1e4, 1e-4, 0.01),
    "tiny-imagenet/ipc50": (20, 2, 40, 300, False, 1e4, 1e-4, 0.01),
    "imagenette/ipc1": (20, 2, 10, 10, False, 1e5, 1e-6, 0.01),
    "imageyellow/ipc10": (20, 2, 10, 20, False, 1e5, 1e-6, 0.01),
}
KEYS = ("syn_steps", "expert_epochs", "max_start_epoch", "batch_syn", "zca", "lr_img", "lr_lr", "lr_teacher")


@pytest.mark.parametrize("row", PUBLISHED)
def test_published_rows_are_there_with_what_all_share(row):
    settings = load_presets("mtt")[f"mtt/{row}"].settings
    assert tuple(settings[key] for key in KEYS) == PUBLISHED[row]
    assert (settings["iterations"], settings["num_experts"], settings["train_epochs"]) == (5000, 100, 50)
    assert settings["dsa_strategy"] == "color_crop_cutout_flip_scale_rotate" and settings["train_lr"] == 0.01


@pytest.mark.parametrize("name", load_presets("mtt"))
def test_every_row_makes_settings_that_are_accepted(name):
    known = MTTSettings.__dataclass_fields__
    MTTSettings(**{key: value for key, value in load_presets("mtt")[name].settings.items() if key in known})


@pytest.mark.parametrize(
    "dataset, ipc, side, classes, expected",
    [
        ("cifar10", 10, 32, 10, "cifar10/ipc10"),
        ("cifar10", 20, 32, 10, "cifar10/ipc10"),
        ("cifar10", 500, 32, 10, "cifar10/ipc50"),
        ("imagefruit", 1, 128, 10, "imagefruit/ipc1"),
        ("svhn", 1, 32, 10, "cifar10/ipc1"),
        ("flowers", 10, 128, 5, "imagenette/ipc10"),
        ("flowers", 1, 64, 102, "tiny-imagenet/ipc1"),
        ("flowers", 10, 33, 80, "cifar100/ipc10"),
        ("fashion-mnist", 1, 28, 10, "mnist/ipc1"),
        ("cells", 1, 17, 3, "digits/ipc1"),
    ],
)
def test_the_own_row_is_taken_or_the_nearest_by_side_classes_and_ipc(dataset, ipc, side, classes, expected):
    assert choose_preset("mtt", dataset, ipc, side=side, classes=classes).name == f"mtt/{expected}"
