"""Several processes in one run: they share out experts, segments, minibatches and evaluations, and outlive a loss."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from PIL import Image

import ddfast
from ddfast.cli import USELESS
from ddfast.evaluation import evaluate_random_real
from ddfast.runtime.ranks import ALONE, Ranks
from tests.conftest import SMALL, relative_error, uniform

TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node"]
NETWORK = "--network convnet:width=16 --batch-train 400 --device cpu"
JOB = f"{NETWORK} --train-epochs 2 --num-experts 3 --syn-steps 4 --expert-epochs 1 --max-start-epoch 2 --lr-img 50"
JOB += " --ipc 2 --batch-syn 10 --iterations 5 --checkpoint-every 1 --eval-every 3 --num-eval 3 --eval-epochs 4"


def start(command: list[str], words: str) -> subprocess.Popen:
    """One thread per process."""
    env = os.environ | {"OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        [*command, "-m", "ddfast", *words.split()], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=env
    )


def launch(processes: int, words: str, *options: str) -> subprocess.Popen:
    """As `torchrun --nproc-per-node …`, or alone without it."""
    return start([*TORCHRUN, str(processes), *options] if processes else [sys.executable], words)


def finish(process: subprocess.Popen) -> str:
    output, _ = process.communicate(timeout=300)
    assert process.returncode == (USELESS if "useless: " in output and process.args[2] == "ddfast" else 0), output
    return output


def accuracies(run) -> dict:
    return json.loads((run / "summary.json").read_text())["accuracy"]


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """Runs of one process, by the number of segments; and their experts."""
    folder = tmp_path_factory.mktemp("alone")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DDFAST_CACHE", str(folder / "cache"))
        for segments in (1, 4):
            finish(launch(0, f"distill {JOB} --segments {segments} --output {folder / str(segments)}"))
    return folder


@pytest.mark.parametrize(("processes", "segments"), [(2, 4), (3, 1)])
def test_processes_that_share_a_run_give_the_result_of_one(alone, tmp_path, processes, segments):
    """Each takes segments of its own, or a part of every minibatch of one; experts and evaluations are shared out."""
    words = f"distill {JOB} --segments {segments} --output {tmp_path / 'run'}"
    output = finish(launch(processes, words))
    assert output.count("images: ") == 1 and output.count("evaluating") == 1  # one of them speaks
    whole, shared = (ddfast.SyntheticSet.load(path / "synthetic") for path in (alone / str(segments), tmp_path / "run"))
    moved = whole.images - ddfast.SyntheticSet.load(alone / str(segments) / "initial").images
    assert 0.1 < moved.norm() and (shared.images - whole.images).norm() < 1e-3 * moved.norm()  # float32, 5 iterations
    assert relative_error(shared.lr, whole.lr) < 1e-5
    records = [
        [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
        for folder in (alone / str(segments), tmp_path / "run")
    ]
    assert [[r["expert"], r["start_epoch"]] for r in records[0]] == [
        [r["expert"], r["start_epoch"]] for r in records[1]
    ]
    # the same networks on the same real images, whoever trains them
    expected, got = accuracies(alone / str(segments)), accuracies(tmp_path / "run")
    assert got["random_real"] == expected["random_real"] and got["full_data"] == expected["full_data"]
    assert len((tmp_path / "run" / "accuracies.jsonl").read_text().splitlines()) == 9


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("segments", [1, 4])
def test_processes_share_a_run_on_gpus(tmp_path, segments):
    """By NCCL where each has a GPU of its own, by Gloo where they share one."""
    job = JOB.replace("--device cpu", "--device cuda --precision float32")
    for processes in (0, 2):
        finish(launch(processes, f"distill {job} --segments {segments} --output {tmp_path / str(processes)}"))
    whole, shared, initial = (
        ddfast.SyntheticSet.load(tmp_path / name).images for name in ("0/synthetic", "2/synthetic", "0/initial")
    )
    assert (shared - whole).norm() < 1e-2 * (whole - initial).norm()  # another order of sums in every convolution


def test_experts_are_shared_out_and_the_same(alone, tmp_path):
    options = f"experts {NETWORK} --num-experts 3 --epochs 2 --output"
    output = finish(launch(3, f"{options} {tmp_path / 'shared'}"))
    assert output.count("3 experts of 2 epochs in ") == 1
    finish(launch(0, f"{options} {tmp_path / 'alone'}"))
    for name in ("experts.json", *(f"expert_000{n}.safetensors" for n in range(3))):
        assert (tmp_path / "shared" / name).read_bytes() == (tmp_path / "alone" / name).read_bytes()
    assert not list((tmp_path / "shared").glob(".expert*"))


def test_processes_that_know_nothing_of_each_other_share_out_experts_too(tmp_path):
    """As the tasks of a Slurm array do: one takes what no other one holds, and waits for the rest."""
    words = f"experts {NETWORK} --num-experts 2 --epochs 2 --output {tmp_path / 'experts'}"
    finish(launch(0, words.replace("--num-experts 2", "--num-experts 1")))
    store = ddfast.TrajectoryStore(tmp_path / "experts")
    (store.path / "expert_0000.safetensors").unlink()
    with store.claimed(0, wait=False):
        process, began = launch(0, words), time.monotonic()
        while store.missing(2) == [0, 1]:
            assert process.poll() is None and time.monotonic() - began < 240, process.communicate()[0]
            time.sleep(0.05)
        time.sleep(1)
        assert store.missing(2) == [0] and process.poll() is None
    assert "expert 1 of 2 trained" in finish(process) and store.missing(2) == []


METHODS = {
    "datm": {"labels": "soft", "lr_label": 2.0, "ema_decay": 0.5, "threshold": 1.2, "segments": 2},
    "att": {"ema_decay": None, "segments": 2},
    "att, a minibatch": {"segments": 1},
    "pp": {"segments": 4, "start_noise": 0.01},
    "tesla": {"labels": "target", "segments": 1},
    "mtt": {"ipc": 4, "batch_syn": 2, "syn_steps": 2, "segments": 2, "lr_lr": 0.01},
}


def test_every_method_gives_with_two_processes_what_it_gives_with_one(pair, tmp_path):
    """Soft labels, gates, averages, noise, chosen steps, sets of which a step uses a part; and one process goes on."""
    script = "import sys; from tests.slow.test_ranks import run_methods; run_methods(sys.argv[1])"
    (tmp_path / "job.py").write_text(script)
    command = [*TORCHRUN, "2", str(tmp_path / "job.py"), str(tmp_path / "two")]
    env = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": os.getcwd()}
    done = subprocess.run(command, capture_output=True, text=True, env=env, timeout=300)
    assert done.returncode == 0, done.stderr
    run_methods(tmp_path / "one")
    for name in METHODS:
        one, two = (ddfast.SyntheticSet.load(tmp_path / folder / name / "synthetic") for folder in ("one", "two"))
        moved = one.images - ddfast.SyntheticSet.load(tmp_path / "one" / name / "initial").images
        assert 0 < moved.norm() and (one.images - two.images).norm() < 1e-3 * moved.norm(), name
        torch.testing.assert_close((two.labels, two.lr), (one.labels, one.lr), rtol=1e-4, atol=1e-5)
        lines = [(tmp_path / folder / name / "metrics.jsonl").read_text().splitlines() for folder in ("one", "two")]
        steps = [[json.loads(line).get("matched_step") for line in each] for each in lines]
        assert steps[0] == steps[1] and len(steps[0]) == 3, name
    longer = ddfast.distill(pair, output=tmp_path / "two" / "datm", resume=True, iterations=4)
    assert len(longer.history) == 4
    assert json.loads((longer.path / "config.json").read_text())["processes"] == 1


def run_methods(folder) -> None:
    """Some steps of every method, alone or in the processes of torchrun."""
    labels = torch.arange(24) % 3
    images = uniform(24, 1, 16, 16).float() * 0.3 + labels.view(-1, 1, 1, 1) * 0.3
    data = (images, labels), (images[:9], labels[:9])
    with ddfast.ranks.launched() as ranks:
        for name, options in METHODS.items():
            chosen = SMALL | {"lr_img": 10.0, "network": "convnet:width=8", "num_eval": 1, "eval_epochs": 1} | options
            method = name.partition(",")[0]
            ddfast.distill(data, method=method, output=f"{folder}/{name}", ranks=ranks, device="cpu", **chosen)
    if sys.platform.startswith("linux"):  # a thread that needs the interpreter while that ends aborts the process
        assert not [path for path in Path("/proc/self/task").glob("*/comm") if "gloo" in path.read_text()]


def test_a_set_is_evaluated_by_several_processes(alone, tmp_path):
    words = f"evaluate {alone / '4'} --num-eval 4 --eval-epochs 3 --networks convnet:width=16,mlp --no-random-real"
    words += " --device cpu"
    tables = []
    for processes in (0, 2):
        finish(launch(processes, f"{words} --table {tmp_path / 'table.json'}"))
        rows = json.loads((tmp_path / "table.json").read_text())["rows"]
        tables.append([{key: value for key, value in row.items() if key != "seconds"} for row in rows])
    assert tables[0] == tables[1] and [row["n"] for row in tables[0]] == [4, 4]


def wait_for(path, lines: int, process: subprocess.Popen) -> None:
    began = time.monotonic()
    while not path.exists() or len(path.read_text().splitlines()) < lines:
        assert process.poll() is None and time.monotonic() - began < 240, process.communicate()[0]
        time.sleep(0.02)


def workers(of: subprocess.Popen) -> list[int]:
    """The processes that torchrun started, by their ranks."""
    children = subprocess.run(["ps", "-o", "pid=", "--ppid", str(of.pid)], capture_output=True, text=True).stdout
    found = {}
    for pid in map(int, children.split()):
        with open(f"/proc/{pid}/environ", encoding="utf-8") as file:
            environment = dict(entry.partition("=")[::2] for entry in file.read().split("\0"))
        if "RANK" in environment:
            found[int(environment["RANK"])] = pid
    return [found[rank] for rank in sorted(found)]


def test_processes_take_the_same_settings_for_data_without_a_preset(tmp_path, monkeypatch):
    """The first one's: each would time other steps."""
    monkeypatch.setenv("DDFAST_CACHE", str(tmp_path / "cache"))
    for number in range(48):
        part, name = ("train", "test")[number % 2], ("above", "below")[number // 2 % 2]
        path = tmp_path / "own" / part / name / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        picture = Image.new("L", (16, 16), number)
        picture.paste(200 + number, (0, 0, 16, 8) if name == "above" else (0, 8, 16, 16))
        picture.save(path)
    amounts = "--num-experts 2 --iterations 2 --segments 2 --num-eval 1 --eval-epochs 1"
    output = finish(
        launch(2, f"distill --dataset {tmp_path / 'own'} {amounts} --device cpu --output {tmp_path / 'run'}")
    )
    config = json.loads((tmp_path / "run" / "config.json").read_text())
    assert output.count(f"  network {config['network']}: ") == 1 and config["probed_rates"].keys() >= {"lr_teacher"}


@pytest.mark.parametrize("restarts", [0, 1])
def test_a_lost_process_ends_the_run_cleanly_and_it_goes_on_from_the_last_checkpoint(alone, tmp_path, restarts):
    """Killed in the middle; torchrun begins anew by itself where it may, else the same command does."""
    run = tmp_path / "run"
    job = JOB.replace("--iterations 5", "--iterations 60")
    words = f"distill {job} --segments 2 --resume --output {run}"
    finish(launch(2, words.replace(str(run), str(tmp_path / "whole"))))
    process = launch(2, words, "--max-restarts", str(restarts))
    wait_for(run / "metrics.jsonl", 10, process)
    os.kill(workers(process)[1], signal.SIGKILL)
    output, _ = process.communicate(timeout=300)
    if restarts == 0:
        assert process.returncode != 0
        # it misses the other one, or is told by torchrun to end: whichever comes first
        assert "another process of this run was lost" in output or "stopped after iteration" in output
        assert "ddfast/cli/" not in output  # no traceback but torchrun's own
        assert torch.load(run / "checkpoint.pt", weights_only=True)["iteration"] >= 9
        finish(launch(2, words))
    else:
        assert process.returncode == 0, output
    assert "continuing after iteration" in output or restarts == 0
    whole, resumed = (ddfast.SyntheticSet.load(folder / "synthetic") for folder in (tmp_path / "whole", run))
    assert torch.equal(whole.images, resumed.images) and torch.equal(whole.lr, resumed.lr)
    assert accuracies(tmp_path / "whole") == accuracies(run)


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ("--segments 3", "segments: expected 1 or a multiple of the 2 processes, got 3"),
        ("--segments 1 --network convnet:norm=batchnorm", "segments: 2 processes would share the minibatches of one"),
        ("--ipc 0", "Invalid value for '--ipc'"),
    ],
)
def test_what_cannot_be_shared_is_refused_in_one_sentence(tmp_path, options, sentence):
    process = launch(2, f"distill --iterations 2 {options} --output {tmp_path / 'run'}")
    output, _ = process.communicate(timeout=120)
    assert process.returncode != 0 and sentence in output and not (tmp_path / "run").exists()


def test_what_is_no_ranks_is_refused(pair, tmp_path):
    sentence = "ranks: expected a ddfast.ranks.Ranks, got int"
    with pytest.raises(TypeError, match=sentence):
        ddfast.distill(pair, ranks=2, output=tmp_path / "run")
    with pytest.raises(TypeError, match=sentence):
        ddfast.train_experts(pair, ranks=2, output=tmp_path / "experts")
    with pytest.raises(TypeError, match=sentence):
        evaluate_random_real(ddfast.load_dataset(pair), 1, ranks=2, device="cpu")
    assert not list(tmp_path.iterdir())


def test_a_share_is_a_share():
    assert ALONE.is_first and ALONE.size == 1 and ALONE.gather(3) == [3] and ALONE.first(lambda: 4) == 4
    parts, works = [], []
    for rank in range(3):
        ranks = Ranks()
        ranks.rank, ranks.size = rank, 3
        parts.append(ranks.part(8))
        works += ranks.mine(list(range(7)))
    assert [(part.start, part.stop) for part in parts] == [(0, 2), (2, 5), (5, 8)]
    assert sorted(works) == list(range(7))
