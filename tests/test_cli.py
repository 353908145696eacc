"""The command line as a user types it."""

import json
import os
import signal
import subprocess
import sys

import pytest

SMALL = (
    "--iterations 2 --num-experts 1 --train-epochs 1 --batch-train 500 --syn-steps 2 --expert-epochs 1 "
    "--max-start-epoch 1 --num-eval 1 --eval-epochs 2"
).split()


def ddfast(*arguments: str, cwd=None) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-m", "ddfast", *arguments],
        cwd=cwd,
        capture_output=True,
        text=True,
        timeout=300,
        env=os.environ,
    )


def test_distill_then_evaluate_from_the_run_folder(tmp_path):
    done = ddfast("distill", *SMALL, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.strip().splitlines()
    for words in (
        "random real images, 1 per class",
        "distilled images, 1 per class",
        "full data, 1 epochs (the experts)",
    ):
        assert any(line.startswith(words) and "%" in line for line in lines)
    assert lines[-1].endswith("runs/0001")
    assert (tmp_path / "runs" / "0001" / "images.png").read_bytes().startswith(b"\x89PNG")
    done = ddfast("evaluate", "runs/0001", "--num-eval", "1", "--eval-epochs", "2", cwd=tmp_path)
    assert done.returncode == 0 and done.stdout.startswith("convnet: "), done.stderr
    again = ddfast("distill", *SMALL, "--output", "runs/0001", cwd=tmp_path)
    assert (again.returncode, again.stderr.splitlines()[-1]) == (
        1, "ddfast: runs/0001: holds a run already; choose another output folder"
    )  # fmt: skip


@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM"])
def test_a_run_that_is_told_to_end_saves_what_it_has(name, tmp_path):
    arguments = [*SMALL, "--iterations", "100000", "--output", str(tmp_path / "run")]
    process = subprocess.Popen(
        [sys.executable, "-m", "ddfast", "distill", *arguments], stderr=subprocess.PIPE, text=True, env=os.environ
    )
    for line in process.stderr:
        if line.startswith("iteration 25"):
            break
    process.send_signal(getattr(signal, name))
    _, rest = process.communicate(timeout=120)
    assert process.returncode == 1 and "Traceback" not in rest
    assert {"synthetic.safetensors", "images.png", "metrics.jsonl"} <= {p.name for p in (tmp_path / "run").iterdir()}


def test_experts_are_trained_into_a_folder_that_distill_takes(tmp_path):
    options = ["--num-experts", "1", "--epochs", "1", "--batch-train", "500", "--output", str(tmp_path / "experts")]
    done = ddfast("experts", *options)
    assert done.returncode == 0 and done.stdout.startswith("1 experts of 1 epochs in"), done.stderr
    done = ddfast("distill", *SMALL, "--experts", str(tmp_path / "experts"), "--output", str(tmp_path / "run"))
    assert done.returncode == 0, done.stderr
    assert json.loads((tmp_path / "run" / "config.json").read_text())["experts"]["lr_teacher"] == 0.01


def test_info_says_what_is_built_and_what_is_missing():
    done = ddfast("info")
    assert done.returncode == 0
    assert "torch " in done.stdout and "norm_relu_pool_backward_jvp" in done.stdout
    about = json.loads(ddfast("info", "--json").stdout)
    assert set(about) >= {"versions", "kernels", "missing", "extension"}
    without = subprocess.run(
        [sys.executable, "-m", "ddfast", "info"],
        env={**os.environ, "DDFAST_EXTENSION": "0"},
        capture_output=True,
        text=True,
    )
    assert "reference only" in without.stdout and "missing: compiled kernels" in without.stdout


def test_presets_are_listed_and_shown():
    assert "mtt/digits/ipc1" in ddfast("presets").stdout.splitlines()
    assert "syn_steps = 20" in ddfast("presets", "mtt/digits/ipc1").stdout.splitlines()


def test_options_may_be_written_with_underscores_as_the_field_does(tmp_path):
    done = ddfast("distill", "--syn_steps", "0")
    assert done.returncode == 2 and "Invalid value for '--syn-steps'" in done.stderr


@pytest.mark.parametrize(
    "arguments, status, sentence",
    [
        ("distill --dataset cifar", 1, "ddfast: dataset: expected one of digits, got 'cifar'"),
        ("distill --method dc", 1, "ddfast: method: expected one of mtt, got 'dc'"),
        ("distill --network vgg", 1, "ddfast: network: expected one of convnet, resnet18, got 'vgg'"),
        ("distill --preset x", 1, "ddfast: preset: expected one of mtt/digits/ipc1, got 'x'"),
        ("distill --ipc 500", 1, "ddfast: ipc: expected at most the"),
        ("distill --ipc 0", 2, "Error: Invalid value for '--ipc'"),
        ("distill --lr-img banana", 2, "Error: Invalid value for '--lr-img'"),
        ("distill --device gpu0", 1, "ddfast: device: "),
        ("distill --experts /nowhere", 1, "ddfast: /nowhere: no trained experts here"),
        ("distill --output /proc/run", 1, "ddfast: "),
        ("evaluate /nowhere", 1, "ddfast: /nowhere.json: no such file"),
        ("presets a/b/c", 1, "ddfast: preset: expected <method>/<dataset>/ipc<n>"),
        ("destill", 2, "Error: No such command 'destill'"),
        ("distill --sin-steps 3", 2, "Error: No such option"),
    ],
)
def test_bad_input_is_one_sentence_without_a_traceback(arguments, status, sentence, tmp_path):
    done = ddfast(*arguments.split(), *(SMALL if arguments.startswith("distill --output") else []), cwd=tmp_path)
    last = done.stderr.strip().splitlines()[-1]
    assert done.returncode == status and last.startswith(sentence), done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "runs").exists()
