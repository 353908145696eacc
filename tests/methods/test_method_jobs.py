"""Every method as a whole job: from data to an evaluated set, stopped and resumed, from Python and the command line."""

import json
import logging
from dataclasses import fields

import pytest
import torch
from click.testing import CliRunner

import ddfast
from ddfast import cli
from ddfast.methods import METHODS
from ddfast.run.config import ExpertOptions, run_options
from ddfast.run.resolve import resolve
from ddfast.runtime.options import options_of
from tests.conftest import SMALL, interrupt_after

JOB = SMALL | {"batch_train": 6, "checkpoint_every": 1, "expansion_end": None, "current_max_start_epoch": None}
LEARNING = [name for name, method in METHODS.items() if method.needs.steps]
EXPANDING = {"current_max_start_epoch": 1, "expansion_end": 2}


def job(name, **options):
    """As keyword arguments of distill; what only the simplified variant's preset says is as for the others."""
    given = JOB | {"method": name, "network": "convnet:width=8", "zca": False, "min_start_epoch": 0} | options
    given |= EXPANDING if name in ("datm", "pad") else {}
    given |= {"inner_loop": 2, "net_images": 8, "batch_real": 4, "batch_net": 4, "num_frequencies": 64}
    given |= {"most_steps": 3, "most_epochs": 3}
    given |= {"total_steps": 1 if name == "ld" else 6, "reach": 1, "halve_every": 2, "patience": 1}
    given |= {} if name in ("bptt", "dd", "ld", "remember") else {"window": 3}
    given |= {"lr_img": 0.0} if name == "ld" else {"distill_epochs": 3, "total_steps": 3} if name == "dd" else {}
    unused = set() if METHODS[name].needs.experts else options_of(ExpertOptions)
    return {option: value for option, value in given.items() if option in run_options(METHODS[name]).keys() - unused}


@pytest.mark.parametrize("name", LEARNING)
def test_every_method_is_a_whole_job_that_resumes_bit_for_bit(pair, tmp_path, name):
    whole = ddfast.distill(pair, output=tmp_path / "whole", **job(name, iterations=4))
    assert whole.synthetic.is_soft == (name in ("datm", "pad", "edf", "at_bptt_pp", "ld"))
    assert 0 <= whole.accuracy["distilled"]["mean"] <= 100 and whole.accuracy["distilled"]["n"] == 2

    with pytest.raises(KeyboardInterrupt):
        ddfast.distill(pair, output=tmp_path / "parts", progress=interrupt_after(2), **job(name, iterations=4))
    parts = ddfast.distill(pair, output=tmp_path / "parts", resume=True)
    assert torch.equal(whole.synthetic.images, parts.synthetic.images)
    assert torch.equal(whole.synthetic.labels, parts.synthetic.labels)
    assert [r["loss"] for r in whole.history] == [r["loss"] for r in parts.history]
    assert whole.accuracy == parts.accuracy
    if whole.averaged is not None:
        assert torch.equal(whole.averaged.images, parts.averaged.images)
    config = json.loads((parts.path / "config.json").read_text())
    assert config["method"] == name and f" {name}/" in config["preset"]


def test_what_a_preset_has_can_be_switched_off_and_a_short_run_is_only_told(pair, tmp_path, caplog):
    caplog.set_level(logging.WARNING, "ddfast")
    given = {"dataset": pair, "preset": "datm/cifar10/ipc10", "ipc": 2, "network": "convnet:width=8", "zca": False}
    short = resolve(given | {"iterations": 500})
    assert short.settings.threshold == 1.0 and caplog.messages == [
        "expansion_end: 1000 is the preset's; in 500 iterations the start epochs expand to 14, not to 20"
    ]
    off = {name: "none" for name in ("threshold", "expansion_end", "current_max_start_epoch", "batch_syn")}
    for change in ({"max_start_epoch": 3}, {"expansion_end": "none"}, {"current_max_start_epoch": "none"}):
        assert resolve(given | change).settings.current_max_start_epoch is None
    settings = resolve(given | off | {"labels": "hard"}).settings
    assert (settings.threshold, settings.batch_syn, settings.start_epochs(0)) == (None, None, (0, 20))
    assert settings.labels == "hard" and settings.lr_label == 0
    ddfast.distill(pair, output=tmp_path / "run", **job("ftd", ema_decay="none"))
    again = ddfast.distill(pair, output=tmp_path / "run", resume=True, ema_decay="none")
    assert again.averaged is None


def test_what_keeps_a_run_from_learning_is_told(pair, tmp_path, caplog):
    caplog.set_level(logging.WARNING, "ddfast")
    ddfast.distill(pair, output=tmp_path / "floor", **job("mtt", lr_lr=1e3, iterations=4))
    assert sum("the learning rate fell to its floor, 1e-06" in message for message in caplog.messages) == 1
    caplog.clear()
    ddfast.distill(pair, output=tmp_path / "gate", **job("mtt", threshold=1e-9))
    assert (
        "none of the 3 updates was made (0 were not finite, 3 above the threshold): "
        "the images are still the initial ones" in caplog.messages
    )


def test_noise_takes_no_more_real_images_than_the_baseline(pair):
    given = {"dataset": pair, "method": "texture", "ipc": 8, "network": "convnet:width=8", "zca": False}
    assert resolve(given | {"init": "noise"}).settings.canvas == 2
    with pytest.raises(ValueError, match="8 training images of class '0', got 32, 8 canvases"):
        resolve(given)


def test_evaluations_on_the_way_are_of_both_sets(pair, tmp_path):
    result = ddfast.distill(pair, output=tmp_path / "run", eval_every=2, **job("ftd", ema_decay=0.5, iterations=3))
    (line,) = (result.path / "evaluations.jsonl").read_text().splitlines()
    saved = ddfast.SyntheticSet.load(result.path / "checkpoints" / "000002-averaged")
    alone = ddfast.evaluate(saved, pair, networks=("convnet:width=8",), num_eval=2, eval_epochs=3)
    assert json.loads(line)["averaged"] == alone.summary()


def test_both_sets_of_ftd_are_kept_and_evaluated_from_scratch(pair, tmp_path):
    options = job("ftd", ema_decay=0.5, lr_img=100.0)
    result = ddfast.distill(pair, output=tmp_path / "run", **options)
    assert set(result.accuracy) == {"distilled", "averaged", "random_real", "full_data"}
    saved = ddfast.SyntheticSet.load(result.path / "averaged")
    assert torch.equal(saved.images, result.averaged.images)
    assert not torch.equal(saved.images, result.synthetic.images)
    alone = ddfast.evaluate(saved, pair, networks=("convnet:width=8",), num_eval=2, eval_epochs=3)
    assert alone.summary() == result.accuracy["averaged"]
    again = ddfast.distill(pair, output=tmp_path / "run", resume=True)  # a run that had ended
    assert torch.equal(again.averaged.images, saved.images) and again.accuracy == result.accuracy
    trained = json.loads((result.path / "config.json").read_text())["trained_experts"]
    assert (trained["optimizer"], trained["rho"]) == ("gsam", 0.01)


def test_textures_are_evaluated_by_parts_of_their_canvases(pair, tmp_path):
    result = ddfast.distill(pair, output=tmp_path / "run", **job("texture"))
    saved = ddfast.SyntheticSet.load(result.path / "synthetic")
    assert saved.canvas == 2 and saved.images.shape[2:] == (32, 32) and saved.image_size == (16, 16)
    assert (result.path / "images.png").exists()


def test_a_network_with_dropout_is_distilled_from_the_runs_seed(pair, tmp_path):
    runs = []
    for number in range(2):
        torch.manual_seed(number)
        state = torch.get_rng_state()
        options = job("mtt", network="smallvgg:width=2:dropout=50")
        runs.append(ddfast.distill(pair, output=tmp_path / str(number), **options))
        assert torch.equal(state, torch.get_rng_state())
    assert torch.equal(runs[0].synthetic.images, runs[1].synthetic.images)


def test_a_presets_protocol_and_number_of_networks_hold_unless_others_are_given(pair):
    given = {"dataset": pair, "preset": "tesla/cifar10/ipc1", "network": "convnet:width=8"}
    assert resolve(given).config["num_eval"] == 3 and resolve(given).config["method"] == "tesla"
    assert resolve(given | {"num_eval": 4}).config["num_eval"] == 4
    simplified = resolve({"dataset": pair, "ipc": 2, "method": "simplified", "network": "convnet:width=8"}).config
    assert simplified["protocol"] == "simplified" and simplified["schedule"] == "cosine"


@pytest.mark.parametrize(
    "change, sentence",
    [
        (
            {"method": "datm", "expansion_end": 1000, "current_max_start_epoch": 1},
            "expansion_end: expected at most 3, got 1000: .* expand to 1, not to 2",
        ),
        ({"max_start_epoch": 9, "experts": True}, "have 2 epochs, starts up to epoch 8 with targets 1 later need 9"),
        ({"method": "simplified", "labels": "soft"}, "labels: expected hard for this method, got 'soft'"),
        ({"method": "mtt", "rho": 0.1}, r"rho: expected with the optimizer gsam only, got 0\.1"),
        ({"optimizer": "gsam", "experts": True}, "optimizer: the experts in .* were trained with 'sgd', got 'gsam'"),
        ({"mom": 0.9, "experts": True}, r"mom: the experts in .* were trained with 0\.0, got 0\.9"),
        ({"train_lr": 5.0, "experts": True}, r"train_lr: the experts in .* were trained with 0\.01, got 5\.0"),
        ({"method": "mtt", "drop_ratio": 0.1}, "drop_ratio: an option of pad, edf only"),
        ({"method": "datm", "preset": "mtt/digits/ipc1"}, "preset: mtt/digits/ipc1 is one of mtt, not of datm"),
        ({"threshold": "1"}, "threshold: expected a positive number, got '1'"),
        ({"rho": "x", "optimizer": "gsam"}, "rho: expected a positive number, got 'x'"),
        ({"sam_rho": "a"}, "sam_rho: expected a positive number, got 'a'"),
        ({"init": 3}, "init: expected one of real, .*, got int; save it first"),
        ({"method": "texture", "ipc": 4}, "of class '0', got 16, 4 canvases of 2 × 2 images"),
        ({"method": "texture", "zca": True}, "canvas: whitening is of whole images; .* got 2"),
        ({"eval_batch": 0}, "eval_batch: expected a whole number of at least 1, got 0"),
        ({"sam_rho": -1.0}, r"sam_rho: expected a positive number, got -1\.0"),
        ({"optimizer": "lion"}, "optimizer: expected one of sgd, gsam, got 'lion'"),
    ],
)
def test_what_contradicts_itself_is_refused_before_anything_is_written(pair, tmp_path, change, sentence):
    options = {k: v for k, v in SMALL.items() if not (k == "max_start_epoch" and k in change)} | change
    if change.get("experts"):
        options["experts"] = ddfast.train_experts(
            pair, num_experts=2, train_epochs=2, batch_train=6, dsa_strategy="none"
        )
    with pytest.raises(ValueError, match=sentence):
        ddfast.distill(pair, output=tmp_path / "run", **options)
    assert not (tmp_path / "run").exists()


FLAGS = {
    "init": "first", "labels": "soft", "syn_steps": 3, "syn_momentum": 0.5, "batch_syn": 4, "expert_epochs": 2,
    "min_start_epoch": 1, "max_start_epoch": 9, "current_max_start_epoch": 5, "expansion_end": 7, "starts": "in_turn",
    "start_noise": 0.25, "segments": 2, "distance": "l1", "lr_img": 3.0, "img_optimizer": "adam", "lr_lr": 0.5,
    "lr_teacher": 0.125, "lr_label": 2.5, "threshold": 1.5, "ema_decay": 0.75, "canvas": 2, "dsa_strategy": "flip",
    "pruning_threshold": 0.0625, "drop_ratio": 0.375, "batch_real": 7, "networks_per_step": 3, "outer_loop": 4,
    "inner_loop": 6, "lr_net": 0.03125, "batch_net": 11, "gradient_distance": "mse", "select_on": "pixels",
    "weights_of": "convolutions", "classes_at_once": 2, "most_matched": 13, "net_images": 17, "pre_epochs": 1,
    "mom_net": 0.125, "l2_net": 0.0625, "net_strategy": "crop", "cutmix": 0.25,
    "networks_from": "experts", "first_epoch": 1, "last_epoch": 5, "ce_weight": 0.625, "ce_lag": 2,
    "num_frequencies": 31, "phase_weight": 0.875, "distance_weight": 2.0, "discrimination": 0.5, "rounds": 3,
    "most_steps": 12, "most_epochs": 14, "settled": 0.0625, "moved": 0.125,
    "drop_by": "depth", "cam_interval": 7, "cam_strength": 0.0, "waypoints": 4, "smoothing": 2, "window_start": 0.375,
    "distilled_share": 0.75,
    "select_epoch": 4, "never_learnt": "last", "parameterisation": "tiles", "factor": 3, "bases": 5, "lr_weights": 0.75,
    "total_steps": 19, "window": 8, "min_steps": 2, "inner_optimizer": "sgd", "syn_decay": 0.25, "per_class": 3,
    "classes_per_step": 4, "image_norm": "always", "clip": 1.5, "windows": "last", "reach": 5,
    "policy_temperature": 0.5, "policy_decay": 0.25, "length_temperature": 3.0, "policy_mix": 0.75,
    "kernel": "nngp", "kernel_network": "conv", "kernel_depth": 3, "kernel_reg": 0.125, "distill_epochs": 4,
    "network_start": "fixed",
    "halve_every": 40, "label_form": "ridge", "batch_base": 6, "patience": 33, "label_ridge": 0.625,
}  # fmt: skip
OPTIONAL = ("batch_syn", "current_max_start_epoch", "expansion_end", "threshold", "ema_decay")


def test_every_setting_of_every_method_is_an_option_of_the_command_line(monkeypatch):
    names = {field.name for method in METHODS.values() for field in fields(method.Settings)}
    assert names == set(FLAGS)
    received = {}
    monkeypatch.setattr(ddfast, "distill", lambda **options: received.update(options) or pytest.skip())
    words = [word for name, value in FLAGS.items() for word in (f"--{name.replace('_', '-')}", str(value))]
    training = {
        "optimizer": "gsam",
        "rho": 0.5,
        "alpha": 0.25,
        "schedule": "cosine",
        "curriculum": "pad",
        "train_dsa_strategy": "crop+flip",
    }
    evaluation = {"eval_batch": 8, "sam_rho": 0.125, "protocol": "datm"}
    for name, value in (training | evaluation).items():
        words += [f"--{name}", str(value)]  # with underscores, as the field does
    with pytest.raises(pytest.skip.Exception):
        CliRunner().invoke(cli.cli, ["distill", *words], catch_exceptions=False)
    expected = FLAGS | training | evaluation
    assert {name: received[name] for name in expected} == expected
    with pytest.raises(pytest.skip.Exception):
        CliRunner().invoke(
            cli.cli, ["distill", *(w for n in OPTIONAL for w in (f"--{n}", "none"))], catch_exceptions=False
        )
    assert all(received[name] == "none" for name in OPTIONAL)


def test_presets_of_a_method_are_listed_and_info_says_which_gradient_is_approximate():
    listed = CliRunner().invoke(cli.cli, ["presets", "ftd"]).output.splitlines()
    assert "ftd/cifar10/ipc50" in listed and all(name.startswith("ftd/") for name in listed)
    plan = CliRunner().invoke(cli.cli, ["info", "--plan", "tesla/cifar10/ipc1"]).output
    assert "gradient: approximate" in plan
    assert "gradient: exact" in CliRunner().invoke(cli.cli, ["info", "--plan", "att/cifar10/ipc1"]).output
    through_time = CliRunner().invoke(cli.cli, ["info", "--plan", "rat_bptt/cifar10/ipc10"])
    assert through_time.exit_code == 0 and "100 images of 3 × 32 × 32 × 60 steps" in through_time.output
    assert "experts:" not in through_time.output
    assert "tesla: the gradient is approximate" in CliRunner().invoke(cli.cli, ["info"]).output
