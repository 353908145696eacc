"""Experts' snapshots in the place of random networks, and the cross-entropy of later ones."""

import pytest
import torch
from torch.nn.functional import cross_entropy
from torch.nn.utils import parameters_to_vector

import ddfast
from ddfast.data import SyntheticSet, load_dataset
from ddfast.engine.students import Features
from ddfast.methods import DM, Resources
from ddfast.methods.distribution.dm import DMSettings
from ddfast.networks import create
from ddfast.run.resolve import resolve
from tests.conftest import interrupt_after, normal, relative_error

NETWORK, EPOCHS = "convnet:width=8", 4
SMALL = {"iterations": 3, "num_eval": 1, "eval_epochs": 2, "device": "cpu", "network": NETWORK, "batch_real": 4}
EXPERTS = {"num_experts": 2, "train_epochs": EPOCHS, "batch_train": 6, "train_lr": 0.05, "dsa_strategy": "none"}


@pytest.fixture
def store(pair):
    return ddfast.train_experts(pair, network=NETWORK, **EXPERTS)


def method_on(pair, store, **settings):
    data, generator = load_dataset(pair), torch.Generator().manual_seed(0)

    def build(drawn):
        return create(NETWORK, **data.network_arguments, generator=drawn)

    settings = DMSettings(batch_real=5, dsa_strategy="none", **settings)
    about = (torch.arange(6) % 3, None, data.class_names, data.preprocessing)
    resources = Resources(build(generator), generator, build, data=data, experts=store)
    return DM(settings, SyntheticSet(normal(6, 1, 16, 16).float(), *about), resources)


def looking(method, times=60):
    """The parameters of networks that look, in so many steps."""
    return [parameters_to_vector(method._networks()[0][0].parameters()).detach() for _ in range(times)]


def test_snapshots_of_the_epochs_that_are_asked_for_look(pair, store):
    method = method_on(pair, store, networks_from="experts", first_epoch=1, last_epoch=3)
    known = [store.snapshot(expert, epoch) for expert in range(2) for epoch in range(EPOCHS + 1)]
    found = {next(n for n, snapshot in enumerate(known) if torch.equal(snapshot, seen)) for seen in looking(method)}
    assert found == {1, 2, 3, 6, 7, 8}


def test_networks_between_lie_on_the_line_from_first_to_last(pair, store):
    method = method_on(pair, store, networks_from="between")
    ends = [[store.snapshot(expert, epoch) for epoch in (0, EPOCHS)] for expert in range(2)]
    shares = []
    for seen in looking(method, 12):
        errors = []
        for first, last in ends:
            share = float((seen - first) @ (last - first) / (last - first).square().sum())
            errors.append((float((first + share * (last - first) - seen).norm() / (last - first).norm()), share))
        error, share = min(errors)
        assert error < 1e-5 and -1e-6 <= share <= 1 + 1e-6
        shares.append(share)
    assert max(shares) - min(shares) > 0.3


@pytest.mark.parametrize("lag, later", [(1, 3), (2, 4), (9, 4), (None, 4)])
def test_the_cross_entropy_in_a_later_snapshot_is_added(lag, later, pair, store):
    options = {"networks_from": "experts", "first_epoch": 2, "last_epoch": 2}
    method = method_on(pair, store, ce_weight=0.5, ce_lag=lag, **options)
    images, labels = method.learned.take().values[0], method.learned.take().labels
    before = method.generator.get_state()
    loss = method.loss(images, labels)
    method.generator.set_state(before)
    expert = next(e for e in range(2) if torch.equal(store.snapshot(e, 2), looking(method, 1)[0]))
    method.generator.set_state(before)
    plain = method_on(pair, store, **options)
    plain.generator.set_state(before)
    net = create(NETWORK, **load_dataset(pair).network_arguments, generator=torch.Generator())
    torch.nn.utils.vector_to_parameters(store.snapshot(expert, later), net.parameters())
    order = torch.cat([(labels == k).nonzero()[:, 0] for k in range(3)])
    expected = plain.loss(images, labels) + 0.5 * cross_entropy(net(images[order]), labels[order])
    assert relative_error(loss.detach(), expected.detach()) < 1e-5


@pytest.mark.parametrize("method", ["dm", "ncfm"])
@pytest.mark.parametrize("networks_from", ["experts", "between"])
def test_it_distils_resumes_and_trains_experts_where_none_are_given(networks_from, method, pair, tmp_path):
    options = SMALL | EXPERTS | {"method": method, "networks_from": networks_from, "ce_weight": 0.5}
    whole = ddfast.distill(pair, output=tmp_path / "whole", **options)
    assert "full_data" in whole.accuracy
    with pytest.raises(KeyboardInterrupt):
        ddfast.distill(pair, output=tmp_path / "parts", progress=interrupt_after(2), **options)
    parts = ddfast.distill(pair, output=tmp_path / "parts", resume=True)
    assert torch.equal(whole.synthetic.images, parts.synthetic.images)


def test_iterations_within_a_budget_are_timed_without_experts(pair, monkeypatch):
    timed = []
    features = Features.__init__
    monkeypatch.setattr(Features, "__init__", lambda self, *given: timed.append(1) or features(self, *given))
    given = {"dataset": pair, "method": "dm", "networks_from": "experts", "budget": "1min", "device": "cpu"}
    config = resolve(given | {"network": NETWORK, "num_eval": 1, "eval_epochs": 1}).config
    assert config["iterations"] > 1 and config["num_experts"] == 5 and timed


@pytest.mark.parametrize(
    "options, sentence",
    [
        ({"networks_from": "experts", "first_epoch": 3, "last_epoch": 2}, r"last_epoch: expected at least first_epoch"),
        ({"networks_from": "elsewhere"}, r"networks_from: expected"),
        ({"num_experts": 3}, r"num_experts: this run looks at no experts"),
        ({"networks_from": "experts", "keep_epochs": (3, 4), "first_epoch": 1}, r"keep_epochs: this run can use"),
    ],
)
def test_what_cannot_be_is_refused_in_one_sentence(options, sentence, pair, tmp_path):
    with pytest.raises(ValueError, match=sentence):
        ddfast.distill(pair, method="dm", output=tmp_path / "run", **SMALL | options)
    assert not (tmp_path / "run").exists()
