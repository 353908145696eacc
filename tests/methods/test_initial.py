"""What a synthetic set starts from, in the whole job and alone."""

import logging
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import ddfast
from ddfast import networks
from ddfast.data import load_dataset
from ddfast.methods import TrajectorySettings, initial, initial_set
from ddfast.runtime import seeds
from tests.conftest import SMALL, normal

NETWORK = "convnet:width=8"
SETTINGS = TrajectorySettings(
    syn_steps=3, expert_epochs=1, max_start_epoch=2, lr_img=1.0, lr_lr=1e-3, lr_teacher=0.05, dsa_strategy="none"
)


@pytest.fixture
def data(pair):
    return load_dataset(pair)


@pytest.fixture
def experts(pair):
    return ddfast.train_experts(
        pair, network=NETWORK, num_experts=2, train_epochs=2, batch_train=6, train_lr=0.05, dsa_strategy="none"
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


class Erring:
    """Two experts: the first calls class 0 something else, the second class 2."""

    def __init__(self, data, experts):
        self.count, self._wrong = 2, {0: 0, 1: 2}
        self._classes = {tuple(image.flatten().tolist()): k.item() for image, k in zip(
            data.preprocessing.apply(data.train_images), data.train_labels, strict=True
        )}  # fmt: skip

    def logits(self, expert, images):
        classes = torch.tensor([self._classes[tuple(image.flatten().tolist())] for image in images])
        said = torch.where(classes == self._wrong[expert], 1, classes)
        return torch.nn.functional.one_hot(said, 3).float() * (expert + 1) + images.mean((1, 2, 3))[:, None]


def test_correct_images_and_the_logits_of_the_experts_that_know_them(data, experts, monkeypatch):
    """Class 0 is known to the second expert alone, class 2 to the first, class 1 to both."""
    monkeypatch.setattr(initial.Judges, "logits", lambda self, *given: Erring(data, experts).logits(*given))
    settings = replace(SETTINGS, init="correct", labels="soft")
    chosen = initial_set(settings, data, 4, experts, 2, network(data), seeds.generator(3))
    logits = torch.stack([Erring(data, experts).logits(expert, chosen.images) for expert in range(2)])
    expected = torch.cat([logits[1, :4], logits.mean(0)[4:8], logits[0, 8:]])
    torch.testing.assert_close(chosen.labels, expected)
    assert chosen.labels.argmax(1).tolist() == [0] * 4 + [1] * 4 + [2] * 4


def test_where_an_expert_knows_too_few_images_the_next_one_goes_on(data, experts, monkeypatch):
    """In chunks of 3 of the 8 images of a class: the first expert knows those with an even number, the second all."""
    asked = []

    def logits(self, expert, images):
        places = [
            (data.preprocessing.apply(data.train_images) == image).flatten(1).all(1).nonzero()[0] for image in images
        ]
        places = torch.cat(places)
        asked.append((expert, len(images)))
        known = data.train_labels[places]
        known = torch.where((places // 3) % 2 == 0, known, (known + 1) % 3) if expert == 0 else known
        return torch.nn.functional.one_hot(known, 3).float()

    monkeypatch.setattr(initial, "CHUNK", 3)
    monkeypatch.setattr(initial.Judges, "logits", logits)
    settings = replace(SETTINGS, init="correct")
    chosen = initial_set(settings, data, 8, experts, 2, network(data), seeds.generator(3)).images
    assert len(chosen.unique(dim=0)) == 24
    assert all(count > 0 for _, count in asked) and {expert for expert, _ in asked} == {0, 1}
    applied = data.preprocessing.apply(data.train_images)
    first_four = torch.cat([(applied == image).flatten(1).all(1).nonzero()[0] for image in chosen[:4]])
    assert ((first_four // 3) % 2 == 0).all()  # those that the first expert knows come first


def test_experts_with_batch_norm_judge_by_statistics_of_all_classes(pair):
    """An image's logits do not depend on what is judged beside it."""
    data, name = load_dataset(pair), "convnet:width=8:norm=batchnorm"
    experts = ddfast.train_experts(pair, network=name, num_experts=1, train_epochs=2, batch_train=6)
    net = networks.create(name, generator=seeds.generator(1), **data.network_arguments)
    judges = initial.Judges(net, experts, 1, data)
    images = data.preprocessing.apply(data.train_images)
    torch.testing.assert_close(judges.logits(0, images)[:3], judges.logits(0, images[:3]))


def test_images_that_no_expert_knows_come_last_and_are_told(pair, caplog):
    """Experts that call everything class 1."""
    data = load_dataset(pair)
    experts = ddfast.train_experts(pair, network=NETWORK, num_experts=2, train_epochs=1, batch_train=6, train_lr=1e-9)
    biased = network(data, experts.snapshot(0, 1))
    with torch.no_grad():
        biased.classifier.bias[1] = 1e3
    vector = torch.nn.utils.parameters_to_vector(biased.parameters()).detach()
    experts.snapshot = lambda expert, epoch: vector
    caplog.set_level(logging.WARNING, "ddfast")
    caplog.clear()
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
    with pytest.raises(ValueError, match=r"expected images \[9, 1, 16, 16\] with canvas 1, got images \[12, 1"):
        begin(init=str(tmp_path / "set"), ipc=3)
    hard = begin()
    hard.save(tmp_path / "hard")
    learned = begin(init=str(tmp_path / "hard"), labels="soft")
    assert learned.is_soft and torch.equal(learned.images, hard.images)
    replace(hard, class_names=("a", "b", "c")).save(tmp_path / "other")
    with pytest.raises(ValueError, match=r"init: .*other was distilled from other classes"):
        begin(init=str(tmp_path / "other"))


def test_a_saved_canvas_goes_on_as_one_and_gets_the_logits_of_its_tiles(begin, data, experts, tmp_path):
    saved = begin(ipc=2, canvas=2)
    saved.save(tmp_path / "canvas")
    path = str(tmp_path / "canvas")
    assert begin(ipc=2, canvas=2, init=path).canvas == 2
    torch.testing.assert_close(begin(ipc=2, canvas=2, init=path, labels="soft").labels,
                               begin(ipc=2, canvas=2, labels="soft").labels)  # fmt: skip
    large = load_dataset(((torch.rand(6, 1, 32, 32), torch.arange(6) % 3),) * 2)
    with pytest.raises(ValueError, match=r"\[6, 1, 32, 32\] with canvas 1, got images \[6, 1, 32, 32\] with canvas 2"):
        initial_set(replace(SETTINGS, init=path), large, 2, experts, 2, network(data), seeds.generator(3))


def test_a_run_goes_on_from_another_run_and_is_resumed(pair, tmp_path, monkeypatch):
    first = ddfast.distill(pair, output=tmp_path / "one", **SMALL)
    monkeypatch.chdir(tmp_path)
    second = ddfast.distill(pair, output=tmp_path / "second", init="one", **SMALL)
    initial = ddfast.SyntheticSet.load(tmp_path / "second" / "initial")
    assert torch.equal(initial.images, first.synthetic.images) and initial.lr == first.synthetic.lr
    whole = ddfast.distill(pair, output=tmp_path / "whole", init="one", **SMALL | {"iterations": 5})
    with pytest.raises(ValueError, match=r"lr_teacher: the set in one brings its own, .*; expected none"):
        ddfast.distill(pair, output=tmp_path / "third", init=Path("one"), lr_teacher=0.1, **SMALL)
    (tmp_path / "one" / "synthetic.json").rename(tmp_path / "gone.json")
    again = ddfast.distill(pair, output=tmp_path / "second", resume=True, init="one", iterations=5)
    assert torch.equal(again.synthetic.images, whole.synthetic.images)
    with pytest.raises(ValueError, match=r"init: the run in .* has .*one', got 'noise'"):
        ddfast.distill(pair, output=tmp_path / "second", resume=True, init="noise")
    assert len(second.history) == 3
