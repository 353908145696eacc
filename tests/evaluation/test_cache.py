"""The accuracies of an evaluation are kept one by one, and one that was stopped goes on."""

import importlib
import json

import pytest
import torch

import ddfast
from ddfast.data import SyntheticSet, load_dataset

schedule = importlib.import_module("ddfast.evaluation.schedule")
HOW = {"num_eval": 3, "eval_epochs": 2, "networks": ("convnet:width=8", "mlp")}


@pytest.fixture
def synthetic(pair):
    data = load_dataset(pair)
    images, labels = data.preprocessing.apply(data.train_images[:6]), data.train_labels[:6]
    return SyntheticSet(images, labels, torch.tensor(0.01), data.class_names, data.preprocessing)


def test_an_evaluation_that_was_stopped_trains_only_what_is_missing(pair, synthetic, tmp_path, monkeypatch):
    whole, output, trained = ddfast.evaluate(synthetic, pair, **HOW), tmp_path / "accuracies.jsonl", []
    train = schedule.train_networks

    def stop(nets, *args, **kwargs):
        trained.append(len(nets))
        if len(trained) == 5:
            raise KeyboardInterrupt
        train(nets, *args, **kwargs)

    monkeypatch.setattr(schedule, "train_networks", stop)
    with pytest.raises(KeyboardInterrupt):
        ddfast.evaluate(synthetic, pair, output=output, **HOW)
    assert len(output.read_text().splitlines()) == 4
    with open(output, "a") as file:
        file.write('{"evaluation": "abc')  # as a kill would leave it
    resumed = ddfast.evaluate(synthetic, pair, output=output, **HOW)
    assert resumed == whole and len(trained) == 7  # the one that was stopped, and one more
    lines = output.read_text().splitlines()
    assert lines[4] == '{"evaluation": "abc' and [json.loads(line)["training"] for line in lines[5:]] == [1, 2]
    assert ddfast.evaluate(synthetic, pair, output=output, **HOW) == whole and len(trained) == 7


@pytest.mark.parametrize("change", ["set", "epochs", "seed", "lr"])
def test_accuracies_of_another_evaluation_are_not_taken(pair, synthetic, tmp_path, change):
    output = tmp_path / "accuracies.jsonl"
    how = HOW | {"networks": ("mlp",)}
    ddfast.evaluate(synthetic, pair, output=output, **how)
    if change == "set":
        synthetic.images.mul_(2)
    else:
        how |= {"epochs": {"eval_epochs": 3}, "seed": {"seed": 1}, "lr": {"eval_lr": 0.02}}[change]
    expected = ddfast.evaluate(synthetic, pair, **how)
    assert ddfast.evaluate(synthetic, pair, output=output, **how) == expected
    assert len(output.read_text().splitlines()) == 6
