"""What a run's settings come from: what is given, given experts, a preset, the data; and what cannot be."""

import pytest

import ddfast
from ddfast.run.resolve import resolve

QUICK = {"num_eval": 1, "eval_epochs": 1, "device": "cpu"}


def test_unset_options_are_the_presets_and_given_ones_stay():
    job = resolve({"syn_steps": 7, "lr_img": None, **QUICK})
    row = {"iterations": 150, "lr_img": 100.0, "train_lr": 0.02, "num_experts": 4}
    assert {name: job.config[name] for name in row} == row
    assert job.config["syn_steps"] == 7 == job.settings.syn_steps
    assert (
        job.config["preset"] == "mtt/digits/ipc1" and job.config["dataset"] == "digits" and job.config["probed"] == []
    )


@pytest.mark.parametrize("ipc, preset", [(1, "mtt/cifar10/ipc1"), (9, "mtt/cifar10/ipc10"), (200, "mtt/cifar10/ipc50")])
def test_a_named_preset_or_the_nearest_is_taken(ipc, preset):
    from ddfast.run.presets import choose_preset

    assert choose_preset("mtt", "cifar10", ipc).name == preset
    with pytest.raises(
        ValueError, match=r"preset: expected one of .*, got 'mtt/cifar10/ipc5'; did you mean 'mtt/cifar10"
    ):
        choose_preset("mtt", "cifar10", 1, "mtt/cifar10/ipc5")


def test_none_switches_off_what_a_preset_has():
    given = {"method": "ftd", **QUICK}
    assert resolve(given).settings.ema_decay == 0.99
    assert resolve(given | {"ema_decay": "none"}).settings.ema_decay is None
    assert resolve({"eval_every": "none", **QUICK}).config["eval_every"] is None


def test_given_experts_decide_their_settings(pair, tmp_path):
    options = {"network": "mlp", "num_experts": 2, "train_epochs": 3, "batch_train": 6, "train_lr": 0.5}
    store = ddfast.train_experts(pair, output=tmp_path, **options)
    job = resolve(
        {"dataset": pair, "experts": store, "max_start_epoch": 2, "expert_epochs": 1, "iterations": 2, **QUICK}
    )
    assert {name: job.config[name] for name in options} == options
    with pytest.raises(ValueError, match=r"train_lr: the experts in .* were trained with 0\.5, got 0\.1"):
        resolve({"dataset": pair, "experts": store, "train_lr": 0.1, **QUICK})


def test_data_without_a_preset_get_settings_of_their_own(pair):
    job = resolve({"dataset": pair, "iterations": 2, "num_experts": 1, "network": "mlp", **QUICK})
    assert job.config["preset"].startswith("own data, else mtt/") and job.config["probed"] == [
        "lr_teacher",
        "lr_img",
        "lr_lr",
    ]
    assert job.config["derived"].keys() >= {"batch_train", "expert_epochs", "dsa_strategy"}
    assert job.config["dataset"] == "custom"


def test_what_belongs_together_is_a_method_and_its_preset():
    assert resolve({"preset": "ftd/digits/ipc1", **QUICK}).config["method"] == "ftd"
    with pytest.raises(ValueError, match="preset: ftd/digits/ipc1 is one of ftd, not of mtt"):
        resolve({"preset": "ftd/digits/ipc1", "method": "mtt"})
    with pytest.raises(ValueError, match="pruning_threshold: an option of pp only, not of mtt"):
        resolve({"pruning_threshold": 0.2})
    with pytest.raises(ValueError, match=r"unknown option 'lr_imgs'; did you mean 'lr_img'\?"):
        resolve({"lr_imgs": 0.2})
    with pytest.raises(ValueError, match=r"rho: expected with the optimizer gsam only, got 0\.1"):
        resolve({"rho": 0.1, **QUICK})
