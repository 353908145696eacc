"""The expert buffers of others: converted both ways, exactly, in little memory, and nothing that they hold is run."""

import os
import pickle
import shutil
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
import torch
from torch import Tensor

import ddfast
from ddfast import compat, networks
from ddfast.runtime import seeds
from tests.conftest import SMALL, normal

WIDTH = "convnet:width=4"
SHAPES = [(4, 1, 3, 3), (4,), (4,), (4,), (4, 4, 3, 3), (4,), (4,), (4,), (10, 64), (10,)]  # of it, on digits


def buffer(experts: int = 2, snapshots: int = 3, seed: int = 0) -> list[list[list[Tensor]]]:
    """As MTT's code keeps them."""
    return [
        [[normal(*shape, seed=seed + 100 * e + s).float() for shape in SHAPES] for s in range(snapshots)]
        for e in range(experts)
    ]


def flat(snapshot: list[Tensor]) -> Tensor:  # [P]
    return torch.cat([parameter.reshape(-1).float() for parameter in snapshot])


def same(one, other) -> bool:
    if isinstance(one, Tensor):
        return one.dtype == other.dtype and one.shape == other.shape and one.equal(other)
    return len(one) == len(other) and all(map(same, one, other))


@pytest.fixture(scope="module")
def digits():
    return ddfast.load_dataset("digits")


@pytest.fixture
def source(tmp_path) -> Path:
    """A folder of eleven files of two experts."""
    folder = tmp_path / "buffers"
    folder.mkdir()
    for number in range(11):
        torch.save(buffer(seed=1000 * number), folder / f"replay_buffer_{number}.pt")
    return folder


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_buffers_become_experts_in_the_order_of_their_numbers_and_buffers_again(source, tmp_path, digits):
    store = compat.read_replay_buffers(source, tmp_path / "store", digits, network=WIDTH)
    assert (store.num_experts, store.epochs) == (22, 2)
    wanted = [flat(snapshot) for n in range(11) for expert in buffer(seed=1000 * n) for snapshot in expert]
    assert same([store.snapshot(n // 3, n % 3) for n in range(66)], wanted)
    files = compat.write_replay_buffers(store, tmp_path / "back", digits, per_file=2)
    assert [file.name for file in files] == [f"replay_buffer_{n}.pt" for n in range(11)]
    for number, file in enumerate(files):
        assert same(torch.load(file, weights_only=True), buffer(seed=1000 * number))
    tens = compat.write_replay_buffers(store, tmp_path / "tens", digits)
    assert [len(torch.load(file, weights_only=True)) for file in tens] == [10, 10, 2]
    assert tens[2].stat().st_size < tens[0].stat().st_size / 4


def test_narrow_floats_parameters_and_tensors_of_a_gpu_are_read(tmp_path, digits, monkeypatch):
    halves = [[[torch.nn.Parameter(p.half()) for p in s] for s in expert] for expert in buffer()]
    monkeypatch.setattr(torch.serialization, "location_tag", lambda storage: "cuda:0")
    torch.save(halves, tmp_path / "replay_buffer_0.pt")
    monkeypatch.undo()
    store = compat.read_replay_buffers(tmp_path, tmp_path / "store", digits, network=WIDTH)
    assert same(store.snapshot(1, 2), flat(halves[1][2]).detach())


def test_files_of_an_old_pytorch_are_read_too(tmp_path, digits, caplog):
    torch.save(buffer(), tmp_path / "old.pt", _use_new_zipfile_serialization=False)
    caplog.set_level("INFO", "ddfast")
    store = compat.read_replay_buffers(tmp_path / "old.pt", tmp_path / "store", digits, network=WIDTH)
    assert same(store.snapshot(1, 2), flat(buffer()[1][2])) and "read into memory as a whole" in caplog.text


def test_own_experts_survive_the_way_to_buffers_and_back(tmp_path, digits):
    made = ddfast.train_experts(
        digits, network=WIDTH, num_experts=3, train_epochs=2, batch_train=500, output=tmp_path / "made"
    )
    compat.convert(made.path, tmp_path / "buffers", "replay-buffer", per_file=2)
    compat.convert(tmp_path / "buffers", tmp_path / "again", dataset="digits", zca=False, network=WIDTH)
    again = ddfast.TrajectoryStore(tmp_path / "again")
    assert all(made.snapshot(n, e).equal(again.snapshot(n, e)) for n in range(3) for e in range(3))
    net = networks.create(WIDTH, generator=seeds.generator(0), **digits.network_arguments)
    first = torch.load(tmp_path / "buffers" / "replay_buffer_1.pt", weights_only=True)[0][0]
    assert [p.shape for p in first] == [p.shape for p in net.parameters()]


def test_a_run_distils_with_converted_experts_of_which_little_is_known(tmp_path, digits):
    torch.save(buffer(), tmp_path / "replay_buffer_0.pt")
    options = {"dataset": "digits", "zca": False, "network": WIDTH, "mom": 0.9}
    compat.convert(tmp_path / "replay_buffer_0.pt", tmp_path / "store", **options)
    small = {k: v for k, v in SMALL.items() if k not in ("num_experts", "train_epochs", "batch_train")}
    run = ddfast.distill("digits", experts=tmp_path / "store", output=tmp_path / "run", **small)
    config = ddfast.runtime.files.read_json(run.path / "config.json")
    assert config["train_lr"] is config["batch_train"] is config["optimizer"] is None
    assert config["trained_experts"]["lr_teacher"] is None
    assert ddfast.SyntheticSet.load(run.path / "synthetic").network == WIDTH
    assert (config["mom"], config["network"], config["num_experts"]) == (0.9, WIDTH, 2)
    small["iterations"] += 1
    resumed = ddfast.distill("digits", experts=tmp_path / "store", output=tmp_path / "run", resume=True, **small)
    assert len(resumed.history) == small["iterations"]
    with pytest.raises(ValueError, match=r"mom: the experts in .* were trained with 0\.9"):
        ddfast.distill("digits", experts=tmp_path / "store", output=tmp_path / "other", mom=0.5, **small)


class Evil:
    def __reduce__(self):
        return os.mkdir, ("evil",)


def broken(what: str) -> object:
    whole = buffer()
    if what == "short":
        whole[1].pop()
    elif what == "shape":
        whole[1][2][4] = torch.zeros(4, 4, 3, 4)
    elif what == "fewer":
        whole[0][1].pop()
    elif what == "nan":
        whole[1][1][0][0] = float("nan")
    elif what == "double":
        whole[0][0][0] = whole[0][0][0].double()
    elif what == "claims":
        whole[0][0][8] = torch.zeros(1).expand(10, 64)
    elif what == "numbers":
        whole[0][0] = [1.0] * len(SHAPES)
    return {"dictionary": {}, "empty": [], "tensor": torch.zeros(3), "nested": [torch.zeros(3)]}.get(what, whole)


@pytest.mark.parametrize(
    ("what", "sentence"),
    [
        ("short", r"replay_buffer_0.pt, expert 1: expected 3 snapshots as the first expert has, got 2"),
        ("shape", r"expert 1, epoch 2: expected parameter 4 of the network as \[4, 4, 3, 3\], got \[4, 4, 3, 4\]"),
        ("fewer", r"expert 0, epoch 1: expected the network's 10 parameters, got 9"),
        ("nan", r"expert 1, epoch 1: holds values that are not finite"),
        ("double", r"expert 0, epoch 0: expected float32, or a narrower float, got torch.float64"),
        ("claims", r"expert 0, epoch 0: its shape \[10, 64\] claims more values than the file holds"),
        ("numbers", r"expert 0, epoch 0: expected a tensor, got float"),
        ("dictionary", r"replay_buffer_0.pt: expected a list of experts, got dict"),
        ("empty", r"replay_buffer_0.pt: expected a list of experts, got 0 of them"),
        ("tensor", r"replay_buffer_0.pt: expected a list of experts, got Tensor"),
        ("nested", r"expert 0: expected a list of at least 2 snapshots, got Tensor"),
    ],
)
def test_what_is_no_buffer_of_the_network_is_refused_by_name(what, sentence, tmp_path, digits):
    torch.save(broken(what), tmp_path / "replay_buffer_0.pt")
    with pytest.raises(ValueError, match=sentence):
        compat.read_replay_buffers(tmp_path, tmp_path / "store", digits, network=WIDTH)


def test_a_folder_whose_first_expert_was_refused_takes_experts_of_other_settings(tmp_path, digits):
    bad = buffer()
    bad[0][2][0][0] = float("nan")
    torch.save(bad, tmp_path / "replay_buffer_0.pt")
    with pytest.raises(ValueError, match="expert 0, epoch 2: holds values that are not finite"):
        compat.read_replay_buffers(tmp_path, tmp_path / "store", digits, network=WIDTH)
    torch.save(buffer(), tmp_path / "replay_buffer_0.pt")
    store = compat.read_replay_buffers(tmp_path, tmp_path / "store", digits, network=WIDTH, training={"mom": 0.5})
    assert store.num_experts == 2 and store.settings["mom"] == 0.5


@pytest.mark.parametrize("kind", ["zip", "old", "plain"])
def test_a_file_that_would_run_code_is_refused_and_does_not_run_it(kind, tmp_path, digits, monkeypatch):
    monkeypatch.chdir(tmp_path)
    file = tmp_path / "replay_buffer_0.pt"
    if kind == "plain":
        file.write_bytes(pickle.dumps(Evil(), protocol=2))
    else:
        torch.save([[[Evil()]]], file, _use_new_zipfile_serialization=kind == "zip")
    with pytest.raises(ValueError, match=r"replay_buffer_0.pt: not read, for it (holds more than tensors|is damaged)"):
        compat.read_replay_buffers(file, tmp_path / "store", digits, network=WIDTH)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["replay_buffer_0.pt"]


@pytest.mark.parametrize("old", [False, True])
@pytest.mark.parametrize("part", [0.0, 0.3, 0.9, 0.999])
def test_truncated_files_are_refused(part, old, tmp_path, digits):
    file = tmp_path / "replay_buffer_0.pt"
    torch.save(buffer(), file, _use_new_zipfile_serialization=not old)
    file.write_bytes(file.read_bytes()[: int(part * file.stat().st_size)])
    with pytest.raises(ValueError, match=r"replay_buffer_0.pt: not (read, for it is damaged|a whole file)"):
        compat.read_replay_buffers(file, tmp_path / "store", digits, network=WIDTH)


def test_other_files_are_never_written_over(source, tmp_path, digits):
    other = tmp_path / "other"
    other.mkdir()
    (other / "thesis.txt").write_text("mine")
    with pytest.raises(FileExistsError, match="holds something else than experts"):
        compat.read_replay_buffers(source, other, digits, network=WIDTH)
    store = compat.read_replay_buffers(source / "replay_buffer_0.pt", tmp_path / "store", digits, network=WIDTH)
    with pytest.raises(FileExistsError, match=r"thesis.txt: not one of the files"):
        compat.write_replay_buffers(store, other, digits)
    (tmp_path / "first").mkdir()
    shutil.copy(source / "replay_buffer_1.pt", tmp_path / "first")
    with pytest.raises(FileExistsError, match=r"replay_buffer_1.pt: exists and holds other experts"):
        compat.write_replay_buffers(store, tmp_path / "first", digits, per_file=1)
    with pytest.raises(ValueError, match="already holds a different expert 0"):
        compat.read_replay_buffers(source / "replay_buffer_1.pt", tmp_path / "store", digits, network=WIDTH)
    with pytest.raises(ValueError, match="holds experts with other settings"):
        compat.read_replay_buffers(source, tmp_path / "store", digits, network=WIDTH, training={"mom": 0.5})
    assert contents(other) == {"thesis.txt": b"mine"}


KILLED = """
import os, sys
import torch
from ddfast import compat
replace, save = os.replace, torch.save
def dying(act):
    def count(*arguments):
        global left
        left -= not str(arguments[-1]).endswith(".json")
        if left < 0:
            os.kill(os.getpid(), 9)
        return act(*arguments)
    return count
for source, output, to, options, at in eval(sys.argv[1]):
    if os.fork() == 0:
        left = 2
        if at == "rename":
            os.replace = dying(replace)
        else:
            torch.save = dying(save)
        compat.convert(source, output, to, dataset="digits", **options)
        os._exit(0)
    print(os.wait()[1])
"""


def test_killed_conversions_go_on_and_end_with_the_same_bytes(source, tmp_path, digits):
    options = {"zca": False, "network": WIDTH}
    store = str(compat.convert(source, tmp_path / "store", dataset="digits", **options))
    images = tmp_path / "images"
    images.mkdir()
    torch.save(torch.zeros(10, 1, 16, 16), images / "images.pt")
    jobs = [
        (str(source), str(tmp_path / "experts"), "ddfast", options, "rename"),
        (store, str(tmp_path / "written"), "replay-buffer", {"per_file": 5}, "rename"),
        (str(images), str(tmp_path / "set"), "mtt", {"zca": False, "lr": 0.1}, "save"),
    ]
    done = subprocess.run([sys.executable, "-c", KILLED, repr(jobs)], capture_output=True, text=True)
    assert done.stdout.split() == ["9", "9", "9"], done.stderr
    for source, output, to, options, _ in jobs:
        whole = compat.convert(source, f"{output}-whole", to, dataset="digits", **options)
        left = contents(Path(output)) if Path(output).exists() else {}
        assert len(left) < len(contents(whole)) and (to == "mtt") == (left == {})
        compat.convert(source, output, to, dataset="digits", **options)
        assert contents(Path(output)) == contents(whole)


MEASURED = """
import resource, sys, threading, time
from pathlib import Path
from ddfast import compat, load_dataset
def anonymous():
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("RssAnon")) * 1024
digits = load_dataset("digits")
most = 0
def watch():
    global most
    while True:
        most = max(most, anonymous())
        time.sleep(0.005)
compat.read_replay_buffers(sys.argv[1] + "/small", sys.argv[1] + "/warm", digits, network="convnet:width=4")
start = anonymous()
threading.Thread(target=watch, daemon=True).start()
store = compat.read_replay_buffers(sys.argv[1] + "/large", sys.argv[1] + "/store", digits, network="convnet:width=64")
compat.write_replay_buffers(store, sys.argv[1] + "/back", digits, per_file=10)
print(max(most, anonymous()) - start)
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="no /proc")
def test_conversions_need_little_memory(tmp_path, digits):
    for name, width, experts, snapshots in (("small", 4, 1, 2), ("large", 64, 10, 26)):
        net = networks.create(f"convnet:width={width}", generator=seeds.generator(0), **digits.network_arguments)
        (tmp_path / name).mkdir()
        made = [[[p.detach() + s for p in net.parameters()] for s in range(snapshots)] for _ in range(experts)]
        torch.save(made, tmp_path / name / "replay_buffer_0.pt")
    assert (tmp_path / "large" / "replay_buffer_0.pt").stat().st_size > 40e6
    arguments = [sys.executable, "-c", textwrap.dedent(MEASURED), str(tmp_path)]
    done = subprocess.run(arguments, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    print(done.stdout)
    assert int(done.stdout) < 10e6  # the file has more than 40, an expert a tenth of it
