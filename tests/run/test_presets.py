"""Presets: every published row, and which one is taken."""

from importlib.resources import files

import pytest

from ddfast.methods import METHODS
from ddfast.run.presets import choose_preset, load_presets

TABLES = [path for path in files("ddfast.run.presets").iterdir() if path.suffix == ".toml"]
FILES = sorted(path.name.removesuffix(".toml") for path in TABLES)
TRAJECTORY = [method for method in FILES if METHODS[method].needs.experts]
ROWS = [(preset.name, preset) for method in FILES for preset in load_presets(method).values()]
SUBSETS = ("imagenette", "imagewoof", "imagemeow", "imagesquawk", "imagefruit", "imageyellow")
FULL = "color_crop_cutout_flip_scale_rotate"

KNOWN = {
    # of methods
    *"syn_steps expert_epochs max_start_epoch min_start_epoch current_max_start_epoch expansion_end starts".split(),
    *"lr_img lr_lr lr_teacher lr_label batch_syn init labels dsa_strategy threshold ema_decay start_noise".split(),
    *"distance canvas img_optimizer syn_momentum pruning_threshold drop_ratio".split(),
    # of experts
    *"iterations num_experts train_epochs train_lr batch_train mom l2 optimizer rho alpha schedule".split(),
    *"train_dsa_strategy network zca".split(),
    # of evaluation
    *"num_eval eval_epochs eval_batch protocol".split(),
    # of methods that look at real images
    *"batch_real outer_loop inner_loop lr_net batch_net gradient_distance networks_per_step".split(),
    *"curriculum drop_by window_start distilled_share".split(),
    # of methods that differentiate through training
    *"total_steps window windows reach per_class classes_per_step bases distill_epochs halve_every".split(),
    *"mom_net l2_net net_images net_strategy cutmix pre_epochs parameterisation factor".split(),
    *"networks_from first_epoch last_epoch ce_weight ce_lag num_frequencies discrimination".split(),
}
CHOICES = {
    "init": {"real", "noise", "first", "correct", "window"},
    "labels": {"hard", "soft", "target"},
    "distance": {"squared", "unnormalised", "l1", "cosine", "layerwise"},
    "img_optimizer": {"sgd", "adam"},
    "starts": {"random", "in_turn"},
    "optimizer": {"sgd", "gsam"},
    "schedule": {"constant", "cosine"},
    "protocol": {"ddfast", "mtt", "datm", "simplified", "bptt", "recipe", "dc", "dsa", "idc", "ncfm", "ddranking"},
}

# What a table's columns are called, and its rows; None: the preset does not say, for all images, or no expansion.
MTT = (
    "syn_steps expert_epochs max_start_epoch batch_syn zca lr_img lr_lr lr_teacher",
    {  # Cazenavette et al. 2022
        "cifar10/ipc1": (50, 2, 2, 10, True, 100, 1e-7, 0.01),
        "cifar10/ipc10": (30, 2, 20, 100, True, 100, 1e-5, 0.001),
        "cifar10/ipc50": (30, 2, 40, 500, False, 1000, 1e-5, 0.001),
        "cifar100/ipc1": (20, 3, 20, 100, True, 1000, 1e-5, 0.01),
        "cifar100/ipc10": (20, 2, 20, 1000, False, 1000, 1e-5, 0.01),
        "cifar100/ipc50": (80, 2, 40, 125, True, 1000, 1e-5, 0.01),
        "tiny-imagenet/ipc1": (10, 2, 10, 200, False, 1e4, 1e-4, 0.01),
        "tiny-imagenet/ipc10": (20, 2, 40, 200, False, 1e4, 1e-4, 0.01),
        "tiny-imagenet/ipc50": (20, 2, 40, 300, False, 1e4, 1e-4, 0.01),
        **{f"{name}/ipc1": (20, 2, 10, 10, False, 1e5, 1e-6, 0.01) for name in SUBSETS},
        **{f"{name}/ipc10": (20, 2, 10, 20, False, 1e5, 1e-6, 0.01) for name in SUBSETS},
    },
)
FTD = (
    "syn_steps expert_epochs max_start_epoch batch_syn lr_img lr_lr lr_teacher alpha ema_decay zca",
    {  # Du et al. 2023
        "cifar10/ipc1": (50, 2, 2, None, 100, 1e-7, 0.01, 0.3, 0.9999, True),
        "cifar10/ipc10": (30, 2, 20, None, 100, 1e-5, 0.001, 0.3, 0.9995, True),
        "cifar10/ipc50": (30, 2, 40, None, 1000, 1e-5, 0.01, 1, 0.999, False),
        "cifar100/ipc1": (40, 3, 20, None, 1000, 1e-5, 0.01, 1, 0.9995, True),
        "cifar100/ipc10": (20, 2, 40, None, 1000, 1e-5, 0.01, 1, 0.9995, True),
        "cifar100/ipc50": (80, 2, 40, 1000, 1000, 1e-5, 0.01, 1, 0.999, True),
        "tiny-imagenet/ipc1": (30, 2, 10, None, 1e4, 1e-4, 0.01, 1, 0.999, False),
        "tiny-imagenet/ipc10": (20, 2, 40, 500, 1e4, 1e-4, 0.01, 1, 0.999, False),
        **{f"{name}/ipc1": (20, 2, 10, 64, 1e4, 1e-4, 0.01, 1, 0.999, False) for name in SUBSETS},
        **{f"{name}/ipc10": (20, 2, 10, 64, 1e4, 1e-4, 0.001, 1, 0.999, False) for name in SUBSETS},
    },
)
DATM = (
    "syn_steps expert_epochs min_start_epoch current_max_start_epoch max_start_epoch expansion_end batch_syn lr_img "
    "lr_label lr_lr threshold init",
    {  # Guo et al. 2024
        "cifar10/ipc1": (80, 2, 0, None, 4, None, 10, 100, 5, 1e-7, 1.1, "correct"),
        "cifar10/ipc10": (80, 2, 0, 10, 20, 1000, 100, 100, 2, 1e-5, 1, "correct"),
        "cifar10/ipc50": (80, 2, 0, 20, 40, 2000, 500, 1000, 2, 1e-5, 1, "correct"),
        "cifar10/ipc500": (40, 2, 40, None, 60, None, 1000, 50, 10, 1e-5, 1, "correct"),
        "cifar10/ipc1000": (100, 2, 40, None, 60, None, 1000, 50, 10, 1e-5, 1, "correct"),
        "cifar100/ipc1": (40, 3, 0, 10, 20, 1000, 100, 1000, 10, 1e-5, 1, "correct"),
        "cifar100/ipc10": (80, 2, 0, 30, 50, 2000, 1000, 1000, 10, 1e-5, 1, "correct"),
        "cifar100/ipc50": (80, 2, 20, None, 70, None, 1000, 1000, 10, 1e-5, 1, "real"),
        "cifar100/ipc100": (80, 2, 30, None, 70, None, 1000, 50, 10, 1e-5, 1, "correct"),
        "tiny-imagenet/ipc1": (40, 2, 0, 15, 20, 2000, 200, 1e4, 10, 1e-4, 1, "correct"),
        "tiny-imagenet/ipc10": (40, 2, 10, None, 50, None, 500, 100, 10, 1e-4, 1, "correct"),
        "tiny-imagenet/ipc50": (20, 2, 40, None, 70, None, 1000, 100, 10, 1e-4, 1, "correct"),
    },
)
TESLA = (
    "syn_steps expert_epochs max_start_epoch batch_syn lr_img lr_lr zca num_experts labels",
    {  # Cui et al. 2023; lr_img half of theirs, for the image gradient is twice as large
        "cifar10/ipc1": (50, 2, 5, None, 500, 1e-7, False, 100, None),
        "cifar100/ipc50": (80, 2, 40, 125, 500, 1e-5, True, 100, None),
        "imagenet1k/ipc1": (10, 3, 10, 100, 5000, 1e-4, False, 50, "target"),
    },
)
ATT = (
    "syn_steps expert_epochs max_start_epoch lr_img lr_lr lr_teacher zca iterations ema_decay batch_syn alpha",
    {  # Liu et al. 2024
        "cifar10/ipc1": (80, 4, 2, 100, 1e-7, 0.01, True, 6000, 0.9999, None, 0.3),
        "cifar10/ipc10": (30, 2, 20, 1e4, 1e-4, 0.001, True, 60_000, 0.9999, None, 0.3),
        "cifar10/ipc50": (50, 2, 40, 100, 1e-5, 0.001, False, 1_000_000, 0.999, None, 1),
        "cifar100/ipc1": (50, 4, 20, 500, 1e-5, 0.01, True, 3000, 0.9995, None, 1),
        "cifar100/ipc10": (20, 2, 40, 1000, 1e-5, 0.01, False, 200_000, 0.9995, None, 1),
        "cifar100/ipc50": (80, 2, 40, 1000, 1e-5, 0.01, True, 100_000, 0.999, 1200, 1),
    },
)
EDF = (
    "syn_steps expert_epochs lr_img lr_label lr_lr batch_syn current_max_start_epoch max_start_epoch expansion_end "
    "threshold drop_ratio labels init",
    {  # Wang et al. 2025
        **{f"{name}/ipc1": (40, 2, 1e4, 2, 1e-5, 200, 5, 10, 1000, 1.5, 0.25, "soft", "correct") for name in SUBSETS},
        **{f"{name}/ipc10": (40, 2, 1000, 3, 1e-5, 250, 10, 20, 1000, 2, 0.375, "soft", "correct") for name in SUBSETS},
    },
)
SIMPLIFIED = (
    "syn_steps expert_epochs min_start_epoch max_start_epoch lr_img lr_lr lr_teacher syn_momentum batch_syn",
    {"cifar10/ipc10": (10, 1, 1, 15, 0.1, 0, 0.01, 0.5, None)},
)
PUBLISHED = {"mtt": MTT, "ftd": FTD, "datm": DATM, "tesla": TESLA, "att": ATT, "edf": EDF, "simplified": SIMPLIFIED}
DROPPED = {"cifar10/ipc1": 0, "cifar100/ipc50": 0, "cifar10/ipc50": 0.25}  # by PAD; 0.5 everywhere else

# What all published rows of a method share.
EXPERTS = {"num_experts": 100, "train_epochs": 50, "train_lr": 0.01, "batch_train": 256, "mom": 0, "l2": 0}
EXPERTS |= {"dsa_strategy": FULL, "network": "convnet"}
FLAT = EXPERTS | {"optimizer": "gsam", "rho": 0.01}
SHARED = {
    "mtt": EXPERTS | {"iterations": 5000},
    "ftd": FLAT | {"iterations": 5000},
    "datm": FLAT
    | {"iterations": 10_000, "train_epochs": 100, "alpha": 0.3, "zca": True, "labels": "soft", "lr_teacher": 0.01}
    | {"eval_batch": 128},
    "tesla": EXPERTS | {"iterations": 10_000, "num_experts": None, "lr_teacher": 0.01, "num_eval": 3},
    "att": FLAT,
    "edf": EXPERTS | {"zca": False, "lr_teacher": 0.01},
    "simplified": {
        **{"network": "smallvgg", "train_epochs": 15, "num_experts": 1, "train_lr": 0.01, "mom": 0.9, "l2": 5e-4},
        **{"schedule": "cosine", "train_dsa_strategy": "crop+flip", "dsa_strategy": "none", "init": "first"},
        **{"iterations": 1000, "img_optimizer": "adam", "starts": "in_turn", "distance": "unnormalised"},
        **{"protocol": "simplified", "eval_epochs": 200, "eval_batch": 100, "batch_train": 128},
    },
}


@pytest.mark.parametrize("method", PUBLISHED)
def test_published_rows_are_there_with_what_all_share(method):
    columns, rows = PUBLISHED[method]
    presets, shared = load_presets(method), SHARED[method]
    own = {preset for preset in presets if preset.split("/")[1] not in ("digits", "mnist")}
    assert own == {f"{method}/{row}" for row in rows}
    for row, expected in rows.items():
        settings = presets[f"{method}/{row}"].settings
        assert tuple(settings.get(key) for key in columns.split()) == expected, row
        told = {key: settings.get(key) for key, value in shared.items() if value is not None}
        assert told == {key: value for key, value in shared.items() if value is not None}, row


@pytest.mark.parametrize(
    "method, init, iterations, datasets",
    [
        ("dc", "noise", 1000, "mnist fashion-mnist svhn cifar10 cifar100"),
        ("dsa", "real", 1000, "mnist fashion-mnist svhn cifar10 cifar100"),
        ("dm", "real", 20_000, "mnist cifar10 cifar100 tiny-imagenet"),
    ],
)
def test_methods_on_real_images_have_their_codes_settings(method, init, iterations, datasets):
    """Zhao et al. 2021, Zhao & Bilen 2021 and 2023: one set of numbers for all data."""
    rows = {n: p for n, p in load_presets(method).items() if p.dataset != "digits"}
    assert {preset.dataset for preset in rows.values()} == set(datasets.split())
    for name, preset in rows.items():
        row, digits = preset.settings, preset.dataset in ("mnist", "svhn")
        assert (row["iterations"], row["batch_real"], row["init"], row["zca"]) == (iterations, 256, init, False)
        fast = method == "dm" and preset.dataset == "cifar10" and preset.ipc >= 100
        assert row["lr_img"] == (10.0 if fast else 1.0 if method == "dm" else 0.1), name
        plain = "dsa:color_crop_cutout_scale_rotate" if digits else f"dsa:{FULL}"
        assert row["dsa_strategy"] == ("none" if method == "dc" else plain), name
        assert row["network"] == ("convnet:first_padding=3" if preset.side == 28 else "convnet")
        assert method == "dm" or (row["lr_net"], row["batch_net"]) == (0.01, 256)
    assert {f"{method}/cifar10/ipc{n}" for n in (1, 10, 50)} <= set(rows)


def test_inherited_rows_are_those_of_the_other_method_with_the_own_settings_over_them():
    mtt, datm = load_presets("mtt"), load_presets("datm")
    pruned, aligned, texture = (load_presets(method) for method in ("pp", "pad", "texture"))
    assert {n: p.settings for n, p in pruned.items()} == {
        n.replace("mtt", "pp"): p.settings | {"pruning_threshold": 0.1} for n, p in mtt.items()
    }
    assert {n: p.settings for n, p in aligned.items()} == {
        n.replace("datm", "pad"): p.settings | {"drop_ratio": DROPPED.get(n[5:], 0.5), "curriculum": "pad"}
        for n, p in datm.items()
    }
    assert {n: p.settings for n, p in texture.items()} == {
        n.replace("mtt", "texture"): p.settings | {"canvas": 2, "zca": False}
        for n, p in mtt.items()
        if p.dataset not in ("cifar100", "tiny-imagenet")
    }
    rows = [(load_presets(m)[f"{m}/mnist/ipc10"], mtt["mtt/mnist/ipc10"]) for m in ("pp", "pad", "texture", "ftd")]
    for row, of in rows:
        assert (row.dataset, row.ipc, row.side, row.classes, row.channels) == ("mnist", 10, 28, 10, 1)
        assert of.settings.items() <= row.settings.items() and of.settings["batch_syn"] == 50


@pytest.mark.parametrize("method", [method for method in TRAJECTORY if method != "simplified"])
def test_small_jobs_are_those_of_mtt_with_the_methods_own_settings(method):
    """A published decay or threshold would stop so short a job from learning."""
    presets, mtt = load_presets(method), load_presets("mtt")
    for row in ("digits/ipc1", "mnist/ipc1", "mnist/ipc10"):
        settings = presets[f"{method}/{row}"].settings
        assert mtt[f"mtt/{row}"].settings.items() <= settings.items()
        assert settings.get("ema_decay") in (None, 0.99) and "threshold" not in settings
        assert ("ema_decay" in settings) == (method in ("ftd", "att"))
        assert (settings.get("optimizer") == "gsam") == (method in ("ftd", "datm", "att", "pad"))
        assert (settings.get("labels") == "soft") == (method in ("datm", "pad", "edf")) == ("lr_label" in settings)


@pytest.mark.parametrize("preset", [preset for _, preset in ROWS], ids=[name for name, _ in ROWS])
def test_every_row_is_complete_and_agrees_with_itself(preset):
    row = preset.settings
    assert set(row) <= KNOWN
    for name, choices in CHOICES.items():
        assert row.get(name) in {None, *choices}, name
    if preset.method not in TRAJECTORY:
        assert type(row.get("lr_img", 0.1)) is float and row["iterations"] > 0 and "max_start_epoch" not in row
        return
    assert row.get("min_start_epoch", 0) < row["max_start_epoch"]
    assert row["max_start_epoch"] - 1 + row["expert_epochs"] <= row["train_epochs"]
    assert row.get("expansion_end", 0) <= row["iterations"]
    assert ("expansion_end" in row) == ("current_max_start_epoch" in row)
    first = row.get("current_max_start_epoch", row["max_start_epoch"])
    assert row.get("min_start_epoch", 0) < first <= row["max_start_epoch"]
    assert (row.get("optimizer") == "gsam") == ("rho" in row) == ("alpha" in row)
    assert not (row["zca"] and preset.side > 64)
    assert {type(row[name]) for name in ("lr_img", "lr_lr", "lr_teacher", "train_lr", "mom", "l2")} == {float}


@pytest.mark.parametrize("method", METHODS)
def test_every_row_makes_settings_that_are_accepted(method):
    settings_class = METHODS[method].Settings
    known = settings_class.__dataclass_fields__
    for preset in load_presets(method).values():
        settings_class(**{key: value for key, value in preset.settings.items() if key in known})


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


@pytest.mark.parametrize("method", [method for method in FILES if method != "simplified"])
def test_digits_have_a_row_in_every_method(method):
    assert choose_preset(method, "digits", 1, side=16).name == f"{method}/digits/ipc1"


def test_an_unknown_preset_is_refused_with_the_names():
    with pytest.raises(ValueError, match=r"preset: expected one of pad/digits/ipc1, .*, got 'pad/cifar10/ipc7'"):
        choose_preset("pad", "cifar10", 7, "pad/cifar10/ipc7")
