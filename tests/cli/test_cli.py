"""The command line as a user types it."""

import json
import os
import signal
import subprocess
import sys

import pytest
import torch
from PIL import Image

from ddfast.cli import USELESS, commands
from ddfast.runtime import seeds

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
    assert done.returncode == (USELESS if "useless: " in done.stdout else 0), done.stderr
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
    assert done.returncode == 0 and "convnet  distilled images  " in done.stdout, done.stderr
    table = json.loads((tmp_path / "runs" / "0001" / "transfer.json").read_text())
    assert [row["trained_on"] for row in table["rows"]] == ["distilled images", "random real images, 1 per class"]
    assert all(row["parameters"] > 0 and row["flops"] > 0 and row["lr"] > 0 for row in table["rows"])
    flat = "--num-eval 1 --eval-epochs 2 --protocol simplified --batch 5 --sam-rho 0.05".split()
    sam = ddfast("evaluate", "runs/0001", *flat, cwd=tmp_path)
    assert sam.returncode == 0 and sam.stdout.count(" ± ") == 2 and sam.stdout != done.stdout, sam.stderr
    again = ddfast("distill", *SMALL, "--output", "runs/0001", cwd=tmp_path)
    assert (again.returncode, again.stderr.splitlines()[-1]) == (
        1, "ddfast: runs/0001: holds a run already; choose another output folder, or resume it"
    )  # fmt: skip


def test_a_signal_that_a_library_makes_an_error_of_is_still_a_signal(monkeypatch, capsys):
    """As safetensors does, whose error says that a file is damaged."""

    def fails(**_):
        raise ValueError("not a whole trajectory file")

    monkeypatch.setattr(commands, "cli", fails)
    for told, status, words in (([signal.SIGTERM], 143, ""), ([], 1, "ddfast: not a whole trajectory file\n")):
        monkeypatch.setattr(commands, "_end_when_told", lambda told=told: told)
        with pytest.raises(SystemExit) as found:
            commands.main()
        assert (found.value.code, capsys.readouterr().err) == (status, words)


@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM"])
def test_a_run_that_is_told_to_end_saves_what_it_has(name, tmp_path):
    arguments = [*SMALL, "--iterations", "100000", "--output", str(tmp_path / "run")]
    process = subprocess.Popen(
        [sys.executable, "-m", "ddfast", "distill", *arguments],
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ,
        # a shell that runs the tests in the background has them ignore it
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    for line in process.stderr:
        if line.startswith("iteration 1 of"):
            break
    process.send_signal(getattr(signal, name))
    _, rest = process.communicate(timeout=120)
    assert process.returncode == 128 + getattr(signal, name) and "Traceback" not in rest
    assert "resume continues from there" in rest
    written = {"synthetic.safetensors", "images.png", "curves.png", "metrics.jsonl", "checkpoint.pt"}
    assert written <= {p.name for p in (tmp_path / "run").iterdir()}
    done = len((tmp_path / "run" / "metrics.jsonl").read_text().splitlines())
    again = ddfast("distill", "--resume", "--iterations", str(done + 2), "--output", str(tmp_path / "run"))
    assert again.returncode in (0, USELESS) and f"continuing after iteration {done}" in again.stderr


def test_experts_are_trained_into_a_folder_that_distill_takes(tmp_path):
    options = ["--num-experts", "1", "--epochs", "1", "--batch-train", "500", "--output", str(tmp_path / "experts")]
    options += "--optimizer gsam --rho 0.02 --alpha 0.3 --schedule cosine --dsa-strategy crop+flip".split()
    done = ddfast("experts", *options)
    assert done.returncode == 0 and done.stdout.startswith("1 experts of 1 epochs in"), done.stderr
    assert "settings: mtt/digits/ipc1" in done.stderr
    done = ddfast("distill", *SMALL, "--experts", str(tmp_path / "experts"), "--output", str(tmp_path / "run"))
    assert done.returncode in (0, USELESS), done.stderr
    config = json.loads((tmp_path / "run" / "config.json").read_text())
    assert config["trained_experts"]["lr_teacher"] == 0.02 and config["experts"] == str(tmp_path / "experts")
    asked = {"optimizer": "gsam", "rho": 0.02, "alpha": 0.3, "schedule": "cosine", "dsa_strategy": "crop+flip"}
    assert config["trained_experts"].items() >= asked.items()


def test_a_folder_of_photographs_of_odd_sizes_from_the_command_line(tmp_path):
    """The whole job, with whitening, augmentation, several networks and evaluations on the way; then resumed."""
    for k, name in enumerate(("dark", "light", "red")):
        for part, count in (("train", 5), ("test", 2)):
            for n in range(count):
                file = tmp_path / "photos" / part / name / f"{n}.jpg"
                file.parent.mkdir(parents=True, exist_ok=True)
                noise = torch.randint(60, (19 + 5 * n, 31 - n, 3), generator=seeds.generator(n, name, part)).byte()
                light = torch.tensor([[20, 20, 20], [190, 190, 190], [190, 20, 20]][k]).byte()
                Image.fromarray((noise + light).numpy()).save(file)
    options = (
        "--dataset photos --image-size 16 --zca --ipc 2 --iterations 4 --num-experts 2 --train-epochs needed "
        "--batch-train 5 --syn-steps 3 --expert-epochs 1 --max-start-epoch 2 --lr-img 1 --num-eval 1 --eval-epochs 20 "
        "--networks convnet,mlp --eval-every 2 --full-epochs 2 --data-root . --output run"
    ).split()
    done = ddfast("distill", *options, "--resume", cwd=tmp_path)
    assert done.returncode in (0, USELESS), done.stderr
    assert "settings: no preset for these data" in done.stderr and "iteration 2:" in done.stderr
    assert "distilled images, 2 per class: mlp" in done.stdout and "full data, 2 epochs (trained again)" in done.stdout
    config = json.loads((tmp_path / "run" / "config.json").read_text())
    assert config["dataset"] == str(tmp_path / "photos") and config["zca"] and config["image_size"] == [16, 16]
    assert ddfast("distill", "--resume", "--output", "run", cwd=tmp_path).stdout == done.stdout
    assert ddfast("distill", *options, "--resume", cwd=tmp_path).stdout == done.stdout
    evaluated = ddfast("evaluate", "run", "--num-eval", "1", "--eval-epochs", "2", cwd=tmp_path)
    assert evaluated.returncode == 0 and evaluated.stdout.count(" ± ") == 4, evaluated.stderr
    assert "other networks than convnet" in evaluated.stdout
    assert "mlp      random real images, 2 per class  " in evaluated.stdout
    differing = ddfast("distill", "--resume", "--output", "run", "--no-zca", cwd=tmp_path)
    assert differing.returncode == 1 and "zca: the run in run has True, got False" in differing.stderr


def test_a_full_disk_is_one_sentence_and_leaves_nothing_half_written(tmp_path):
    """Files of more than 400 kB fail as they would on a full disk: an expert's does, the store's settings are there."""
    limited = f"ulimit -f 400; exec {sys.executable} -m ddfast distill {' '.join(SMALL)} --output {tmp_path}/run"
    environment = {**os.environ, "DDFAST_CACHE": str(tmp_path / "cache")}
    done = subprocess.run(["bash", "-c", limited], capture_output=True, text=True, env=environment)
    assert done.returncode == 1 and "Traceback" not in done.stderr
    assert "File too large" in done.stderr.strip().splitlines()[-1], done.stderr
    assert [p.name for p in tmp_path.rglob("[!.]*") if p.is_file()] == ["experts.json"]


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


def test_info_shows_the_plan_of_a_preset_without_its_data():
    done = ddfast("info", "--plan", "mtt/cifar100/ipc10", "--memory-budget", "4GiB")
    assert done.returncode == 0, done.stderr
    assert "mtt/cifar100/ipc10, 1000 images of 3 × 32 × 32 × 20 steps" in done.stdout
    assert "convnet, 504420 parameters, fused" in done.stdout
    about = json.loads(ddfast("info", "--json", "--plan", "mtt/cifar100/ipc10", "--memory-budget", "4GiB").stdout)
    assert about["predicted_bytes"] <= 4 * 2**30 and about["stored_steps"] > 0
    other = ddfast("info", "--plan", "mtt/cifar10/ipc1", "--network", "convnet:norm=batchnorm").stdout
    assert "by autograd: its blocks are not instance norm, ReLU and average pooling" in other


def test_presets_are_listed_and_shown():
    assert "mtt/digits/ipc1" in ddfast("presets").stdout.splitlines()
    assert "syn_steps = 20" in ddfast("presets", "mtt/digits/ipc1").stdout.splitlines()


def test_options_may_be_written_with_underscores_as_the_field_does(tmp_path):
    done = ddfast("distill", "--syn_steps", "0")
    assert done.returncode == 2 and "Invalid value for '--syn-steps'" in done.stderr


@pytest.mark.parametrize(
    "arguments, status, sentence",
    [
        ("distill --dataset cifar", 1, "ddfast: dataset: expected one of digits, mnist, fashion-mnist, cifar10,"),
        ("distill --dataset mnist --data-root /nowhere", 1, "ddfast: mnist: not found or damaged; expected /nowhere/"),
        ("distill --resume", 1, "ddfast: resume: expected the output folder"),
        ("distill --image-size 3x3x3", 2, "Error: Invalid value for '--image-size'"),
        ("distill --image-size 1", 1, "ddfast: image_size: expected at least 2 pixels"),
        ("distill --train-epochs some", 2, "Error: Invalid value for '--train-epochs'"),
        ("distill --init zeros", 1, "ddfast: init: expected one of real, noise, first, correct, herding,"),
        ("distill --zca yes", 2, "Error: Got unexpected extra argument"),
        ("distill --dsa-strategy shear", 1, "ddfast: dsa_strategy: expected some of color, crop,"),
        ("distill --networks convnet,vgg", 1, "ddfast: network: expected one of convnet, resnet18,"),
        ("experts --dataset /nowhere", 1, "ddfast: dataset: expected a folder of pictures, there is no /nowhere"),
        ("experts --mom 1", 2, "Error: Invalid value for '--mom': expected a number from 0 to below 1"),
        ("experts --optimizer adam", 2, "Error: Invalid value for '--optimizer'"),
        ("info --plan dc/cifar10/ipc10", 1, "ddfast: plan: dc does not unroll, and its memory is not planned"),
        ("experts --method dc", 1, "ddfast: method: dc looks at no experts"),
        ("experts --alpha 0.3", 1, "ddfast: alpha: expected with the optimizer gsam only, got 0.3"),
        (
            "distill --method gan",
            1,
            "ddfast: method: expected one of mtt, ftd, datm, tesla, att, pp, pad, edf, texture, simplified, "
            "mct, selmatch, dc, dsa, idc, dm, cafe, ncfm, dd, ld, kip, random, herding, forgetting, grand, "
            "el2n, k_center, bptt, rat_bptt, at_bptt, at_bptt_pp, remember, got 'gan'",
        ),
        ("tune", 2, "Error: Missing option '--time'"),
        ("tune --time soon", 1, "ddfast: time: expected a time such as 90s, 20min or 2h, got 'soon'"),
        ("tune --time 1h --method herding", 1, "ddfast: method: herding selects images and learns nothing"),
        ("tune --time 1h --lr-img banana", 2, "Error: Invalid value for '--lr-img'"),
        ("distill --network vgg", 1, "ddfast: network: expected one of convnet, resnet18, resnet18_ap, vgg11,"),
        ("distill --preset x", 1, "ddfast: preset: expected one of mtt/digits/ipc1, mtt/mnist/ipc1,"),
        ("distill --ipc 500", 1, "ddfast: ipc: expected at most the"),
        ("distill --ipc 0", 2, "Error: Invalid value for '--ipc'"),
        ("distill --lr-img banana", 2, "Error: Invalid value for '--lr-img'"),
        ("distill --device gpu0", 1, "ddfast: device: "),
        ("distill --experts /nowhere", 1, "ddfast: /nowhere: no trained experts here"),
        ("distill --output /proc/run", 1, "ddfast: "),
        ("evaluate /nowhere --table /tmp", 1, "ddfast: --table: expected a file in a folder that is there, got /tmp"),
        ("evaluate /nowhere --table /not/there.json", 1, "ddfast: --table: expected a file in a folder that is there"),
        ("evaluate /nowhere", 1, "ddfast: /nowhere.safetensors: no such file"),
        ("info --segments 4", 1, "ddfast: info: these options are for --plan"),
        ("info --plan a/b/c", 1, "ddfast: preset: expected <method>/<dataset>/ipc<n>"),
        ("info --plan mtt/cifar10/ipc1 --memory-budget 2MiB", 1, "ddfast: memory_budget: 2 MiB is too little"),
        ("info --plan mtt/cifar10/ipc1 --memory-budget much", 1, "ddfast: memory_budget: expected bytes, a size like"),
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
    assert not (tmp_path / "runs").exists() and not (tmp_path / "tuning").exists()
