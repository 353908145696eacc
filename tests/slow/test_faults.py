"""What a machine and its users do to a run: kills, full disks, signals, two runs in one folder, other locales."""

import errno
import json
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

import ddfast
from ddfast.cli import USELESS
from ddfast.runtime import files
from tests.conftest import SMALL
from tests.fault_jobs import COMMANDS, Running, begin, differing, finish, leftovers, undisturbed
from tests.kills import try_kills

SHORT = "--num-experts 1 --train-epochs 1 --batch-train 4 --syn-steps 2 --expert-epochs 1 --max-start-epoch 1"
SHORT += " --num-eval 1 --eval-epochs 2 --checkpoint-every 1 --eval-every 2"
JOB = SMALL | {"iterations": 5, "checkpoint_every": 2, "eval_every": 3, "ema_decay": 0.5}


@pytest.mark.parametrize("name", ["experts", "distill datm, soft labels, average"])
def test_a_killed_command_that_is_said_again_gives_the_same_files(name, tmp_path):
    """Few kills: `python -m tests.kills` makes more, of all commands."""
    row = try_kills(name, 2, tmp_path, random.Random(0))
    assert row.survived and row.kills == 2, row


@pytest.fixture(scope="module")
def whole(pair, tmp_path_factory):
    """A run that nobody disturbed, and how often it flushed something to the disk."""
    calls = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DDFAST_CACHE", str(tmp_path_factory.mktemp("cache")))
        flushed = files.synchronise
        patch.setattr(files, "synchronise", lambda path: (calls.append(path), flushed(path)))
        return ddfast.distill(pair, output=tmp_path_factory.mktemp("whole") / "run", **JOB), len(calls)


@pytest.mark.parametrize("part", [0, 0.2, 0.5, 0.8, 0.99])
def test_a_disk_that_is_full_from_some_moment_on_loses_nothing_that_was_whole(pair, whole, part, tmp_path, monkeypatch):
    result, count = whole
    monkeypatch.setenv("DDFAST_CACHE", str(tmp_path / "cache"))
    left, flushed = [int(part * count)], files.synchronise

    def full(path):
        left[0] -= 1
        if left[0] < 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        flushed(path)

    with monkeypatch.context() as patch:
        patch.setattr(files, "synchronise", full)
        with pytest.raises(OSError, match=r"/\S+: cannot be written \(No space left on device\)"):
            ddfast.distill(pair, output=tmp_path / "run", **JOB)
    assert not leftovers(tmp_path)
    again = ddfast.distill(pair, output=tmp_path / "run", resume=True, **JOB)
    assert torch.equal(again.synthetic.images, result.synthetic.images)
    assert torch.equal(again.averaged.images, result.averaged.images) and again.accuracy == result.accuracy
    losses = [[record["loss"] for record in each.history] for each in (again, result)]
    assert losses[0] == losses[1]


def test_a_line_that_cannot_be_written_names_its_file(pair, tmp_path, monkeypatch):
    """/dev/full is a disk that is full."""
    run = ddfast.run.folder.RunFolder(tmp_path)
    (tmp_path / "metrics.jsonl").symlink_to("/dev/full")
    with pytest.raises(OSError, match=r"metrics\.jsonl: cannot be written \(No space left on device\)"):
        run.append("metrics", {"iteration": 1})


def test_a_file_for_which_there_is_no_room_is_named_with_the_reason_and_the_old_one_stays(tmp_path):
    """Files of more than 16 kB fail in the middle, as on a full disk."""
    run, few, many = ddfast.run.folder.RunFolder(tmp_path), torch.zeros(10), torch.zeros(100_000)
    writers = {
        "checkpoint.pt": lambda values: run.write_state({"iteration": 1, "values": values}),
        "a.safetensors": lambda values: files.write_tensors(tmp_path / "a.safetensors", {"a": values}, {}),
        "a.json": lambda values: files.write_json(tmp_path / "a.json", {"a": values.tolist()}),
    }
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    for name, write in writers.items():
        write(few)
        before = (tmp_path / name).read_bytes()
        try:
            resource.setrlimit(resource.RLIMIT_FSIZE, (16_000, limits[1]))
            with pytest.raises(OSError, match=rf"{name}: cannot be written \(.*File too large"):
                write(many)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        assert (tmp_path / name).read_bytes() == before
    assert not leftovers(tmp_path)


def test_what_a_kill_left_behind_is_cleared_away_and_nothing_else(pair, tmp_path):
    ddfast.distill(pair, output=tmp_path / "run", **JOB)
    dead = subprocess.Popen(["true"])
    dead.wait()
    run, host = tmp_path / "run", files.temporary_of(tmp_path).name.split(".")[-2].rpartition("-")[0]
    left = [run / f".checkpoint.pt.{host}-{dead.pid}.tmp", run / "checkpoints" / f".a.{host}-{dead.pid}.tmp"]
    names = f".a.{host}-{os.getppid()}.tmp", f".a.elsewhere-{dead.pid}.tmp", ".mine.tmp", f"a.{host}-{dead.pid}.tmp"
    others = [run / name for name in names]
    for path in (*left, *others):
        path.touch()
    ddfast.distill(pair, output=tmp_path / "run", resume=True)
    assert not any(path.exists() for path in left) and all(path.exists() for path in others)


def test_a_checkpoint_of_another_run_is_refused_by_name(pair, tmp_path):
    ddfast.distill(pair, output=tmp_path / "run", **JOB)
    (tmp_path / "run" / "summary.json").unlink()
    for state in ({"iteration": 3}, {"iteration": 3, "skips": 0, "method": {"descent": {"state": []}}}):
        ddfast.run.folder.RunFolder(tmp_path / "run").write_state(state)
        with pytest.raises(ValueError, match=r"checkpoint\.pt: does not belong to this run"):
            ddfast.distill(pair, output=tmp_path / "run", resume=True)
        ddfast.run.folder.RunFolder(tmp_path / "run").write_state(state)


def test_settings_may_be_edited_by_hand_and_what_is_no_json_is_refused(pair, tmp_path):
    """Also of ddfast 0.1, which wrote a checksum into them."""
    ddfast.distill(pair, output=tmp_path / "run", **JOB)
    config = tmp_path / "run" / "config.json"
    settings = json.loads(config.read_text())
    assert "sha256" not in settings
    config.write_text(json.dumps(settings | {"num_eval": 2, "sha256": "that of before"}))
    result = ddfast.distill(pair, output=tmp_path / "run", resume=True)
    assert result.path == tmp_path / "run" and result.accuracy["distilled"]["n"] == 2
    config.write_text(json.dumps(settings | {"syn_steps": 0}))
    with pytest.raises(ValueError, match="syn_steps: expected a whole number of at least 1, got 0"):
        ddfast.distill(pair, output=tmp_path / "run", resume=True)
    config.write_text(json.dumps(settings)[:-9])
    with pytest.raises(ValueError, match=r"config\.json: not a JSON file"):
        ddfast.distill(pair, output=tmp_path / "run", resume=True)


@pytest.mark.parametrize(
    "arguments, place",
    [
        ("distill --output {file}/run", "file"),
        ("experts --output {file}/experts", "file"),
        ("distill --zca --output {folder}/run", "cache"),
        ("distill --output {folder}/run", "cache"),
    ],
)
def test_where_nothing_can_be_written_is_one_sentence_before_anything_takes_time(arguments, place, tmp_path):
    """Below a file, where root cannot write either; the jobs themselves would take minutes."""
    (tmp_path / "file").write_text("a file\n")
    words = arguments.format(file=tmp_path / "file", folder=tmp_path).split()
    cache = tmp_path / ("file" if place == "cache" else "") / "cache"
    status, _, errors = Running(words, tmp_path, DDFAST_CACHE=str(cache)).ended(120)
    last = errors.strip().splitlines()[-1]
    assert status == 1 and "Traceback" not in errors, errors
    assert last.startswith("ddfast: ") and str(tmp_path / "file") in last
    assert not (tmp_path / "run").exists() and "expert 1 of" not in errors


def wait_for(path: Path, running: Running) -> None:
    """Until a file is there, or the command has ended."""
    while not path.exists() and running.poll() is None:
        time.sleep(0.01)


def test_two_runs_in_one_folder_and_two_trainings_of_the_same_experts(tmp_path):
    run = "--iterations 100000 --num-experts 1 --train-epochs 1 --max-start-epoch 1 --expert-epochs 1"
    words = ["distill", *run.split(), "--output", str(tmp_path / "run")]
    folders = [tmp_path / name for name in ("first", "new", "resumed")]
    first = Running(words, folders[0])
    wait_for(tmp_path / "run" / "metrics.jsonl", first)
    others = Running(words, folders[1]), Running([*words, "--resume"], folders[2])
    sentences = [other.ended(120)[2].strip().splitlines()[-1] for other in others]
    assert "run: holds a run already; choose another output folder" in sentences[0]
    assert "run: another process is at work here" in sentences[1]
    first.send(signal.SIGTERM)
    status, _, errors = first.ended(120)
    assert status == 143 and "Traceback" not in errors
    words = COMMANDS["experts"].arguments.format(folder=tmp_path).split()
    both = [Running(words, tmp_path / name, DDFAST_CACHE=str(tmp_path / "cache")) for name in ("one", "other")]
    assert [finish(training) for training in both] == 2 * [f"3 experts of 3 epochs in {tmp_path / 'experts'}\n"]
    assert not leftovers(tmp_path)


@pytest.fixture(scope="module")
def whole_commands(tmp_path_factory):
    """Of two commands that nobody disturbed: the results, and the folder."""
    folders = {name: tmp_path_factory.mktemp("whole") for name in ("experts", "distill mtt")}
    return {name: (undisturbed(name, folder)[0], folder / "whole") for name, folder in folders.items()}


@pytest.mark.parametrize("name, first, second", [
    ("experts", "SIGTERM", None), ("distill mtt", "SIGHUP", "SIGTERM"), ("distill mtt", "SIGINT", "SIGINT")
])  # fmt: skip
def test_a_signal_ends_a_command_that_goes_on_bit_for_bit(name, first, second, whole_commands, tmp_path):
    """The second one comes while it saves."""
    whole, _ = whole_commands[name]
    running = begin(COMMANDS[name], tmp_path)
    awaited = "experts/expert_0000.safetensors" if name == "experts" else "run/metrics.jsonl"
    wait_for(tmp_path / awaited, running)
    running.send(getattr(signal, first))
    if second:
        time.sleep(0.05)
        running.send(getattr(signal, second))
    status, _, errors = running.ended(120)
    expected = [128 + getattr(signal, each) for each in (first, second) if each]
    assert status in expected and "Traceback" not in errors, errors
    output = finish(begin(COMMANDS[name], tmp_path))
    assert not differing(COMMANDS[name].results(tmp_path, output), whole) and not leftovers(tmp_path)


@pytest.mark.parametrize("name", ["SIGTERM", "SIGHUP", "SIGINT"])
def test_a_signal_ends_an_evaluation(name, whole_commands, tmp_path):
    run = whole_commands["distill mtt"][1] / "run"
    running = Running(["evaluate", str(run), "--eval-epochs", "100000"], tmp_path)
    number = getattr(signal, name)
    caught = 0
    while not caught >> (number - 1) & 1:  # until it listens
        assert running.poll() is None
        status = Path(f"/proc/{running.process.pid}/status").read_text()
        caught = int(status.partition("SigCgt:")[2].split()[0], 16)
        time.sleep(0.05)
    time.sleep(0.5)
    running.send(number)
    status, output, errors = running.ended(120)
    assert status == 128 + number and "Traceback" not in errors and not output, errors


def test_a_hangup_that_is_ignored_ends_nothing(tmp_path):
    """As of `nohup`."""
    running = begin(COMMANDS["experts"], tmp_path, ignoring=(signal.SIGHUP,))
    wait_for(tmp_path / "experts" / "experts.json", running)
    running.send(signal.SIGHUP)
    status, output, errors = running.ended(120)
    assert status == 0 and "3 experts of 3 epochs" in output, errors


@pytest.fixture(scope="module")
def turkish(tmp_path_factory):
    """tr_TR, whose i is no I in upper case and whose comma is decimal, where it can be made; else nothing."""
    folder = tmp_path_factory.mktemp("locales")
    if shutil.which("localedef"):
        subprocess.run(["localedef", "-i", "tr_TR", "-f", "UTF-8", folder / "tr_TR.UTF-8"], capture_output=True)
    return {"LOCPATH": str(folder), "LC_ALL": "tr_TR.UTF-8"} if (folder / "tr_TR.UTF-8").exists() else {}


def test_a_run_of_photographs_goes_on_under_other_locales(tmp_path, turkish):
    """Class names, folders and files with spaces and other letters; begun under one locale, resumed under others."""
    from PIL import Image

    root = tmp_path / "Bilder für İğne"
    for k, name in enumerate(("Äpfel rot", "ışık", "林檎")):
        for part, count in (("train", 4), ("test", 2)):
            for n in range(count):
                file = root / part / name / f"größe {n}.png"
                file.parent.mkdir(parents=True, exist_ok=True)
                noise = torch.randint(60, (16, 16, 3), generator=torch.Generator().manual_seed(n)).byte()
                Image.fromarray((noise + 60 * k).numpy()).save(file)
    locales = [{"LC_ALL": "C"}, turkish, {"LC_ALL": "C.UTF-8"}]

    def run(command: list[str], locale: dict[str, str]) -> str:
        environment = {**os.environ, **locale, "DDFAST_CACHE": str(tmp_path / "Zwischenspeicher ü")}
        words = [os.fsencode(word) for word in (sys.executable, "-m", "ddfast", *command)]
        done = subprocess.run(words, capture_output=True, env=environment, timeout=300)
        assert done.returncode in (0, USELESS), done.stderr.decode()
        return done.stdout.decode()

    for iterations, locale in zip(("2", "4", "6"), locales, strict=True):
        output = root.parent / "Läufe 1"
        data = [] if (output / "config.json").exists() else ["--dataset", str(root)]
        run(
            ["distill", *data, *SHORT.split(), "--iterations", iterations, "--resume", "--output", str(output)],
            locale,
        )
        loaded = ddfast.SyntheticSet.load(output / "synthetic")
        assert loaded.class_names == ("Äpfel rot", "ışık", "林檎")
        assert "Äpfel rot" in (output / "synthetic.json").read_text(encoding="utf-8")
    shown = run(["evaluate", str(output), "--num-eval", "1", "--eval-epochs", "1"], turkish)
    assert shown.count("%") == 2


def test_a_folder_whose_name_is_no_utf_8_is_refused_before_anything_takes_time(tmp_path):
    """safetensors reads no files there; what is said of it can be shown all the same."""
    output = tmp_path / os.fsdecode(b"L\xe4ufe")
    for name in ("experts", "distill mtt"):
        status, _, errors = Running(COMMANDS[name].arguments.format(folder=output).split(), tmp_path).ended(120)
        assert status == 1 and "trained in" not in errors
        last = errors.splitlines()[-1]
        assert r"L\udce4ufe" in last and last.endswith("expected a folder whose name is UTF-8"), errors


def test_images_whose_names_are_no_utf_8_are_distilled_and_the_run_goes_on(tmp_path):
    from PIL import Image

    root = tmp_path / os.fsdecode(b"M\xe4use")
    for k, name in enumerate((os.fsdecode(b"Kn\xf6pfe"), "b")):
        for part in ("train", "test"):
            (root / part / name).mkdir(parents=True)
            for n in range(3):
                Image.new("L", (16, 16), 40 + 90 * k + 20 * n).save(root / part / name / f"{n}.png")
    words = [*SHORT.split(), "--resume", "--output", str(tmp_path / "run")]
    for more in (["--dataset", str(root), "--iterations", "2"], ["--iterations", "4"]):
        finish(Running(["distill", *words, *more], tmp_path))
    assert ddfast.SyntheticSet.load(tmp_path / "run" / "synthetic").class_names == ("Kn\udcf6pfe", "b")
