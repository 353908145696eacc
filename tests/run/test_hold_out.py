"""Training images that are held out: nothing is learned from them, and the best iteration is chosen by them."""

import json

import pytest
import torch

import ddfast
from ddfast.data import load_dataset

SMALL = {
    "network": "mlp", "num_experts": 1, "train_epochs": 2, "batch_train": 5, "syn_steps": 2, "expert_epochs": 1,
    "max_start_epoch": 1, "lr_img": 1.0, "iterations": 4, "num_eval": 1, "eval_epochs": 3, "eval_every": 2,
    "preset": "mtt/digits/ipc1", "ipc": 1,
}  # fmt: skip


def test_held_out_images_are_no_training_images(pair):
    whole, data = load_dataset(pair), load_dataset(pair, hold_out=0.3)
    count = len(whole.train_images)
    assert len(data.train_images) + len(data.held_images) == count and len(data.held_images) >= 0.2 * count
    rows = {tuple(image.flatten().tolist()) for image in data.train_images}
    assert not rows & {tuple(image.flatten().tolist()) for image in data.held_images}
    assert data.fingerprint != whole.fingerprint and data.test_fingerprint == whole.test_fingerprint
    again = load_dataset(whole, hold_out=0.3)
    assert again.fingerprint == data.fingerprint and load_dataset(again, hold_out=0.3) is again
    white = load_dataset(pair, hold_out=0.3, zca=True)
    assert white.preprocessing.zca is not None and torch.equal(white.held_images, data.held_images)
    with pytest.raises(ValueError, match=r"hold_out: expected data as they were read; .* is whitened"):
        load_dataset(load_dataset(pair, zca=True), hold_out=0.3)


def test_a_run_chooses_its_best_iteration_by_them_and_says_what_it_reaches_on_test_images(pair, tmp_path):
    done = ddfast.distill(pair, hold_out=0.3, output=tmp_path / "run", **SMALL)
    best = done.accuracy["best"]
    on_the_way = [json.loads(line) for line in (tmp_path / "run" / "evaluations.jsonl").read_text().splitlines()]
    found = [*on_the_way, {"iteration": 4, **done.accuracy["distilled"]}]
    assert best["held_out"] == max(record["held_out"] for record in found)
    assert best["mean"] == next(r["mean"] for r in found if r["iteration"] == best["iteration"])
    again = ddfast.distill(pair, hold_out=0.3, output=tmp_path / "run", resume=True, **SMALL)
    assert again.accuracy == done.accuracy
    with pytest.raises(ValueError, match=r"hold_out: the run in .* has 0.3, got 0.2"):
        ddfast.distill(pair, hold_out=0.2, output=tmp_path / "run", resume=True, **SMALL)


def test_experts_that_saw_them_are_refused(pair, tmp_path):
    ddfast.train_experts(pair, num_experts=1, train_epochs=2, network="mlp", batch_train=5, output=tmp_path / "experts")
    options = {
        name: value for name, value in SMALL.items() if name not in ("num_experts", "train_epochs", "batch_train")
    }
    with pytest.raises(ValueError, match=r"experts: .* was trained with training images"):
        ddfast.distill(pair, hold_out=0.3, experts=tmp_path / "experts", output=tmp_path / "run", **options)


@pytest.mark.parametrize("share", [1.0, -0.1, "much"])
def test_another_share_is_refused(pair, tmp_path, share):
    with pytest.raises((ValueError, TypeError), match="hold_out: expected"):
        ddfast.distill(pair, hold_out=share, output=tmp_path / "run", **SMALL)
