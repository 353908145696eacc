"""The rate of each network: the learned one, a number, or the best on held-out training images, not on test images."""

import logging
from dataclasses import replace

import pytest
import torch

from ddfast import SyntheticSet
from ddfast.data import load_dataset
from ddfast.evaluation import PROTOCOLS, asked_rates, evaluate, evaluate_full_data, evaluate_random_real
from ddfast.evaluation.rates import RATES, held_out
from ddfast.runtime import seeds
from tests.conftest import uniform

NAMES = ("convnet", "mlp")


@pytest.fixture
def data(pair):
    return load_dataset(pair)


@pytest.fixture
def good(data):
    images, labels = data.random_real(3, seeds.generator(0))
    return SyntheticSet(images, labels, torch.tensor(30.0), data.class_names, data.preprocessing, network="convnet")


def test_the_learned_rate_is_that_of_the_network_that_the_set_was_distilled_for():
    own = PROTOCOLS["ddfast"]
    assert asked_rates(None, NAMES, "convnet", own) == {"convnet": "learned", "mlp": "auto"}
    assert asked_rates(None, NAMES, None, own) == dict.fromkeys(NAMES, "learned")
    assert asked_rates(None, NAMES, "convnet", PROTOCOLS["mtt"]) == dict.fromkeys(NAMES, "learned")  # as the paper
    for given in ("learned", "auto", 0.3):
        assert asked_rates(given, NAMES, "convnet", own) == dict.fromkeys(NAMES, given)
    assert asked_rates({"mlp": 0.1}, NAMES, "convnet", own) == {"convnet": "learned", "mlp": 0.1}


@pytest.mark.parametrize("value", ["best", 0.0, -1, float("nan"), True])
def test_another_rate_is_refused(data, good, value):
    with pytest.raises((ValueError, TypeError), match="eval_lr: expected"):
        evaluate(good, data, eval_lr=value)


def test_another_network_takes_the_best_rate_on_held_out_images_and_not_on_test_images(data, good, caplog):
    """The learned rate of 30 is absurd for the MLP; and test images with wrong labels change nothing."""
    caplog.set_level(logging.INFO, "ddfast")
    options = {"num_eval": 1, "eval_epochs": 30, "networks": ("mlp",)}
    found = evaluate(good, data, **options)
    assert found.mean > 60 and found.rates["mlp"] in RATES and not found.at_chance
    assert evaluate(good, data, eval_lr="learned", **options).rates == {"mlp": 30.0}
    wrong = replace(data, test_labels=(data.test_labels + 1) % 3)
    assert evaluate(good, wrong, **options).rates == found.rates
    assert any("by held-out training images (0.001: " in record.getMessage() for record in caplog.records)


def test_random_real_images_are_searched_for_without_those_held_out(data, monkeypatch):
    drawn, original = [], type(data).random_real
    monkeypatch.setattr(type(data), "random_real", lambda *a: drawn.append(a[3]) or original(*a))
    found = evaluate_random_real(data, 2, networks=("mlp",), num_eval=1, eval_epochs=5, eval_lr="auto")
    chosen = held_out(data)
    assert len(drawn) == len(RATES) + 1 and all(torch.equal(left_out, chosen) for left_out in drawn[:-1])
    assert drawn[-1] is None and found.rates["mlp"] in RATES
    images, labels = data.random_real(10**6, seeds.generator(0), chosen)
    assert len(images) == len(data.train_images) - len(chosen)
    assert (
        labels.bincount().tolist()
        == (torch.tensor(data.class_sizes) - data.train_labels[chosen].bincount(minlength=3)).tolist()
    )


def test_held_out_images_are_a_share_of_every_class_and_the_same_every_time(pair):
    labels = torch.tensor([0] * 50 + [1] * 10 + [2])
    data = load_dataset(((uniform(61, 1, 16, 16) / 2, labels), pair[1]))
    chosen = held_out(data)
    assert labels[chosen].bincount(minlength=3).tolist() == [10, 2, 0]
    assert torch.equal(chosen, held_out(data))
    single = replace(data, train_images=data.train_images[[0, 50, 60]], train_labels=labels[[0, 50, 60]])
    with pytest.raises(ValueError, match="eval_lr: auto holds out training images, and no class has two"):
        held_out(single)


def test_a_search_goes_on_from_what_is_in_the_file(data, good, tmp_path, monkeypatch):
    options = {"num_eval": 1, "eval_epochs": 3, "networks": ("mlp",), "output": tmp_path / "accuracies.jsonl"}
    first = evaluate(good, data, **options)
    assert len(options["output"].read_text().splitlines()) == len(RATES) + 1
    monkeypatch.setattr("ddfast.evaluation.schedule.train_networks", None)  # nothing is trained again
    again = evaluate(good, data, **options)
    assert again == first and again.records == first.records


def test_a_set_that_holds_out_images_is_searched_on_them(pair, good):
    data = load_dataset(pair, hold_out=0.25)
    assert not len(held_out(data))
    other = replace(data, held_labels=(data.held_labels + 1) % 3)
    options = {"num_eval": 1, "eval_epochs": 20, "networks": ("mlp",)}
    found, misled = (evaluate(replace(good, preprocessing=d.preprocessing), d, **options) for d in (data, other))
    assert found.records["mlp"][0]["held_out"] > 50 > misled.records["mlp"][0]["held_out"]


def test_full_data_takes_the_best_rate_as_well_and_trains_on_all_images_with_it(data, caplog):
    scrambled = replace(data, test_labels=data.test_labels.flip(0))
    found = []
    for of in (data, scrambled):
        with caplog.at_level(logging.INFO, "ddfast"):
            found.append(evaluate_full_data(of, networks=("mlp",), epochs=4, eval_lr="auto").rates["mlp"])
    assert found[0] == found[1] and f"full data: mlp: rate {found[0]:g}, by held-out training images" in caplog.text
    at_once = evaluate_full_data(data, networks=("mlp",), epochs=4, eval_lr=found[0])
    assert at_once == evaluate_full_data(data, networks=("mlp",), epochs=4, eval_lr="auto")
    assert evaluate_full_data(data, networks=("mlp",), epochs=1).rates == {"mlp": 0.01}
    with pytest.raises(ValueError, match="eval_lr: expected"):
        evaluate_full_data(data, networks=("mlp",), epochs=1, eval_lr="best")
