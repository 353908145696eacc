"""What a synthetic set starts from, in the whole job and alone."""

import logging
from dataclasses import replace

import pytest
import torch

import ddfast
from ddfast import networks, seeds
from ddfast.data import load_dataset
from ddfast.methods import MatchingSettings, initial_set
from tests.conftest import SMALL, normal

NETWORK = "convnet:width=8"
SETTINGS = MatchingSettings(
    syn_steps=3, expert_epochs=1, max_start_epoch=2, lr_img=1.0, lr_lr=1e-3, lr_teacher=0.05, dsa_strategy="none"
)


@pytest.fixture
def data(pair):
    return load_dataset(pair)


@pytest.fixture
def experts(pair):
    return ddfast.train_experts(
        pair, network=NETWORK, num_experts=2, epochs=2, batch_train=6, lr_teacher=0.05, dsa_strategy="none"
    )


def network(data, snapshot=None):
    net = networks.create(NETWORK, generator=seeds.generator(1), **data.network_arguments)
    if snapshot is not None:
        torch.nn.utils.vector_to_parameters(snapshot, net.parameters())
    return net


@pytest.fixture
def begin(data, experts):
    def made(ipc=4, **options):
        return initial_set(replace(SETTINGS, **options), data, ipc, experts, 2, network(data), seeds.generator(3))

    return made


@torch.no_grad()
def judged(data, experts, images):
    """Logits of both experts, [2, I, K]."""
    return torch.stack([network(data, experts.snapshot(expert, 2))(images) for expert in range(2)])


def test_real_images_with_the_logits_of_one_expert(begin, data, experts):
    hard, soft = begin(), begin(labels="soft")
    assert torch.equal(hard.images, data.random_real(4, seeds.generator(3))[0])
    assert hard.labels.tolist() == [0] * 4 + [1] * 4 + [2] * 4
    assert torch.equal(soft.images, hard.images)
    torch.testing.assert_close(soft.labels, judged(data, experts, soft.images)[0])
    noise = begin(init="noise", labels="soft")
    assert torch.equal(noise.labels, soft.labels) and not torch.equal(noise.images, soft.images)


def test_the_first_images_of_each_class(begin, data):
    first = begin(ipc=2, init="first")
    expected = [int(i) for k in range(3) for i in (data.train_labels == k).nonzero()[:2, 0]]
    assert torch.equal(first.images, data.preprocessing.apply(data.train_images[expected]))


def test_correct_images_and_the_logits_of_the_experts_that_know_them(begin, data, experts, monkeypatch):
    classes = torch.arange(3).repeat_interleave(4)
    chosen = begin(init="correct", labels="soft")
    logits = judged(data, experts, chosen.images)
    right = logits.argmax(2) == classes
    assert right[0].all() or right.any(0).all()
    weight = torch.where(right.any(0), right, True).float()[..., None]
    torch.testing.assert_close(chosen.labels, (logits * weight).sum(0) / weight.sum(0))


def test_images_that_no_expert_knows_come_last_and_are_told(pair, caplog):
    """Experts that call everything class 1."""
    data = load_dataset(pair)
    experts = ddfast.train_experts(pair, network=NETWORK, num_experts=2, epochs=1, batch_train=6, lr_teacher=1e-9)
    biased = network(data, experts.snapshot(0, 1))
    with torch.no_grad():
        biased.classifier.bias[1] = 1e3
    vector = torch.nn.utils.parameters_to_vector(biased.parameters()).detach()
    experts.snapshot = lambda expert, epoch: vector
    caplog.set_level(logging.WARNING, "ddfast")
    settings = replace(SETTINGS, init="correct", labels="soft")
    found = initial_set(settings, data, 4, experts, 2, network(data), seeds.generator(3))
    assert [record.getMessage() for record in caplog.records] == [
        f"init: the experts classify only 0 of 8 images of {k} correctly" for k in (0, 2)
    ]
    with torch.no_grad():
        torch.testing.assert_close(found.labels, biased(found.images))  # the plain mean
    assert len(found.images.unique(dim=0)) == 12


def test_a_canvas_is_a_mosaic_of_its_class(begin, data):
    canvases = begin(ipc=2, canvas=2, labels="soft")
    images = data.random_real(8, seeds.generator(3))[0]
    assert canvases.images.shape == (6, 1, 32, 32) and canvases.labels.shape == (6, 3)
    for place, (top, left) in enumerate(((0, 0), (0, 16), (16, 0), (16, 16))):
        assert torch.equal(canvases.images[1, :, top : top + 16, left : left + 16], images[4 + place])


def test_a_saved_set_goes_on_with_its_labels_and_learning_rate(begin, data, tmp_path):
    saved = begin(labels="soft").with_values(normal(12, 1, 16, 16).float(), normal(12, 3).float(), torch.tensor(0.3))
    saved.save(tmp_path / "set")
    again = begin(init=str(tmp_path / "set.json"), labels="soft", dsa_strategy="flip")
    assert torch.equal(again.images, saved.images) and torch.equal(again.labels, saved.labels)
    assert again.lr == 0.3 and again.dsa_strategy == "flip"
    with pytest.raises(ValueError, match=r"labels: the set in .* has label logits; expected soft, got hard"):
        begin(init=str(tmp_path / "set"))
    with pytest.raises(ValueError, match=r"init: expected images \[9, 1, 16, 16\], got \[12, 1, 16, 16\] in"):
        begin(init=str(tmp_path / "set"), ipc=3)
    hard = begin()
    hard.save(tmp_path / "hard")
    learned = begin(init=str(tmp_path / "hard"), labels="soft")
    assert learned.is_soft and torch.equal(learned.images, hard.images)
    replace(hard, class_names=("a", "b", "c")).save(tmp_path / "other")
    with pytest.raises(ValueError, match=r"init: .*other was distilled from other classes"):
        begin(init=str(tmp_path / "other"))


def test_a_run_goes_on_from_another_run_and_is_resumed(pair, tmp_path, monkeypatch):
    first = ddfast.distill(pair, output=tmp_path / "one", **SMALL)
    monkeypatch.chdir(tmp_path)
    second = ddfast.distill(pair, output=tmp_path / "second", init="one", **SMALL)
    initial = ddfast.SyntheticSet.load(tmp_path / "second" / "initial")
    assert torch.equal(initial.images, first.synthetic.images) and initial.lr == first.synthetic.lr
    whole = ddfast.distill(pair, output=tmp_path / "whole", init="one", **SMALL | {"iterations": 5})
    (tmp_path / "one" / "synthetic.json").rename(tmp_path / "gone.json")
    again = ddfast.distill(pair, output=tmp_path / "second", resume=True, init="one", iterations=5)
    assert torch.equal(again.synthetic.images, whole.synthetic.images)
    with pytest.raises(ValueError, match=r"init: the run in .* has .*one', got 'noise'"):
        ddfast.distill(pair, output=tmp_path / "second", resume=True, init="noise")
    assert len(second.history) == 3
