"""Which images an epoch of an expert sees, and experts that are trained like this."""

import pytest
import torch

import ddfast
from ddfast.data import load_dataset
from ddfast.experts import Curriculum, Judges, TrajectoryStore
from ddfast.experts.curriculum import shares_of
from ddfast.networks import create
from tests.conftest import interrupt_after

HOW = {"network": "convnet:width=8", "num_experts": 2, "train_epochs": 3, "batch_train": 6, "train_lr": 0.05}
HOW |= {"dsa_strategy": "none", "curriculum": "pad"}


def test_the_shares_are_pads():
    assert shares_of(0) == (0, 0.75) and shares_of(10) == (0, 0.875)
    assert shares_of(20) == shares_of(40) == (0, 1)
    assert shares_of(41) == shares_of(60) == (0.1, 1) and shares_of(61) == shares_of(99) == (0.2, 1)


@pytest.mark.parametrize("epoch, ranks", [(0, range(15)), (30, range(20)), (50, range(2, 20)), (80, range(4, 20))])
def test_an_epoch_sees_that_share_of_every_class_by_difficulty(epoch, ranks):
    labels = torch.arange(60) % 3
    difficulty = torch.rand(60, generator=torch.Generator().manual_seed(0))
    seen = Curriculum(difficulty, labels).images(epoch)
    assert torch.equal(seen, seen.sort().values)
    for k in range(3):
        order = sorted((n for n in range(60) if labels[n] == k), key=lambda n: float(difficulty[n]))
        assert sorted(n for n in seen.tolist() if labels[n] == k) == sorted(order[rank] for rank in ranks)


def test_a_class_of_one_image_is_always_seen():
    for epoch in (0, 30, 50, 90):
        assert Curriculum(torch.zeros(4), torch.tensor([0, 0, 0, 1])).images(epoch)[-1] == 3


def test_experts_see_the_easiest_first_and_keep_the_scores(pair, tmp_path, monkeypatch):
    seen = []
    data, taken = load_dataset(pair), []
    batches = type(data.train_batches(torch.device("cpu")))
    take = batches.take
    monkeypatch.setattr(batches, "take", lambda self, indices: taken.append(indices) or take(self, indices))
    images = Curriculum.images
    monkeypatch.setattr(
        Curriculum, "images", lambda self, epoch: seen.append((epoch, images(self, epoch))) or seen[-1][1]
    )
    store = ddfast.train_experts(pair, output=tmp_path / "experts", **HOW)
    assert store.settings["curriculum"] == "pad" and [epoch for epoch, _ in seen] == [0, 1, 2] * 2
    assert len(seen[0][1]) == 18  # 3/4 of 24
    judging = TrajectoryStore(tmp_path / "experts" / "judges")
    net = create("convnet:width=8", generator=torch.Generator(), **data.network_arguments)
    scores = Judges(net, judging, 3, data).difficulty("el2n")
    for k in range(3):
        of_class = scores[data.train_labels == k].sort().values
        assert scores[[n for n in seen[0][1].tolist() if data.train_labels[n] == k]].max() == of_class[5]
    assert list((tmp_path / "experts" / "judges").glob("difficulty-el2n-*"))
    last = torch.cat(taken[-3:])  # of the last epoch: 6 minibatches of 6, of 18 images
    assert set(last.tolist()) <= set(seen[-1][1].tolist())
    plain = ddfast.train_experts(pair, output=tmp_path / "plain", **HOW | {"curriculum": "none"})
    assert not torch.equal(plain.snapshot(0, 3), store.snapshot(0, 3)) and "curriculum" not in plain.settings


def test_a_run_trains_such_experts_and_resumes(pair, tmp_path):
    options = HOW | {"method": "pad", "iterations": 3, "syn_steps": 2, "expert_epochs": 1, "max_start_epoch": 2}
    options |= {"min_start_epoch": 0, "current_max_start_epoch": "none", "expansion_end": "none", "zca": False}
    options |= {"lr_img": 1.0, "num_eval": 1, "eval_epochs": 2, "device": "cpu", "labels": "hard", "init": "real"}
    whole = ddfast.distill(pair, output=tmp_path / "whole", **options)
    with pytest.raises(KeyboardInterrupt):
        ddfast.distill(pair, output=tmp_path / "parts", progress=interrupt_after(2), **options)
    parts = ddfast.distill(pair, output=tmp_path / "parts", resume=True)
    assert torch.equal(whole.synthetic.images, parts.synthetic.images)
    with pytest.raises(ValueError, match=r"curriculum: the experts in .* were trained with 'pad', got 'none'"):
        given = ddfast.train_experts(pair, **HOW)
        ddfast.distill(pair, output=tmp_path / "other", **options | {"experts": given, "curriculum": "none"})


def test_an_unknown_curriculum_is_refused(pair):
    with pytest.raises(ValueError, match=r"curriculum: expected none or pad|curriculum: expected one of none, pad"):
        ddfast.train_experts(pair, **HOW | {"curriculum": "hardest"})
