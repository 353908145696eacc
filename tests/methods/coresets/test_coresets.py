"""Coresets: each rule against its definition, as a method and as what another method begins with."""

import pytest
import torch

import ddfast
from ddfast.data import SyntheticSet, load_dataset
from ddfast.methods import METHODS, Method
from ddfast.methods.coresets.selection import SELECTIONS, herding, k_center, select
from ddfast.run.expert_options import expert_options
from ddfast.run.resolve import resolve
from tests.conftest import SMALL, normal

NETWORK = "convnet:width=8"
EXPERTS = {"num_experts": 2, "train_epochs": 3, "batch_train": 6}
JOB = {"network": NETWORK, "dsa_strategy": "none", "num_eval": 1, "eval_epochs": 2, "device": "cpu", "ipc": 2}


def test_herding_takes_the_nearest_to_what_the_mean_lacks():
    features, chosen = normal(9, 4), []
    for k in range(1, 6):
        wanted = k * features.mean(0) - features[chosen].sum(0)
        left = [n for n in range(9) if n not in chosen]
        chosen.append(min(left, key=lambda n: float((features[n] - wanted).norm())))
    assert herding(features, 5, torch.Generator()).tolist() == chosen


def test_a_herded_mean_is_nearer_than_a_random_one():
    features = normal(200, 16)
    distances = {
        name: (features[chosen].mean(0) - features.mean(0)).norm()
        for name, chosen in (("herded", herding(features, 20, torch.Generator())), ("first", torch.arange(20)))
    }
    assert distances["herded"] < distances["first"] / 4


def test_k_center_takes_the_farthest_from_those_chosen():
    features = normal(12, 3)
    chosen = k_center(features, 12, torch.Generator().manual_seed(4)).tolist()
    assert sorted(chosen) == list(range(12))
    for k in range(1, 11):
        nearest = torch.cdist(features, features[chosen[:k]]).min(1).values
        assert nearest[chosen[k]] == nearest.max()
    assert len({k_center(features, 1, torch.Generator().manual_seed(seed)).item() for seed in range(20)}) > 3


class ByScore:
    """Judges whose scores are given."""

    def __init__(self, data, scores):
        self.data, self.scores = data, scores

    def difficulty(self, *how):
        return self.scores


def test_scores_take_the_hardest_of_every_class_and_draw_among_equals(pair):
    data = load_dataset(pair)
    scores = torch.arange(24.0) // 6
    chosen = select("el2n", ByScore(data, scores), [2, 3, 1], torch.Generator().manual_seed(0))
    assert [len(indices) for indices in chosen] == [2, 3, 1]
    for k, indices in enumerate(chosen):
        assert (data.train_labels[indices] == k).all()
    assert sorted(chosen[0].tolist()) == [18, 21] and scores[chosen[1]].tolist() == [3, 3, 2]
    drawn = {tuple(select("el2n", ByScore(data, scores * 0), [1] * 3, torch.Generator().manual_seed(n))[0].tolist())
             for n in range(20)}  # fmt: skip
    assert len(drawn) > 2


@pytest.mark.parametrize("init", SELECTIONS[:-1])
def test_a_selection_is_a_method_and_the_init_of_any_other_one(init, pair, tmp_path):
    alone = ddfast.distill(pair, method=init, output=tmp_path / "alone", **JOB, **EXPERTS)
    assert alone.history == [] and "full_data" in alone.accuracy
    other = {"method": "dc", "iterations": 0, "lr_img": 0.0, "init": init}
    begun = ddfast.distill(pair, output=tmp_path / "begun", **JOB, **EXPERTS, **other)
    assert torch.equal(alone.synthetic.images, begun.synthetic.images)
    matched = ddfast.distill(pair, method="mtt", init=init, output=tmp_path / "mtt", **SMALL | JOB | {"iterations": 1})
    assert matched.synthetic.images.shape == alone.synthetic.images.shape
    again = ddfast.distill(output=tmp_path / "begun", dataset=pair, resume=True)
    assert torch.equal(again.synthetic.images, begun.synthetic.images)
    images = load_dataset(pair).preprocessing.apply(load_dataset(pair).train_images)
    for image, k in zip(alone.synthetic.images, [0, 0, 1, 1, 2, 2], strict=True):
        found = [n for n in range(24) if torch.equal(images[n], image)]
        assert found and load_dataset(pair).train_labels[found[0]] == k


@pytest.mark.parametrize("labels", ["hard", "soft"])
def test_any_method_begins_with_what_experts_classify_correctly(labels, pair, tmp_path):
    class Means(Method):
        """The mean of images, for a step that does something."""

        def loss(self, images, labels):
            return images.mean().square() + labels.float().mean()

    METHODS.add("means_of_all", Means)
    options = {"method": "means_of_all", "iterations": 1, "lr_img": 0.0, "init": "correct", "labels": labels}
    result = ddfast.distill(pair, output=tmp_path / "run", **JOB, **EXPERTS, **options)
    assert result.synthetic.is_soft == (labels == "soft") and "full_data" in result.accuracy
    METHODS._known.pop("means_of_all")


def test_pixels_need_no_experts(pair, tmp_path):
    result = ddfast.distill(pair, method="herding", select_on="pixels", output=tmp_path / "run", **JOB)
    data = load_dataset(pair)
    images = data.preprocessing.apply(data.train_images)
    first = data.by_class()[1]
    chosen = herding(images[first].flatten(1), 2, torch.Generator())
    assert torch.equal(result.synthetic.images[2:4], images[first[chosen]])
    assert "experts" not in resolve({"dataset": pair, "method": "herding", "select_on": "pixels", **JOB}).config


def test_experts_that_are_trained_alone_are_those_of_a_run(pair):
    alone = expert_options("digits", 1, "el2n", None, {})
    config = resolve({"dataset": "digits", "method": "el2n", "device": "cpu"}).config
    for name in ("num_experts", "train_epochs", "train_lr", "mom", "l2", "network", "dsa_strategy"):
        assert alone[name] == config[name]
    with pytest.raises(ValueError, match=r"method: random looks at no experts"):
        expert_options("digits", 1, "random", None, {})


def test_random_is_the_baseline_and_never_called_useless(pair, tmp_path):
    result = ddfast.distill(pair, method="random", output=tmp_path / "run", **JOB)
    assert result.useless is None and SyntheticSet.load(tmp_path / "run" / "synthetic").ipc == 2


@pytest.mark.parametrize(
    "options, sentence",
    [
        ({"method": "herding", "iterations": 3}, r"iterations: herding selects images and learns nothing; expected 0"),
        ({"method": "herding", "init": "k_center"}, r"init: expected herding"),
        ({"method": "random", "lr_img": 1.0}, r"lr_img: a selection learns nothing"),
        ({"method": "random", "num_experts": 2}, r"num_experts: this run looks at no experts"),
        ({"method": "dc", "experts": "somewhere"}, r"no trained experts here"),
        ({"method": "el2n", "train_epochs": 4, "select_epoch": 2, "keep_epochs": "3-4"}, r"keep_epochs: "),
        ({"method": "forgetting", "keep_epochs": "needed"}, r"keep_epochs: init forgetting looks at all epochs"),
        ({"method": "k_center", "ipc": 20}, r"init k_center begins with real images"),
        ({"method": "herding", "select_on": "sounds"}, r"select_on: expected one of experts, pixels"),
    ],
)
def test_what_cannot_be_is_refused_before_any_work(options, sentence, pair, tmp_path):
    with pytest.raises((ValueError, OSError), match=sentence):
        ddfast.distill(pair, output=tmp_path / "run", **JOB | options)
    assert not (tmp_path / "run").exists()
