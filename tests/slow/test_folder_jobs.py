"""Own folders through the commands: the same pictures are read by experts, distill, resume and evaluate."""

import json

import numpy

from tests.cli.test_cli import SMALL, ddfast
from tests.pictures_for_tests import array_picture, picture


def test_experts_distill_resume_and_evaluate_read_a_folder_alike(tmp_path):
    ramp = numpy.arange(256, dtype="uint16").reshape(16, 16)
    for k, name in enumerate("abc"):
        for n in range(8):
            array_picture(tmp_path / "deep" / name / f"{n}.png", numpy.roll(ramp * 16, 50 * k + n))
    picture(tmp_path / "deep" / "a" / ".ipynb_checkpoints" / "0.png")
    (tmp_path / "deep" / "c" / "broken.png").write_bytes(b"broken")
    line = (
        "deep: 19 training images and 5 test images (drawn: 1 in 5 of each class, seed 0) of 3 classes, 16 × 16 px, "
        "1 channel, values 0–4095 (12 bits)"
    )
    refused = ddfast("distill", "--dataset", "deep", *SMALL, cwd=tmp_path)
    assert refused.returncode == 1 and "1 of 25 pictures cannot be read: deep/c/broken.png" in refused.stderr
    skipping = ("--dataset", "deep", "--skip-unreadable")
    commands = [
        ("experts", *skipping, "--num-experts", "1", "--epochs", "1", "--batch-train", "500", "--output", "experts"),
        ("distill", *skipping, *SMALL, "--experts", "experts", "--output", "run"),
        ("distill", "--output", "run", "--resume", "--iterations", "3"),
        ("evaluate", "run", "--num-eval", "1", "--eval-epochs", "1"),
    ]
    for command in commands:
        done = ddfast(*command, cwd=tmp_path)
        lines = [words for words in done.stderr.splitlines() if "training images" in words]
        # 3: so small a job may end no better than random images, which is said
        assert done.returncode in (0, 3) and len(lines) == 1, done.stderr
        assert lines[0].startswith(line) and "1 unreadable picture skipped" in lines[0]
        assert "1 folder .ipynb_checkpoints skipped" in lines[0]
    config = json.loads((tmp_path / "run" / "config.json").read_text())
    assert config["skip_unreadable"] is True and len(config["data"]["skipped"]) == 1
    assert config["data"]["skipped"][0].endswith("deep/c/broken.png (not a picture)")
    assert config["data"]["sources"][1].startswith("drawn") and config["preprocessing"]["value_range"] == [0, 4095]


def test_a_run_goes_on_with_the_test_folder_that_it_began_with(tmp_path):
    """A test/ that comes beside val/ later would be taken first by a new run, but not by this one or its evaluation."""
    for k, name in enumerate("ab"):
        for n in range(6):
            for part in ("train", "val"):
                picture(tmp_path / "photos" / part / name / f"{n}.png", value=100 * k + 5 * n + (part == "val"))
    assert ddfast("distill", "--dataset", "photos", *SMALL, "--output", "run", cwd=tmp_path).returncode in (0, 3)
    for name in "ab":
        picture(tmp_path / "photos" / "test" / name / "0.png", value=77)
    for command in (
        ("distill", "--output", "run", "--resume", "--iterations", "3"),
        ("evaluate", "run", "--num-eval", "1", "--eval-epochs", "1"),
    ):
        done = ddfast(*command, cwd=tmp_path)
        assert done.returncode in (0, 3) and "12 test images (val/)" in done.stderr, done.stderr
        assert "test images are others" not in done.stderr
    new = ddfast("evaluate", "run", "--num-eval", "1", "--eval-epochs", "1", "--test-folder", "test", cwd=tmp_path)
    assert "2 test images (test/)" in new.stderr
