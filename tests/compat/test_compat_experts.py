"""Experts of others that do not fit their data, and state dicts: into a store and out of it."""

from collections import OrderedDict
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

import ddfast
from ddfast import compat, networks
from ddfast.data import load_dataset
from ddfast.runtime import seeds
from ddfast.runtime.files import read_json
from tests.compat.test_compat import SHAPES, WIDTH, buffer, contents, flat
from tests.compat.test_compat_sets import command
from tests.conftest import uniform


@pytest.fixture(scope="module")
def digits():
    return ddfast.load_dataset("digits")


def network(name: str, digits, seed: int = 0) -> nn.Module:
    return networks.create(name, generator=seeds.generator(seed), **digits.network_arguments)


@pytest.fixture(scope="module")
def trained(tmp_path_factory, digits) -> dict[bool, Path]:
    """Buffers of two experts, made without and with whitening."""
    made = {}
    for zca in (False, True):
        folder = tmp_path_factory.mktemp("trained")
        options = {"network": WIDTH, "num_experts": 2, "train_epochs": 4, "batch_train": 32, "train_lr": 0.05}
        store = ddfast.train_experts("digits", zca=zca, output=folder / "store", dsa_strategy="none", **options)
        compat.convert(store.path, folder / "buffers", "replay-buffer")
        made[zca] = folder / "buffers"
    return made


@pytest.mark.parametrize("made", [False, True])
@pytest.mark.parametrize("taken", [False, True])
def test_the_accuracy_of_experts_says_whether_their_preprocessing_is_right(made, taken, trained, tmp_path, caplog):
    caplog.set_level("INFO", "ddfast")
    read = {"dataset": "digits", "zca": taken, "network": WIDTH}
    store = ddfast.TrajectoryStore(compat.convert(trained[made], tmp_path / "store", **read))
    check, other = store.about["check"], "accuracy_unwhitened" if taken else "accuracy_whitened"
    right, wrong = (check["accuracy"], check[other])[:: 1 if made == taken else -1]
    assert check["experts"] == [0, 1] and sum(right) > sum(wrong) + 12
    assert f"test accuracy of expert 0 and 1: {sum(check['accuracy']) / 2:.1f}% with" in caplog.text
    words = "with" if made else "without"
    flag = "--zca" if made else "--no-zca"
    assert (f"it seems to be made {words} whitening; convert it again with {flag}" in caplog.text) == (made != taken)
    before = contents(store.path)
    compat.convert(trained[made], store.path, **read)  # compares, and checks again
    assert contents(store.path) == before and read_json(store.path / "experts.json")["check"] == check


def test_a_whitening_of_a_check_is_nearly_the_whitening_itself(digits):
    from ddfast.compat.expert_check import _other

    whitened = digits.whitened()
    wanted = whitened.preprocessing.apply(digits.test_images)
    torch.testing.assert_close(_other(digits)(digits.test_images), wanted, rtol=0, atol=1e-4)


def test_checks_can_be_left_out(trained, tmp_path, caplog):
    options = ["--dataset", "digits", "--no-zca", "--network", WIDTH, "--no-check"]
    done = command("convert", str(trained[False]), str(tmp_path / "store"), *options)
    assert done.exit_code == 0, done.output
    assert "check" not in ddfast.TrajectoryStore(tmp_path / "store").about and "accuracy" not in caplog.text


def test_experts_of_another_order_of_classes_and_those_that_got_worse_are_told(trained, tmp_path, digits, caplog):
    experts = torch.load(trained[False] / "replay_buffer_0.pt", weights_only=True)
    torch.save([expert[2:] + expert[:1] for expert in experts], tmp_path / "worse.pt")
    compat.read_replay_buffers(tmp_path / "worse.pt", tmp_path / "worse", digits, network=WIDTH)
    assert "expert 1 is worse at its end" in caplog.text and "its training diverged" in caplog.text
    caplog.clear()
    for expert in experts:
        for snapshot in expert:
            snapshot[-2:] = [parameter.roll(1, 0) for parameter in snapshot[-2:]]
    torch.save(experts, tmp_path / "rolled.pt")
    compat.read_replay_buffers(tmp_path / "rolled.pt", tmp_path / "rolled", digits, network=WIDTH)
    assert "chance for 10 classes: untrained experts, or another preprocessing, order of classes" in caplog.text


def test_a_buffer_whose_snapshots_are_all_the_last_one_is_refused(tmp_path, digits):
    net = network(WIDTH, digits)
    timestamps = []
    for _ in range(3):
        timestamps.append([p.detach().cpu() for p in net.parameters()])  # on a CPU these are the live weights
        with torch.no_grad():
            [p.add_(1) for p in net.parameters()]
    torch.save([timestamps], tmp_path / "replay_buffer_0.pt")
    with pytest.raises(ValueError, match=r"expert 0: all 3 snapshots are equal: on a CPU, code that keeps parameters"):
        compat.convert(tmp_path, tmp_path / "store", dataset="digits", zca=False, network=WIDTH)
    assert not (tmp_path / "store" / "experts.json").exists()


def test_equal_neighbours_are_told_and_a_match_of_them_says_why_it_cannot_be(tmp_path, digits, caplog):
    whole = buffer(snapshots=4)
    whole[1][2] = whole[1][1]
    torch.save(whole, tmp_path / "replay_buffer_0.pt")
    store = compat.read_replay_buffers(tmp_path, tmp_path / "store", digits, network=WIDTH)
    assert "expert 1: the snapshots of epochs 2 equal those before them" in caplog.text
    with pytest.raises(ValueError, match=r"there is no trajectory to match \(snapshots that were not copied"):
        store.segment(1, 1, 2)


def test_a_buffer_of_one_expert_alone_is_read(tmp_path, digits):
    torch.save(buffer()[1], tmp_path / "mine.pt")
    assert compat.recognise(tmp_path / "mine.pt") == "replay-buffer"
    store = compat.read_replay_buffers(tmp_path / "mine.pt", tmp_path / "store", digits, network=WIDTH, check=False)
    assert store.num_experts == 1 and store.snapshot(0, 2).equal(flat(buffer()[1][2]))


def field_convnet(width: int = 4, norm=lambda width: nn.GroupNorm(width, width, affine=True)) -> nn.Module:
    """The ConvNet of DC's and MTT's code at 16 pixels: two blocks of four layers, and a classifier."""

    class ConvNet(nn.Module):
        def __init__(self):
            super().__init__()
            layers = []
            for channels in (1, width):
                block = [
                    nn.Conv2d(channels, width, 3, padding=1),
                    norm(width),
                    nn.ReLU(inplace=True),
                    nn.AvgPool2d(2, 2),
                ]
                layers += block
            self.features = nn.Sequential(*layers)
            self.classifier = nn.Linear(width * 16, 10)

        def forward(self, x):
            return self.classifier(self.features(x).flatten(1))

    return ConvNet()


@pytest.fixture(scope="module")
def store(tmp_path_factory, digits):
    folder = tmp_path_factory.mktemp("experts")
    return ddfast.train_experts(
        digits, network=WIDTH, num_experts=2, train_epochs=2, batch_train=500, output=folder / "experts"
    )


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
def test_an_expert_becomes_a_state_dict_that_the_fields_network_loads(suffix, store, digits, tmp_path):
    file = tmp_path / f"expert{suffix}"
    done = command("convert", str(store.path), str(file), "--expert", "1", "--epoch", "1")
    assert done.exit_code == 0, done.output
    state = load_file(file) if suffix == ".safetensors" else torch.load(file, weights_only=True)
    ours, theirs = network(WIDTH, digits), field_convnet()
    for net in (ours, theirs):
        net.load_state_dict(state, strict=True)
    assert torch.cat([p.detach().flatten() for p in theirs.parameters()]).equal(store.snapshot(1, 1))
    images = digits.preprocessing.apply(digits.test_images[:5])
    with torch.no_grad():
        torch.testing.assert_close(theirs.double()(images.double()), ours.double()(images.double()))
    last = store.state_dict(0)
    assert torch.cat([value.flatten() for value in last.values()]).equal(store.snapshot(0, 2))


def test_batch_norms_of_an_exported_expert_have_statistics_of_the_training_images(digits, tmp_path):
    name = f"{WIDTH}:norm=batchnorm"
    made = ddfast.train_experts(
        digits, network=name, num_experts=1, train_epochs=1, batch_train=500, output=tmp_path / "experts"
    )
    compat.write_state_dict(made, tmp_path / "expert.pt", digits)
    net = field_convnet(norm=nn.BatchNorm2d)
    net.load_state_dict(torch.load(tmp_path / "expert.pt", weights_only=True), strict=True)
    first = net.features[0](digits.preprocessing.apply(digits.train_images))
    torch.testing.assert_close(net.features[1].running_mean, first.mean((0, 2, 3)).detach(), rtol=0.02, atol=0.02)


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ("--expert 2", "expected an expert from 0 to 1, got 2"),
        ("--epoch 3", "expected an epoch from 0 to 2, got 3"),
        ("--to state-dict --per-file 2", "per_file: has no meaning in a conversion of ddfast's experts to state-dict"),
        ("--expert 0 --dataset digits --image-size 8", "were trained on images"),
        ("--expert 0 --to mtt", "is ddfast's experts, which can become replay-buffer, state-dict; got mtt"),
    ],
)
def test_a_state_dict_that_cannot_be_is_refused_in_a_sentence(arguments, sentence, store, tmp_path):
    done = command("convert", str(store.path), str(tmp_path / "expert.pt"), *arguments.split())
    assert isinstance(done.exception, ValueError) and sentence in str(done.exception), done.output
    assert not (tmp_path / "expert.pt").exists()


def states(digits, count: int = 11, seed: int = 0) -> list[dict]:
    """A trajectory of the field's network: its state dict again and again."""
    net = field_convnet()
    found = []
    for step in range(count):
        for number, parameter in enumerate(net.parameters()):
            parameter.data = torch.full_like(parameter, 0.01 * (seed + step) + 0.001 * number)
        found.append({name: value.clone() for name, value in net.state_dict().items()})
    return found


def wanted(found: list[dict]) -> list[torch.Tensor]:
    return [torch.cat([value.flatten() for value in state.values()]) for state in found]


def folder_of_files(folder: Path, found: list[dict]) -> Path:
    folder.mkdir(parents=True)
    for epoch, state in enumerate(found):  # checkpoints as a loop with DataParallel writes them
        parallel = OrderedDict((f"module.{name}", value) for name, value in state.items())
        torch.save({"epoch": epoch, "state_dict": parallel, "optimizer": {"lr": 0.1}}, folder / f"epoch_{epoch}.pth")
    return folder


def test_state_dicts_of_a_loop_of_ones_own_become_experts(digits, tmp_path):
    one, other = states(digits), states(digits, seed=50)
    torch.save(one, tmp_path / "one.pt")
    torch.save([one, other], tmp_path / "two.pt")
    folder_of_files(tmp_path / "files", one)
    for number, found in enumerate((one, other)):
        folder_of_files(tmp_path / "runs" / f"run{number}", found)
    (tmp_path / "safe").mkdir()
    for epoch, state in enumerate(one):
        save_file(state, tmp_path / "safe" / f"{epoch}.safetensors")
    for name, experts in (("one.pt", 1), ("two.pt", 2), ("files", 1), ("runs", 2), ("safe", 1)):
        assert compat.recognise(tmp_path / name) == "state-dict"
        options = ["--dataset", "digits", "--no-zca", "--network", WIDTH, "--no-check", "--mom", "0.9"]
        done = command("convert", str(tmp_path / name), str(tmp_path / f"store of {name}"), *options)
        assert done.exit_code == 0, done.output
        read = ddfast.TrajectoryStore(tmp_path / f"store of {name}")
        assert (read.num_experts, read.epochs, read.settings["mom"]) == (experts, 10, 0.9)
        for expert, found in enumerate((one, other)[:experts]):
            assert all(read.snapshot(expert, e).equal(values) for e, values in enumerate(wanted(found)))
    read = compat.read_state_dicts([one, other], tmp_path / "python", digits, network=WIDTH, check=False)
    assert read.num_experts == 2 and read.snapshot(1, 10).equal(wanted(other)[10])


def test_exported_snapshots_make_the_same_expert_again(store, digits, tmp_path):
    found = [store.state_dict(1, epoch, digits) for epoch in range(3)]
    again = compat.read_state_dicts(found, tmp_path / "again", digits, network=WIDTH)
    assert all(again.snapshot(0, epoch).equal(store.snapshot(1, epoch)) for epoch in range(3))
    assert again.about["check"]["test_images"] == len(digits.test_images)


def test_state_dicts_with_names_of_their_own_are_taken_in_their_order(digits, tmp_path):
    renamed = [{f"{n}.w": value for n, value in enumerate(state.values())} for state in states(digits, 2)]
    read = compat.read_state_dicts(renamed, tmp_path / "store", digits, network=WIDTH, check=False)
    assert read.snapshot(0, 1).equal(wanted(states(digits, 2))[1])


WRAPPERS = {
    "compiled in parallel": lambda state: {f"module._orig_mod.{name}": value for name, value in state.items()},
    "compiled layers": lambda state: {name.replace("features.", "features._orig_mod."): v for name, v in state.items()},
    "averaged": lambda state: {"n_averaged": torch.tensor(3)} | {f"module.{name}": v for name, v in state.items()},
    "flat": lambda state: {"flat_param": torch.cat([value.flatten() for value in state.values()])},
    "flat in parallel": lambda state: {"module.flat_param": torch.cat([value.flatten() for value in state.values()])},
}


@pytest.mark.parametrize("wrapper", WRAPPERS)
def test_state_dicts_of_wrapped_networks_are_those_of_the_networks_inside(wrapper, digits, tmp_path):
    torch.save(list(map(WRAPPERS[wrapper], states(digits, 2))), tmp_path / "wrapped.pt")
    assert compat.recognise(tmp_path / "wrapped.pt") == "state-dict"
    read = compat.read_state_dicts(tmp_path / "wrapped.pt", tmp_path / "store", digits, network=WIDTH, check=False)
    assert all(read.snapshot(0, epoch).equal(values) for epoch, values in enumerate(wanted(states(digits, 2))))


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (lambda s: [s.clear(), s.update(flat_param=torch.zeros(7))], "unknown are flat_param"),
        (
            lambda s: s.pop("classifier.bias"),
            r"epoch 0: expected the network's parameters .*; missing are classifier.bias",
        ),
        (lambda s: s.update({"extra.weight": torch.zeros(1)}), "unknown are extra.weight"),
        (
            lambda s: s.update({"features.0.bias": torch.zeros(5)}),
            r"expected parameter 1 of the network as \[4\], got \[5\]",
        ),
        (lambda s: s.update({"features.0.bias": torch.zeros(4).double()}), "expected float32, or a narrower float"),
        (lambda s: s.update({"features.0.bias": torch.zeros(4) / 0}), "epoch 0: holds values that are not finite"),
    ],
)
def test_state_dicts_of_another_network_are_refused_by_name(change, sentence, digits, tmp_path):
    found = states(digits, 3)
    change(found[0])
    with pytest.raises(ValueError, match=sentence):
        compat.read_state_dicts(found, tmp_path / "store", digits, network=WIDTH)


def test_a_single_state_dict_is_no_trajectory(digits, tmp_path):
    torch.save(states(digits, 1)[0], tmp_path / "last.pt")
    with pytest.raises(ValueError, match=r"last.pt, expert 0: expected a list of at least 2 snapshots, got 1 of them"):
        compat.read_state_dicts(tmp_path / "last.pt", tmp_path / "store", digits, network=WIDTH)
    assert [tuple(p.shape) for p in network(WIDTH, digits).parameters()] == SHAPES


def test_experts_of_the_fields_padded_convnet_are_refused_with_the_network_to_give(tmp_path):
    """28-px images that are 32 px to their network; with its name they are read."""
    labels = torch.arange(20) % 2
    data = load_dataset((uniform(20, 1, 28, 28).float() - 0.1, labels))
    nets = [networks.ConvNet(1, 2, 4, 3, (28, 28), first_padding=3) for _ in range(3)]
    states = [net.state_dict() for net in nets]
    snapshots = [[p.detach().clone() for p in net.parameters()] for net in nets]
    (tmp_path / "theirs").mkdir()
    torch.save([snapshots], tmp_path / "theirs" / "replay_buffer_0.pt")
    for source in ([states], tmp_path / "theirs"):
        read = compat.read_replay_buffers if isinstance(source, Path) else compat.read_state_dicts
        with pytest.raises(ValueError, match="the network convnet:first_padding=3 has it so"):
            read(source, tmp_path / "refused", data, network="convnet:width=4", check=False)
        to = tmp_path / read.__name__
        store = read(source, to, data, network="convnet:width=4:first_padding=3", check=False)
        assert store.snapshot(0, 0).equal(torch.cat([p.flatten() for p in snapshots[0]]))
    with pytest.raises(ValueError) as caught:
        compat.read_state_dicts([states], tmp_path / "refused", data, network="convnet:width=8", check=False)
    assert "first_padding" not in str(caught.value)
