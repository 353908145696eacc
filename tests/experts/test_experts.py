"""Training experts, and their store."""

import math

import pytest
import torch
from safetensors.torch import save_file
from torch.utils.data import TensorDataset

from ddfast import TrajectoryStore, load_dataset, networks, train_experts
from ddfast.data import DSA
from ddfast.engine.students import GSAM, Training
from ddfast.experts import SegmentReader, train
from ddfast.runtime import seeds
from tests.conftest import uniform

OPTIONS = {"num_experts": 2, "train_epochs": 3, "batch_train": 4, "dsa_strategy": "none"}
RECORDED = [0.02668, -0.00600, -0.02043]  # what an epoch moves the last biases by


@pytest.fixture(scope="module")
def pair():
    images = uniform(12, 1, 16, 16).float() - 0.1
    return TensorDataset(images, torch.arange(12) % 3), TensorDataset(images[:6], torch.arange(6) % 3)


def test_snapshots_are_copies_of_a_training_that_moves(pair, tmp_path):
    store = train_experts(pair, output=tmp_path, **OPTIONS)
    assert (store.num_experts, store.epochs) == (2, 3)
    for expert in range(2):
        snapshots = [store.snapshot(expert, epoch) for epoch in range(4)]
        assert len({tuple(s.tolist()) for s in snapshots}) == 4
    assert not torch.equal(store.snapshot(0, 0), store.snapshot(1, 0))


@pytest.mark.parametrize("strategy", ["none", "flip_scale_color"])
def test_an_epoch_is_sgd_over_all_images_in_a_drawn_order(pair, tmp_path, strategy):
    """With momentum, weight decay and augmentation, against the formula."""
    options = {"train_epochs": 2, "num_experts": 1, "train_lr": 0.05, "mom": 0.5, "l2": 0.01, "dsa_strategy": strategy}
    store = train_experts(pair, output=tmp_path, **(OPTIONS | options))
    data = load_dataset(pair)
    batches = data.train_batches(torch.device("cpu"))
    network = networks.create("convnet", generator=seeds.generator(0, "expert", 0), **data.network_arguments)
    assert torch.equal(torch.nn.utils.parameters_to_vector(network.parameters()), store.snapshot(0, 0))
    velocities = [torch.zeros_like(p) for p in network.parameters()]
    for epoch in range(2):
        generator = seeds.generator(0, "expert", 0, "epoch", epoch)
        for chosen in torch.randperm(12, generator=generator).split(4):
            images, labels = batches.take(chosen)
            images = DSA(strategy).draw(4, data.image_size, generator)(images)
            loss = torch.nn.functional.cross_entropy(network(images), labels)
            grads = torch.autograd.grad(loss, list(network.parameters()))
            for p, grad, velocity in zip(network.parameters(), grads, velocities, strict=True):
                velocity.mul_(0.5).add_(grad + 0.01 * p.data)
                p.data -= 0.05 * velocity
        got = store.snapshot(0, epoch + 1)
        assert torch.allclose(torch.nn.utils.parameters_to_vector(network.parameters()), got, atol=1e-6)


def test_cosine_is_the_rate_of_pytorchs_schedule_by_epoch(pair, tmp_path, monkeypatch):
    rates, original = [], train.Training.step

    def step(self, *arguments):
        rates.append(self.optimizer.param_groups[0]["lr"])
        return original(self, *arguments)

    monkeypatch.setattr(train.Training, "step", step)
    train_experts(pair, output=tmp_path, schedule="cosine", **(OPTIONS | {"train_epochs": 5, "num_experts": 1}))
    rates = rates[-15:]  # before them steps were timed
    optimizer = torch.optim.SGD([torch.zeros(1)], lr=0.01)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=5)
    for epoch in range(5):
        assert rates[3 * epoch : 3 * epoch + 3] == pytest.approx(3 * schedule.get_last_lr())
        optimizer.step()
        schedule.step()
    assert rates[0] == 0.01 and rates[-1] == pytest.approx(0.005 * (1 + math.cos(0.8 * math.pi)))


def test_experts_by_gsam_step_along_its_direction(pair, tmp_path):
    options = OPTIONS | {"num_experts": 1, "train_epochs": 1, "train_lr": 0.05, "l2": 0.01}
    store = train_experts(pair, output=tmp_path, optimizer="gsam", rho=0.5, alpha=0.3, **options)
    data = load_dataset(pair)
    batches = data.train_batches(torch.device("cpu"))
    network = networks.create("convnet", generator=seeds.generator(0, "expert", 0), **data.network_arguments)
    training = Training([network], data.train_images.shape[1:], lr=0.05, weight_decay=0.01, sharpness=GSAM(0.5, 0.3))
    for chosen in torch.randperm(12, generator=seeds.generator(0, "expert", 0, "epoch", 0)).split(4):
        images, labels = batches.take(chosen)
        training.step(images[None], labels[None])
    assert torch.equal(store.snapshot(0, 1), training.parameters()[0])
    together = train_experts(
        pair, output=tmp_path / "2", optimizer="gsam", rho=0.5, alpha=0.3, at_once=2, **(options | {"num_experts": 2})
    )
    assert torch.allclose(together.snapshot(0, 1), store.snapshot(0, 1), atol=1e-5)


PLAIN = {"lr_teacher": 0.01, "mom": 0.0, "l2": 0.0, "batch_train": 256, "dsa_strategy": "none", "seed": 0}
OTHERS = {"dataset": "digits", "fingerprint": "0123", "preprocessing": {"mean": [0.5]}, "network": "convnet"}


def test_plain_sgd_is_recorded_as_ever_and_anything_else_beside_it(pair, tmp_path):
    """The name of the cache folder is that of the first version: experts from then are found."""
    assert train.folder_name({**OTHERS, **PLAIN, "device": "cpu"}, 3) == "digits-convnet-3epochs-ca74ed0147c8"
    store = train_experts(pair, output=tmp_path, rho=0.05, **OPTIONS)
    assert list(store.settings) == [*OTHERS, *PLAIN, "device"]
    for options, recorded in (
        ({"optimizer": "gsam"}, {"optimizer": "gsam", "rho": 0.01, "alpha": 1.0}),
        ({"schedule": "cosine"}, {"schedule": "cosine"}),
    ):
        name = next(iter(options))
        other = train_experts(pair, output=tmp_path / name, **options, **OPTIONS)
        assert other.settings == {**store.settings, **recorded}
        with pytest.raises(ValueError, match=rf"holds experts with other settings \({name}"):
            train_experts(pair, output=tmp_path, **options, **OPTIONS)


def test_experts_side_by_side_are_those_trained_one_by_one(pair, tmp_path):
    options = OPTIONS | {"num_experts": 3, "mom": 0.5, "l2": 0.01, "dsa_strategy": "flip_scale_color"}
    alone = train_experts(pair, output=tmp_path / "alone", **options)
    together = train_experts(pair, output=tmp_path / "together", at_once=2, **options)
    for expert in range(3):
        for epoch in range(4):
            got, expected = together.snapshot(expert, epoch), alone.snapshot(expert, epoch)
            assert torch.allclose(got, expected, atol=1e-5), (expert, epoch)


def interrupted_training(pair, monkeypatch, **options):
    """A training that Ctrl-C ends before its third epoch."""
    original = train._Training._train_epoch

    def interrupted(self):
        if self.epoch == 2:
            raise KeyboardInterrupt
        return original(self)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(train._Training, "_train_epoch", interrupted)
        train_experts(pair, **options)


def test_side_by_side_training_that_is_interrupted_goes_on(pair, tmp_path, monkeypatch):
    options = OPTIONS | {"train_epochs": 4, "mom": 0.9}
    whole = train_experts(pair, output=tmp_path / "whole", **options)
    interrupted_training(pair, monkeypatch, output=tmp_path / "killed", at_once=2, **options)
    kept = {p.name for p in (tmp_path / "killed").glob("unfinished*")}
    assert kept == {"unfinished_0000.safetensors", "unfinished_0001.safetensors"}
    store = train_experts(pair, output=tmp_path / "killed", at_once=2, **options)
    assert all(torch.allclose(store.snapshot(e, 4), whole.snapshot(e, 4), atol=1e-5) for e in range(2))


@pytest.mark.parametrize(
    "more",
    [
        {"mom": 0.0},
        {"mom": 0.9},
        {"mom": 0.9, "optimizer": "gsam", "schedule": "cosine"},
        {"mom": 0.9, "optimizer": "gsam", "network": "smallvgg:width=4"},  # with dropout
    ],
)
def test_an_interrupted_training_goes_on_bit_for_bit(pair, tmp_path, monkeypatch, more):
    options = OPTIONS | {"num_experts": 1, "train_epochs": 4, "dsa_strategy": "flip_scale"} | more
    whole = train_experts(pair, output=tmp_path / "whole", **options)
    monkeypatch.setattr(train, "KEEP_SECONDS", 0.0)
    interrupted_training(pair, monkeypatch, output=tmp_path / "killed", **options)
    assert {p.name for p in (tmp_path / "killed").glob("[!.]*")} == {"experts.json", "unfinished_0000.safetensors"}
    epochs, original = [], train._Training._train_epoch
    monkeypatch.setattr(train._Training, "_train_epoch", lambda self: epochs.append(self.epoch) or original(self))
    store = train_experts(pair, output=tmp_path / "killed", **options)
    assert epochs == [2, 3]
    assert all(torch.equal(store.snapshot(0, epoch), whole.snapshot(0, epoch)) for epoch in range(5))
    assert not list((tmp_path / "killed").glob("unfinished*"))


def test_a_damaged_unfinished_training_begins_anew(pair, tmp_path):
    store = train_experts(pair, output=tmp_path / "a", **OPTIONS)
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "unfinished_0000.safetensors").write_bytes(b"half")
    again = train_experts(pair, output=tmp_path / "b", **OPTIONS)
    assert torch.equal(again.snapshot(0, 3), store.snapshot(0, 3))


def test_experts_of_whitened_images_are_others_and_say_so(pair, tmp_path):
    store = train_experts(pair, output=tmp_path, zca=True, **OPTIONS)
    assert store.settings["preprocessing"]["zca"]["eps"] == 0.1
    with pytest.raises(ValueError, match=r"holds experts with other settings \(preprocessing\)"):
        train_experts(pair, output=tmp_path, **OPTIONS)


@pytest.mark.parametrize("network", ["convnet", "smallvgg:width=4"])
def test_the_same_seed_gives_the_same_bits_and_leaves_the_global_state_alone(pair, tmp_path, network):
    before, options = torch.get_rng_state(), OPTIONS | {"network": network}
    store = train_experts(pair, output=tmp_path / "a", **options)
    with torch.random.fork_rng(devices=[]):
        torch.rand(3)  # another global state
        again = train_experts(pair, output=tmp_path / "b", **options)
    assert torch.equal(store.snapshot(1, 3), again.snapshot(1, 3))
    other = train_experts(pair, output=tmp_path / "c", seed=1, **options)
    assert not torch.equal(store.snapshot(1, 3), other.snapshot(1, 3))
    assert torch.equal(before, torch.get_rng_state())


def test_experts_that_are_there_are_not_trained_again_and_more_can_be_added(pair, tmp_path, monkeypatch):
    trained = []
    original = train._Training.run
    monkeypatch.setattr(train._Training, "run", lambda self, name: trained.extend(self.experts) or original(self, name))
    for count in (1, 1, 3):
        assert train_experts(pair, output=tmp_path, **(OPTIONS | {"num_experts": count})).num_experts == count
    assert trained == [0, 1, 2]


def test_experts_go_to_the_users_cache_unless_told_otherwise(pair, tmp_path, monkeypatch):
    monkeypatch.setenv("DDFAST_CACHE", str(tmp_path))
    store = train_experts(pair, **OPTIONS)
    assert store.path.is_relative_to(tmp_path)
    assert train_experts(pair, **OPTIONS).path == store.path
    assert train_experts(pair, train_lr=0.02, **OPTIONS).path != store.path


def test_the_bytes_are_said_before_training(pair, tmp_path, caplog):
    with caplog.at_level("INFO", logger="ddfast"):
        store = train_experts(pair, output=tmp_path, **OPTIONS)
    (said,) = (message for message in caplog.messages if message.startswith("training 2"))
    size = sum(p.stat().st_size for p in tmp_path.glob("*.safetensors")) / 1e6
    assert said.startswith("training 2 experts of 3 epochs: ") and f" MB as float32 in {store.path}, " in said
    assert float(said.split()[6]) == pytest.approx(size, rel=0.02)


def test_a_folder_of_other_experts_is_refused(pair, tmp_path):
    train_experts(pair, output=tmp_path, **OPTIONS)
    with pytest.raises(ValueError, match=r"holds experts with other settings \(lr_teacher\)"):
        train_experts(pair, output=tmp_path, train_lr=0.5, **OPTIONS)
    with pytest.raises(ValueError, match=r"holds experts with other settings \(epochs\)"):
        train_experts(pair, output=tmp_path, **(OPTIONS | {"train_epochs": 4}))


def test_an_expert_that_diverges_is_not_stored(pair, tmp_path):
    with pytest.raises(ValueError, match="expert 0 diverged"):
        train_experts(pair, output=tmp_path, train_lr=1e30, **OPTIONS)
    assert TrajectoryStore(tmp_path).num_experts == 0


def test_a_segment_whose_ends_are_equal_names_the_expert_and_the_epochs(tmp_path):
    store = TrajectoryStore.create(tmp_path, {}, epochs=2)
    store.add(0, torch.tensor([[1.0, 2.0], [1.0, 2.0], [3.0, 4.0]]))
    with pytest.raises(ValueError, match=r"expert_0000.safetensors: the snapshots of epochs 0 and 1 are equal"):
        store.segment(0, 0, 1)
    start, target = store.segment(0, 0, 2)
    assert start.tolist() == [1.0, 2.0] and target.tolist() == [3.0, 4.0]


def test_missing_truncated_and_foreign_files_are_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="no trained experts here"):
        TrajectoryStore(tmp_path)
    for text in ("[]", '{"format": "ddfast-trajectories-1"}'):
        (tmp_path / "experts.json").write_text(text)
        with pytest.raises(ValueError, match="not a ddfast trajectory store"):
            TrajectoryStore(tmp_path)
    (tmp_path / "experts.json").unlink()
    store = TrajectoryStore.create(tmp_path, {}, epochs=1)
    store.add(0, torch.zeros(2, 1000))
    path = tmp_path / "expert_0000.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(ValueError, match="not a whole trajectory file"):
        store.snapshot(0, 1)
    save_file({"snapshots": torch.zeros(2, 1000)}, path)  # of another program: no checksums
    with pytest.raises(ValueError, match="not a whole trajectory file"):
        store.snapshot(0, 1)
    for expert, epoch, sentence in ((1, 0, "an expert from 0 to 0, got 1"), (0, 2, "an epoch from 0 to 1, got 2")):
        with pytest.raises(ValueError, match=sentence):
            store.snapshot(expert, epoch)
    with pytest.raises(ValueError, match=r"snapshots: expected \[2, P\], got \[3, 5\]"):
        store.add(1, torch.zeros(3, 5))


def test_an_altered_snapshot_is_found_out(tmp_path):
    store = TrajectoryStore.create(tmp_path, {}, epochs=2)
    store.add(0, torch.arange(30.0).view(3, 10))
    path = tmp_path / "expert_0000.safetensors"
    whole = path.read_bytes()
    path.write_bytes(whole[:-4] + b"abcd")
    store = TrajectoryStore(tmp_path)
    assert store.snapshot(0, 1).tolist() == list(range(10, 20))
    with pytest.raises(ValueError, match="the snapshot of epoch 2 is damaged: its checksum differs"):
        store.snapshot(0, 2)


@pytest.mark.parametrize(
    "change",
    [
        {"mom": 1.0},
        {"l2": -1.0},
        {"dsa_strategy": "shear"},
        {"num_experts": 0},
        {"train_epochs": 0},
        {"batch_train": 0},
        {"train_lr": 0.0},
        {"optimizer": "adam"},
        {"rho": 0.0},
        {"alpha": -1.0},
        {"schedule": "step"},
    ],
)
def test_impossible_settings_are_refused(pair, tmp_path, change):
    with pytest.raises(ValueError, match=f"{next(iter(change))}: expected"):
        train_experts(pair, output=tmp_path, **(OPTIONS | change))
    with pytest.raises(ValueError, match=r"network: expected one of convnet, resnet18, .*, got 'vgg'"):
        train_experts(pair, output=tmp_path, network="vgg", **OPTIONS)
    assert not list(tmp_path.iterdir())


def test_segments_read_ahead_are_the_same_and_go_on_from_a_state(pair, tmp_path):
    store = train_experts(pair, output=tmp_path, **OPTIONS)
    options = {
        "num_experts": 2,
        "start_epochs": lambda _: (0, 3),
        "expert_epochs": 1,
        "segments": 2,
        "device": torch.device("cpu"),
    }
    plain, ahead = (SegmentReader(store, seeds.generator(1), ahead=ahead, **options) for ahead in (False, True))
    states, read = [], []
    for _ in range(6):
        states.append(ahead.state())
        read.append(ahead.next())
        expected = plain.next()
        assert read[-1][:2] == expected[:2]
        assert torch.equal(read[-1].start, expected.start) and torch.equal(read[-1].target, expected.target)
        for row, (expert, epoch) in enumerate(zip(*read[-1][:2], strict=True)):
            assert torch.equal(read[-1].start[row], store.snapshot(expert, epoch))
            assert torch.equal(read[-1].target[row], store.snapshot(expert, epoch + 1))
    assert len({tuple(r.experts + r.start_epochs) for r in read}) > 1
    ahead.load_state(states[2])
    assert [ahead.next()[:2] for _ in range(4)] == [r[:2] for r in read[2:]]


def test_a_damaged_file_is_named_when_its_segment_is_used(pair, tmp_path):
    store = train_experts(pair, output=tmp_path, **OPTIONS | {"num_experts": 1, "train_epochs": 1})
    file = store.path / "expert_0000.safetensors"
    file.write_bytes(file.read_bytes()[:-4] + bytes(4))
    options = {
        "num_experts": 1,
        "start_epochs": lambda _: (0, 1),
        "expert_epochs": 1,
        "segments": 1,
        "device": torch.device("cpu"),
    }
    reader = SegmentReader(TrajectoryStore(store.path), seeds.generator(1), ahead=True, **options)
    with pytest.raises(ValueError, match="the snapshot of epoch 1 is damaged"):
        reader.next()


def test_an_expert_of_this_recipe_has_these_parameters(tmp_path):
    """Where this fails because training was changed on purpose: raise RECIPE in ddfast/experts/train.py, and record the
    new values. Caches of the recipe before it would be taken for experts of this one."""
    images = (torch.arange(12 * 64, dtype=torch.float64).mul(0.37).sin().abs().float()).view(12, 1, 8, 8)
    data = (images, torch.arange(12) % 3)
    options = {"network": "convnet:width=4:depth=1", "dsa_strategy": "flip_scale", "batch_train": 4, "train_lr": 0.1}
    store = train_experts(
        (data, data), output=tmp_path, num_experts=1, train_epochs=1, mom=0.5, l2=0.01, seed=7, **options
    )
    moved = store.snapshot(0, 1) - store.snapshot(0, 0)
    assert train.RECIPE == 1
    assert moved[-3:].tolist() == pytest.approx(RECORDED, abs=2e-4)


def test_a_new_recipe_trains_new_experts_in_the_cache(pair, monkeypatch):
    first = train_experts(pair, **OPTIONS)
    assert train_experts(pair, **OPTIONS).path == first.path
    monkeypatch.setattr(train, "RECIPE", 2)
    assert train_experts(pair, **OPTIONS).path != first.path
