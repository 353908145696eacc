"""Training experts, and their store."""

import pytest
import torch
from torch.utils.data import TensorDataset

from ddfast import TrajectoryStore, networks, seeds, train_experts
from ddfast.experts import train
from tests.conftest import uniform

OPTIONS = {"num_experts": 2, "epochs": 3, "batch_train": 4}


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


def test_an_epoch_is_plain_sgd_over_all_images_in_a_drawn_order(pair, tmp_path):
    store = train_experts(pair, output=tmp_path, **(OPTIONS | {"epochs": 1, "num_experts": 1, "lr_teacher": 0.05}))
    data = train.load_dataset(pair)
    generator = seeds.generator(0, "expert", 0)
    network = networks.create("convnet", generator=generator, **data.network_arguments)
    assert torch.equal(torch.nn.utils.parameters_to_vector(network.parameters()), store.snapshot(0, 0))
    for chosen in torch.randperm(12, generator=generator).split(4):
        loss = torch.nn.functional.cross_entropy(network(data.train_images[chosen]), data.train_labels[chosen])
        for parameter, grad in zip(
            network.parameters(), torch.autograd.grad(loss, list(network.parameters())), strict=True
        ):
            parameter.data -= 0.05 * grad
    assert torch.allclose(torch.nn.utils.parameters_to_vector(network.parameters()), store.snapshot(0, 1), atol=1e-6)


def test_the_same_seed_gives_the_same_bits_and_leaves_the_global_state_alone(pair, tmp_path):
    before = torch.get_rng_state()
    stores = [train_experts(pair, output=tmp_path / name, **OPTIONS) for name in "ab"]
    assert torch.equal(stores[0].snapshot(1, 3), stores[1].snapshot(1, 3))
    other = train_experts(pair, output=tmp_path / "c", seed=1, **OPTIONS)
    assert not torch.equal(stores[0].snapshot(1, 3), other.snapshot(1, 3))
    assert torch.equal(before, torch.get_rng_state())


def test_experts_that_are_there_are_not_trained_again_and_more_can_be_added(pair, tmp_path, monkeypatch):
    trained = []
    original = train._train_expert
    monkeypatch.setattr(
        train, "_train_expert", lambda data, expert, *a: trained.append(expert) or original(data, expert, *a)
    )
    for count in (1, 1, 3):
        assert train_experts(pair, output=tmp_path, **(OPTIONS | {"num_experts": count})).num_experts == count
    assert trained == [0, 1, 2]


def test_experts_go_to_the_users_cache_unless_told_otherwise(pair, tmp_path, monkeypatch):
    monkeypatch.setenv("DDFAST_CACHE", str(tmp_path))
    store = train_experts(pair, **OPTIONS)
    assert store.path.is_relative_to(tmp_path)
    assert train_experts(pair, **OPTIONS).path == store.path
    assert train_experts(pair, lr_teacher=0.02, **OPTIONS).path != store.path


def test_the_bytes_are_said_before_training(pair, tmp_path, caplog):
    with caplog.at_level("INFO", logger="ddfast"):
        store = train_experts(pair, output=tmp_path, **OPTIONS)
    said = caplog.messages[0]
    size = sum(p.stat().st_size for p in tmp_path.glob("*.safetensors")) / 1e6
    assert said.startswith(f"training 2 experts of 3 epochs: {size:.1f} MB in {store.path}")


def test_a_folder_of_other_experts_is_refused(pair, tmp_path):
    train_experts(pair, output=tmp_path, **OPTIONS)
    with pytest.raises(ValueError, match=r"holds experts with other settings \(lr_teacher\)"):
        train_experts(pair, output=tmp_path, lr_teacher=0.5, **OPTIONS)
    with pytest.raises(ValueError, match=r"holds experts with other settings \(epochs\)"):
        train_experts(pair, output=tmp_path, **(OPTIONS | {"epochs": 4}))


def test_an_expert_that_diverges_is_not_stored(pair, tmp_path):
    with pytest.raises(ValueError, match="expert 0 diverged"):
        train_experts(pair, output=tmp_path, lr_teacher=1e30, **OPTIONS)
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
    for expert, epoch, sentence in ((1, 0, "an expert from 0 to 0, got 1"), (0, 2, "an epoch from 0 to 1, got 2")):
        with pytest.raises(ValueError, match=sentence):
            store.snapshot(expert, epoch)
    with pytest.raises(ValueError, match=r"snapshots: expected \[2, P\], got \[3, 5\]"):
        store.add(1, torch.zeros(3, 5))


@pytest.mark.parametrize("change", [{"num_experts": 0}, {"epochs": 0}, {"batch_train": 0}, {"lr_teacher": 0.0}])
def test_impossible_settings_are_refused(pair, tmp_path, change):
    with pytest.raises(ValueError, match=f"{next(iter(change))}: expected"):
        train_experts(pair, output=tmp_path, **(OPTIONS | change))
    with pytest.raises(ValueError, match="network: expected one of convnet, resnet18, got 'vgg'"):
        train_experts(pair, output=tmp_path, network="vgg", **OPTIONS)
    assert not list(tmp_path.iterdir())
