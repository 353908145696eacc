"""Sets of which a step uses a part: the same as all of it on the device, and only the part is touched."""

from dataclasses import replace

import pytest
import torch

import ddfast
from ddfast import networks
from ddfast.data import load_dataset
from ddfast.methods import DATM, MTT, Resources
from ddfast.runtime import seeds
from tests.conftest import SMALL, relative_error
from tests.methods.test_initial import SETTINGS

PART = replace(SETTINGS, batch_syn=3, syn_steps=2, lr_img=10.0)  # 6 of 24 images


@pytest.fixture
def make(pair):
    experts = ddfast.train_experts(
        pair, num_experts=2, train_epochs=2, batch_train=6, train_lr=0.05, dsa_strategy="none"
    )
    data = load_dataset(pair)

    def made(settings=PART, method=MTT, **options):
        images, labels = data.random_real(8, seeds.generator(0))
        if settings.labels == "soft":
            labels = torch.nn.functional.one_hot(labels).float()
        synthetic = ddfast.SyntheticSet(images, labels, torch.tensor(0.05), data.class_names, data.preprocessing)
        network = networks.create("convnet", generator=seeds.generator(1), **data.network_arguments)
        options["device"] = torch.device(options.get("device", "cpu"))
        return method(settings, synthetic, Resources(network, seeds.generator(2), experts=experts, **options))

    return made


@pytest.mark.parametrize("soft", [False, True])
def test_images_that_visit_end_as_if_all_stayed(make, soft, monkeypatch):
    settings = replace(PART, labels="soft", lr_label=0.5) if soft else PART
    visiting = make(settings)
    assert visiting.learned.visiting is not None
    records = [visiting.step() for _ in range(8)]
    monkeypatch.setattr(type(settings), "on_device", lambda self, count: count)
    staying = make(settings)
    assert staying.learned.visiting is None
    for record in records:
        assert staying.step()["loss"] == pytest.approx(record["loss"], rel=1e-4)
    before = make(settings).current()
    for name in ("images", "labels") if soft else ("images",):
        moves = [getattr(run.current(), name) - getattr(before, name) for run in (visiting, staying)]
        assert moves[1].abs().max() > 1e-3 and relative_error(*moves) < 1e-4  # float32
    assert torch.equal(visiting.current().labels.argmax(-1), staying.current().labels.argmax(-1))


def test_only_the_images_of_a_step_are_touched(make, monkeypatch):
    run = make()
    seen = []
    original = run.learned.visiting.visit
    monkeypatch.setattr(
        run.learned.visiting, "visit", lambda batches: seen.append(batches.flatten()) or original(batches)
    )
    before = run.current().images
    run.step()
    changed = (run.current().images != before).flatten(1).any(1).nonzero()[:, 0]
    assert changed.tolist() == sorted(seen[0].tolist()) and len(changed) == 6


def test_an_update_that_is_left_out_leaves_the_set_as_it_was(make, monkeypatch):
    run = make()
    run.step()
    before = run.current()
    monkeypatch.setattr(run, "compare", lambda student, *_: student.sum(1) * float("nan"))
    assert run.step()["skipped"] == 1
    assert torch.equal(run.current().images, before.images)


@pytest.mark.parametrize("visits", [1, 4])
def test_after_divergence_both_kinds_go_back_to_before_the_last_update(make, visits, monkeypatch):
    """Skipped visits of other images, and of some that the last update changed, in between."""
    visiting, runs = make(), []
    monkeypatch.setattr(type(PART), "on_device", lambda self, count: count)
    for run in (visiting, make()):
        states = []
        for _ in range(3):
            states.append(run.current())
            run.step()
        monkeypatch.setattr(run, "compare", lambda student, *_: student.sum(1) * float("nan"))
        for _ in range(visits):
            run.step()
        if run is visiting:
            other = visiting.state_dict()
        run.restore()
        assert relative_error(run.current().images - states[0].images, states[2].images - states[0].images) < 1e-4
        assert run.current().lr == states[2].lr
        runs.append(run)
    monkeypatch.undo()
    again = make()
    again.load_state_dict(other)
    again.restore()
    assert torch.equal(again.current().images, visiting.current().images)
    losses = [run.step()["loss"] for run in runs]
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)


def test_a_gate_leaves_visitors_as_it_leaves_those_that_stay(make, monkeypatch):
    first = make().step()["loss"]
    gated = replace(PART, threshold=first * 1.001)  # some losses are above, some below
    visiting = make(gated)
    records = [visiting.step() for _ in range(8)]
    monkeypatch.setattr(type(PART), "on_device", lambda self, count: count)
    staying = make(gated)
    for record in records:
        assert staying.step()["gated"] == record["gated"]
    assert 0 < records[-1]["gated"] < 8
    assert relative_error(visiting.current().images, staying.current().images) < 1e-5


def test_a_checkpoint_and_a_rollback_are_bit_for_bit(make, monkeypatch):
    one, other = make(), make()
    for run in (one, other):
        for _ in range(3):
            run.step()
    state, mark = one.state_dict(), other.mark()
    other.step()
    other.rollback(mark)
    third = make()
    third.load_state_dict(state)
    assert torch.equal(other.current().images, third.current().images)
    monkeypatch.setattr(other.learned.visiting, "leave", lambda *given: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        other.step()
    monkeypatch.undo()
    assert other.step() == third.step()
    assert torch.equal(other.current().images, third.current().images)


def test_an_average_or_adam_moves_all_images_so_they_all_stay(make):
    for change in ({"ema_decay": 0.9}, {"img_optimizer": "adam"}):
        assert make(replace(PART, **change)).learned.visiting is None
    assert make(DATM.Settings(**vars(replace(PART, labels="soft"))), DATM).learned.visiting is not None


def test_a_run_of_visiting_images_resumes_bit_for_bit(pair, tmp_path):
    options = SMALL | {"ipc": 8, "batch_syn": 2}
    whole = ddfast.distill(pair, output=tmp_path / "whole", **options | {"iterations": 4})
    ddfast.distill(pair, output=tmp_path / "parts", **options | {"iterations": 2})
    parts = ddfast.distill(pair, output=tmp_path / "parts", resume=True, iterations=4)
    assert torch.equal(whole.synthetic.images, parts.synthetic.images)
