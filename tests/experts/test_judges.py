"""How difficult images are to experts: every score against its definition, and what is kept of it."""

from itertools import pairwise

import pytest
import torch
from torch.nn.functional import cross_entropy
from torch.nn.utils import vector_to_parameters

import ddfast
from ddfast import networks
from ddfast.data import load_dataset
from ddfast.experts import Judges
from tests.conftest import relative_error

NETWORK, EPOCHS = "convnet:width=8", 5


@pytest.fixture
def judges(pair):
    data = load_dataset(pair)
    how = {"num_experts": 2, "train_epochs": EPOCHS, "batch_train": 6, "train_lr": 0.05, "dsa_strategy": "none"}
    store = ddfast.train_experts(pair, network=NETWORK, **how)
    for file in store.path.glob("difficulty-*"):
        file.unlink()
    return Judges(networks.create(NETWORK, generator=torch.Generator(), **data.network_arguments), store, 2, data)


def network_at(judges, expert, epoch):
    net = networks.create(NETWORK, generator=torch.Generator(), **judges.data.network_arguments)
    vector_to_parameters(judges.experts.snapshot(expert, epoch), net.parameters())
    return net.eval()


def images_of(judges):
    return judges.data.preprocessing.apply(judges.data.train_images), judges.data.train_labels


def test_el2n_is_the_norm_of_the_error_and_grand_that_of_the_last_layers_gradient(judges):
    images, labels = images_of(judges)
    el2n, grand = torch.zeros(2, len(labels)), torch.zeros(2, len(labels))
    for expert in range(2):
        net = network_at(judges, expert, 1)
        *_, last = [module for module in net.modules() if isinstance(module, torch.nn.Linear)]
        for n, (image, label) in enumerate(zip(images, labels, strict=True)):
            logits = net(image[None])
            gradients = torch.autograd.grad(cross_entropy(logits, label[None]), (last.weight, last.bias))
            grand[expert, n] = torch.cat([g.flatten() for g in gradients]).norm()
            el2n[expert, n] = (logits[0].softmax(0) - torch.eye(3)[label]).norm()
    assert relative_error(judges.difficulty("el2n", 1), el2n.mean(0)) < 1e-4
    assert relative_error(judges.difficulty("grand", 1), grand.mean(0)) < 1e-4


@pytest.mark.parametrize("never_learnt", ["first", "last"])
def test_forgetting_counts_falls_from_right_to_wrong(judges, never_learnt, monkeypatch):
    labels = judges.data.train_labels
    right = torch.rand(2, EPOCHS, len(labels), generator=torch.Generator().manual_seed(1)) < 0.6
    right[:, :, 3] = False  # never learnt
    right[:, :, 4] = True

    class Scripted(torch.nn.Module):
        def __init__(self, expert, epoch):
            super().__init__()
            self.answers = torch.where(right[expert, epoch - 1], labels, (labels + 1) % 3)

        def forward(self, images):
            return torch.eye(3)[self.answers]

    monkeypatch.setattr(judges, "network", Scripted)
    expected = []
    for runs in right.transpose(1, 2).tolist():
        counts = [sum(a and not b for a, b in pairwise(run)) for run in runs]
        extra = max(c for c, run in zip(counts, runs, strict=True) if any(run)) + 1 if never_learnt == "first" else 0
        expected.append([c if any(run) else extra for c, run in zip(counts, runs, strict=True)])
    assert torch.equal(
        judges.difficulty("forgetting", never_learnt=never_learnt), torch.tensor(expected).float().mean(0)
    )


def test_scores_are_kept_beside_the_experts_and_damaged_ones_computed_again(judges, monkeypatch):
    first = judges.difficulty("el2n", 2)
    (file,) = judges.experts.path.glob("difficulty-el2n-2-*")
    computed = []
    errors = judges._errors
    monkeypatch.setattr(judges, "_errors", lambda *given: computed.append(1) or errors(*given))
    assert torch.equal(judges.difficulty("el2n", 2), first) and not computed
    file.write_bytes(file.read_bytes()[:-8])
    assert torch.equal(judges.difficulty("el2n", 2), first) and computed
    assert not torch.equal(judges.difficulty("el2n", 3), first)


def test_the_default_epoch_is_the_kept_one_nearest_to_the_tenth(judges):
    assert torch.equal(judges.difficulty("el2n"), judges.difficulty("el2n", EPOCHS))
    with pytest.raises(ValueError, match=r"select_epoch: .* got 9"):
        judges.difficulty("el2n", 9)
