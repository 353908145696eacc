"""Data that no preset is of: settings from the data, a budget and a probe, and what a run says of its result."""

import json
import logging
import math
from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from click.testing import CliRunner

import ddfast
from ddfast.cli import USELESS, cli
from ddfast.data import load_dataset
from ddfast.methods import INITS, SetSettings
from ddfast.run import own_data, verdict
from ddfast.run.loop import initial_of
from ddfast.run.presets import choose_preset
from ddfast.run.probe import RATES, apply_rates, probe_rates
from ddfast.run.resolve import resolve
from tests.conftest import SMALL

CPU = torch.device("cpu")


def images_of(count, classes, side=16, channels=3, scale=1.0):
    """Classes that are told apart by where they are bright."""
    generator = torch.Generator().manual_seed(1)
    labels = torch.arange(count) % classes
    images = 0.3 * torch.rand(count, channels, side, side, generator=generator)
    for k in range(classes):
        rows = slice(k * side // classes, (k + 1) * side // classes)
        images[labels == k, :, rows] += 0.6
    return (scale * images).clamp(0, 1), labels


def dataset(count=60, classes=2, **options):
    return load_dataset((images_of(count, classes, **options), images_of(40, classes, **options)))


@pytest.fixture
def speed(monkeypatch):
    """Seconds of an image in a training step of width 32; wider ones take as many times longer, squared."""
    now = {"seconds": 1e-4}

    def training(network, data, batch, strategy, device):
        times = (int(network.rpartition("=")[2]) / 32) ** 2 if "width" in network else 16
        return batch * now["seconds"] * times, now["seconds"] * times / 3

    monkeypatch.setattr(own_data, "time_training", training)
    monkeypatch.setattr(own_data, "time_unroll", lambda *arguments: 4 * training(*arguments)[0])
    return now


def derived(data, budget=1200.0, count=None, kept=None, **given):
    row = choose_preset("mtt", data.name, 1, side=32, classes=data.num_classes).settings
    return own_data.derive(data, count or data.num_classes, given, row, CPU, budget, kept)


@pytest.mark.parametrize("count", [40, 100, 500, 2000, 10_000])
def test_segments_are_of_about_as_many_steps_whatever_the_number_of_images(speed, count):
    settings = derived(dataset(count, side=8)).settings
    steps = math.ceil(count / settings["batch_train"])
    assert 16 <= settings["batch_train"] <= 256
    length, starts = settings["expert_epochs"] * steps, settings["max_start_epoch"] * steps
    most = own_data.MOST_EPOCHS
    assert 100 <= length <= 320 or settings["expert_epochs"] in (1, most)
    assert 200 <= starts <= 640 or settings["max_start_epoch"] in (2, most)
    assert settings["min_start_epoch"] == 0 and settings["expansion_end"] is None


def test_more_images_per_class_let_segments_begin_later_and_are_cut_into_minibatches(speed):
    data = dataset(400, 4, side=8)
    few, many = derived(data), derived(data, count=4 * 50)
    assert many.settings["max_start_epoch"] > few.settings["max_start_epoch"]
    assert few.settings["batch_syn"] is None and many.settings["batch_syn"] == own_data.MOST_AT_ONCE


def seconds_of(settings, data, speed):
    """What the amounts take, on the clock of the fixture."""
    times = (int(settings["network"].rpartition("=")[2]) / 32) ** 2
    one, count = speed["seconds"] * times, data.num_classes
    epochs = settings["max_start_epoch"] - 1 + settings["expert_epochs"]
    experts = settings["num_experts"] * epochs * len(data.train_images) * one
    images = settings["iterations"] * settings["syn_steps"] * 4 * count * one
    tested = len(data.test_images) * one / 3
    return experts + images + 2 * settings["num_eval"] * (settings["eval_epochs"] * count * one + tested)


@pytest.mark.parametrize("seconds", [1e-6, 1e-5, 1e-4, 1e-3])
def test_amounts_fit_the_budget_and_grow_with_it(speed, seconds):
    speed["seconds"], data = seconds, dataset(600, 2, side=8)
    amounts = [derived(data, budget) for budget in (600.0, 1200.0, 7200.0)]
    for budget, one in zip((600.0, 1200.0, 7200.0), amounts, strict=True):
        assert seconds_of(one.settings, data, speed) <= budget
    for less, more in pairwise(amounts):
        wider = int(more.settings["network"][14:]) - int(less.settings["network"][14:])
        assert wider > 0 or (wider == 0 and more.settings["iterations"] >= less.settings["iterations"])


def test_a_budget_that_nothing_fits_is_told_and_the_least_is_taken(speed, caplog):
    speed["seconds"] = 1.0
    settings = derived(dataset(), 60.0).settings
    experts, iterations, evaluation = own_data.SMALLEST
    assert (settings["num_experts"], settings["iterations"]) == (experts, iterations)
    assert (settings["num_eval"], settings["eval_epochs"]) == evaluation
    assert "the smallest useful run takes about" in caplog.text and "more than 60 s" in caplog.text


def test_what_is_given_stays_and_the_rest_fits_it(speed):
    data = dataset(600, 2, side=8)
    chosen = derived(data, batch_train=20, num_experts=2, network="convnet:width=64", expert_epochs=3)
    assert not {"batch_train", "num_experts", "network", "expert_epochs"} & chosen.settings.keys()
    assert chosen.settings["max_start_epoch"] == round(own_data.STARTS / 30)


def test_nothing_is_timed_where_all_amounts_are_given(monkeypatch):
    monkeypatch.setattr(own_data, "time_training", lambda *arguments: pytest.fail("timed"))
    given = {"network": "convnet", "num_experts": 1, "iterations": 1, "num_eval": 1, "eval_epochs": 1}
    assert "iterations" not in derived(dataset(), **given).settings


def test_given_experts_decide_where_segments_may_begin(speed):
    settings = derived(dataset(500, side=8), kept=(3, 4, 5, 6, 7, 30)).settings
    assert settings["min_start_epoch"] == 3
    assert settings["max_start_epoch"] - 1 + settings["expert_epochs"] <= 7
    assert settings["max_start_epoch"] > 3


def test_every_derived_value_is_told_with_its_reason(speed, caplog):
    with caplog.at_level(logging.INFO, "ddfast"):
        job = resolve({"dataset": dataset(), "ipc": 1})
    assert "no preset for these data" in caplog.text
    for name in ("batch_train", "expert_epochs", "max_start_epoch", "network", "num_experts", "iterations"):
        assert f"  {name} {job.config[name]}: " in caplog.text and job.config["derived"][name]
    assert job.config["probed"] == list(RATES)


@pytest.mark.parametrize("name", ["digits", "mnist"])
def test_the_presets_of_named_data_stay_as_published(speed, name):
    row = choose_preset("mtt", name, 1).settings
    data = replace(dataset(600, 10, side=16, channels=1), name=name)
    job = resolve({"dataset": data, "ipc": 1})
    assert {key: job.config[key] for key in row} == row and not job.config["probed"]


def test_a_budget_shortens_a_preset_and_leaves_all_else(speed):
    data = replace(dataset(600, 10, side=32), name="cifar10")
    given = {"dataset": data, "ipc": 1, "zca": False}
    whole, short = resolve(given), resolve(given | {"budget": "10min"})
    differing = {name for name in whole.config if whole.config[name] != short.config.get(name)}
    amounts = {"iterations", "num_experts", "num_eval", "eval_epochs", "train_epochs"}
    assert amounts - {"num_eval"} <= differing <= amounts | {"budget", "derived", "derived_settings"}
    assert short.config["iterations"] < 5000 and short.config["num_experts"] < 100


@pytest.fixture
def job(tmp_path, monkeypatch):
    monkeypatch.setenv("DDFAST_CACHE", str(tmp_path))
    names = ("lr_img", "lr_lr")
    return resolve({"dataset": dataset(), "ipc": 2} | {n: v for n, v in SMALL.items() if n not in names})


def probed(job):
    experts = ddfast.train_experts(job.data, num_experts=2, train_epochs=2, batch_train=6, train_lr=0.02)
    return probe_rates(job, initial_of(job, experts), experts), experts


def test_with_the_probed_rate_the_student_goes_as_far_as_the_expert(job):
    rates, experts = probed(job)
    apply_rates(job, rates)
    initial, ratios = initial_of(job, experts), []
    assert initial.lr.item() == pytest.approx(rates["lr_teacher"])
    for expert in range(2):
        start, target = experts.segment(expert, 0, 1)
        end = ddfast.unroll(job.network("x"), start, initial.images, initial.labels, initial.lr, syn_steps=3)
        ratios.append(float((end - start).norm() / (target - start).norm()))
    assert 0.5 < sum(ratios) / 2 < 2


def test_probed_rates_follow_the_scale_of_images_and_experts(job):
    """The first update changes the images by the same share, whatever the rates of the experts."""
    rates, _ = probed(job)
    slower = ddfast.train_experts(job.data, num_experts=2, train_epochs=2, batch_train=6, train_lr=0.002)
    other = probe_rates(job, initial_of(job, slower), slower)
    assert other["lr_teacher"] < rates["lr_teacher"] / 3
    assert other["lr_lr"] == pytest.approx(0.05 * other["lr_teacher"] ** 2, rel=0.1)


def test_a_probe_draws_nothing_from_the_run_and_says_the_same_twice(job):
    rates, experts = probed(job)
    state = torch.random.get_rng_state()
    assert probe_rates(job, initial_of(job, experts), experts) == rates
    assert torch.equal(torch.random.get_rng_state(), state)


def test_rates_that_are_given_are_kept(tmp_path, monkeypatch):
    monkeypatch.setenv("DDFAST_CACHE", str(tmp_path))
    job = resolve({"dataset": dataset(), "ipc": 2, "lr_teacher": 0.03, **SMALL})
    assert not job.config["probed"]
    rates, _ = probed(job)
    apply_rates(job, rates)
    assert job.config["lr_img"] == SMALL["lr_img"] and job.settings.lr_teacher == 0.03


def test_a_saved_set_brings_its_rate_and_the_others_are_probed(tmp_path, monkeypatch):
    monkeypatch.setenv("DDFAST_CACHE", str(tmp_path))
    amounts = {name: value for name, value in SMALL.items() if name not in ("lr_img", "lr_lr")}
    first = ddfast.distill(dataset(), output=tmp_path / "first", **amounts)
    job = resolve({"dataset": dataset(), "init": str(tmp_path / "first"), **amounts})
    assert job.config["probed"] == ["lr_img", "lr_lr"] and job.settings.init not in INITS
    result = ddfast.distill(dataset(), output=tmp_path / "second", init=str(tmp_path / "first"), **amounts)
    initial = ddfast.SyntheticSet.load(tmp_path / "second" / "initial")
    assert initial.lr == first.synthetic.lr
    assert json.loads((result.path / "config.json").read_text())["probed_rates"].keys() == {"lr_img", "lr_lr"}


def test_a_run_with_probed_rates_goes_on_bit_for_bit(tmp_path, monkeypatch):
    monkeypatch.setenv("DDFAST_CACHE", str(tmp_path))
    amounts = {name: value for name, value in SMALL.items() if name not in ("lr_img", "lr_lr", "iterations")}
    whole = ddfast.distill(dataset(), output=tmp_path / "whole", iterations=4, **amounts)
    ddfast.distill(dataset(), output=tmp_path / "parts", iterations=2, **amounts)
    parts = ddfast.distill(dataset(), output=tmp_path / "parts", iterations=4, resume=True)
    assert torch.equal(whole.synthetic.images, parts.synthetic.images)


def test_experts_that_learned_nothing_end_a_run_whose_settings_are_ours(speed, tmp_path, monkeypatch):
    monkeypatch.setenv("DDFAST_CACHE", str(tmp_path))
    generator = torch.Generator().manual_seed(0)
    noise = torch.rand(60, 1, 8, 8, generator=generator), torch.arange(60) % 2
    job = resolve({"dataset": (noise, noise), "ipc": 1})
    store = ddfast.train_experts(job.data, network=job.config["network"], num_experts=1, train_epochs=1, train_lr=1e-8)
    job.config["num_experts"] = 1
    with pytest.raises(ValueError, match=r"experts: 1 of the first 1 learned nothing: .* chance is 50.0%"):
        verdict.check_that_experts_learned(job, store)


def test_such_experts_of_the_users_own_are_a_warning(tmp_path, monkeypatch, caplog):
    monkeypatch.setenv("DDFAST_CACHE", str(tmp_path))
    options = SMALL | {"train_epochs": 2, "train_lr": 1e-8, "lr_teacher": 0.01, "iterations": 1}
    ddfast.distill(dataset(), output=tmp_path / "run", **options)
    assert "learned nothing" in caplog.text


def row(mean, std=1.0, n=5):
    return {"mean": mean, "std": std, "n": n}


@pytest.mark.parametrize(
    ("distilled", "random_real", "better"),
    [
        (row(50), row(40), True),
        (row(40), row(50), False),
        (row(40), row(40), False),
        (row(40.5), row(40), False),  # within the standard error
        (row(40.7), row(40), True),
        (row(40.1, 0, 1), row(40, 0, 1), True),
    ],
)
def test_better_is_more_than_the_standard_error_of_the_difference(distilled, random_real, better):
    assert verdict.is_better(distilled, random_real) == better


@pytest.mark.parametrize(
    ("records", "full", "moved", "advice"),
    [
        ([{"loss": 1.0, "lr": 1e-6}] * 150, 90, 300.0, "lower lr_lr"),
        ([{"loss": 2.2, "lr": 1e-6}] * 150, 90, 6.0, "farther from its target than it began (loss 2.2); let segments"),
        ([{"loss": 1.0, "lr": 0.1, "updated": False}] * 150, 90, 1.0, "lower lr_teacher or lr_img"),
        ([{"loss": 1.0, "lr": 0.1}] * 10, 90, 1.0, "give more (iterations"),
        ([{"loss": 1.0, "lr": 0.1}] * 10, 90, 252.0, "the images moved 252 times as far as they are large; lower"),
        (
            [{"loss": 1.0, "lr": 0.1}] * 150,
            90,
            0.0025,
            "images hardly moved, by 0.0025 of their size; raise lr_img",
        ),
        ([{"loss": 2.9, "lr": 0.1}] * 150, 90, 0.0025, "raise lr_img"),  # as from noise
        ([{"loss": 1.0, "lr": 0.1}] * 20, 90, 1e-5, "the images hardly moved, by 1e-05 of their size; raise lr_img"),
        ([{"loss": 2.9, "lr": 0.1}] * 150, 90, 252.0, "lower lr_img"),
        ([{"loss": 2.0 / n, "lr": 0.1} for n in range(1, 11)], 90, 1.0, "give more (iterations"),
        ([{"loss": 1.0, "lr": 1e-6}] * 150, 90, 0.0, "lower lr_lr"),
        ([{"loss": 1.0, "lr": 0.1, "updated": False, "gated": n} for n in range(150)], 90, 0.0, "raise threshold"),
        ([{"loss": 1.0, "lr": 0.1}] * 150, 90, 1.0, "the loss did not fall"),
        ([{"loss": 1.0, "lr": 0.1}] * 150, 90, None, "the loss did not fall"),
        ([{"loss": 1.0, "lr": 0.1}] * 150, 50, 1.0, "the experts themselves reach 50.0%"),
        ([{"loss": 1.0 / n, "lr": 0.1} for n in range(1, 151)], 90, 1.0, "the experts are few"),
    ],
)
def test_the_verdict_says_what_to_change(job, records, full, moved, advice):
    accuracy = {"distilled": row(40), "random_real": row(50), "full_data": row(full)}
    sentence = verdict.verdict(job, accuracy, records, moved)
    assert "no better than random real ones (40.0% ± 1.0 against 50.0% ± 1.0)" in sentence and advice in sentence


@pytest.mark.parametrize(
    ("changed", "advice"),
    [
        ({"lr_lr": 0.0}, "raise lr_teacher, for lr_lr is 0"),
        ({"lr_img": 0.0, "lr_lr": 0.0}, "lr_img is 0, and nothing else of the images is learned"),
    ],
)
def test_the_verdict_knows_what_was_asked_for(job, changed, advice):
    accuracy = {"distilled": row(40), "random_real": row(50), "full_data": row(90)}
    other = replace(job, settings=replace(job.settings, **changed))
    assert advice in verdict.verdict(other, accuracy, [{"loss": 1.0, "lr": 1e-6}] * 150, 0.0)


def test_the_verdict_needs_no_option_that_a_method_of_ones_own_may_lack(job):
    """Such as lr_lr, where the method learns a rate all the same."""
    accuracy = {"distilled": row(40), "random_real": row(50)}
    other = replace(job, settings=SetSettings(lr_img=1.0), config=job.config | {"method": "dm"})
    assert "lower lr_lr" in verdict.verdict(other, accuracy, [{"loss": 1.0, "lr": 1e-6}] * 150, 1.0)


def test_experts_that_learned_nothing_are_told_beside_good_random_images(job):
    accuracy = {"distilled": row(40), "random_real": row(90), "full_data": row(50)}
    assert "the experts themselves reach 50.0%" in verdict.verdict(job, accuracy, [{"loss": 1.0, "lr": 1e-6}] * 150)


def test_a_useless_result_has_an_exit_status_of_its_own_and_stays_so(tmp_path, monkeypatch):
    monkeypatch.setenv("DDFAST_CACHE", str(tmp_path))
    options = (
        "distill --num-experts 1 --train-epochs 2 --max-start-epoch 1 --expert-epochs 1 --syn-steps 1 --iterations 1"
    )
    options = [*options.split(), "--lr-img", "0", "--lr-lr", "0", "--num-eval", "2", "--eval-epochs", "1"]
    for is_new in (True, False):
        result = CliRunner().invoke(cli, [*options, "--output", str(tmp_path / "run"), "--resume"])
        assert result.exit_code == USELESS, result.output
        assert ("time: about " in result.output) == is_new
        assert "useless: the distilled images are no better than random real ones" in result.output
    assert "lr_img is 0" in json.loads((tmp_path / "run" / "summary.json").read_text())["useless"]


def test_experts_and_evaluate_say_how_long_they_take_too(tmp_path, monkeypatch):
    monkeypatch.setenv("DDFAST_CACHE", str(tmp_path))
    images = load_dataset("digits").random_real(1, torch.Generator().manual_seed(0))
    data = load_dataset("digits")
    digits = ddfast.SyntheticSet(*images, torch.tensor(0.01), data.class_names, data.preprocessing)
    digits.save(tmp_path / "set")
    commands = [
        "experts --num-experts 1 --epochs 1 --network convnet:width=8",
        f"evaluate {tmp_path / 'set'} --dataset digits --num-eval 1 --eval-epochs 1 --networks convnet:width=8,mlp",
    ]
    for command in commands:
        result = CliRunner().invoke(cli, command.split())
        assert result.exit_code == 0 and "time: about " in result.output, result.output


def test_own_data_without_an_option_end_better_than_random_real_images(tmp_path, monkeypatch):
    """In small: the budget is all that is given."""
    monkeypatch.setenv("DDFAST_CACHE", str(tmp_path))
    monkeypatch.setattr(own_data, "WIDTHS", (16,))
    monkeypatch.setattr(own_data, "MOST_ITERATIONS", 60)
    monkeypatch.setattr(own_data, "MOST_EXPERTS", 3)
    monkeypatch.setattr(own_data, "EVALUATIONS", ((3, 60),))
    monkeypatch.setattr(own_data, "LEAST", (3, 60, (3, 60)))
    digits = load_dataset("digits")
    few = torch.cat([(digits.train_labels == k).nonzero()[:30, 0] for k in range(10)])
    pair = (digits.train_images[few], digits.train_labels[few]), (digits.test_images, digits.test_labels)
    result = ddfast.distill(pair, ipc=1, output=tmp_path / "run")
    assert result.useless is None
    assert result.accuracy["distilled"]["mean"] > result.accuracy["random_real"]["mean"] + 5
