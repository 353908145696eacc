"""How experts' snapshots are stored: which epochs, in which format, how far off, in how many bytes."""

import hashlib
import json
import shutil

import pytest
import torch
from click.testing import CliRunner
from safetensors import safe_open
from safetensors.torch import load_file, save_file

import ddfast
from ddfast import TrajectoryStore, train_experts
from ddfast.cli import cli
from ddfast.experts import FORMATS, predicted_bytes, train
from tests.conftest import SMALL, normal, relative_error

OPTIONS = {"num_experts": 1, "batch_train": 6, "train_lr": 0.05, "dsa_strategy": "flip_scale"}
BOUND = {"float32": 0.0, "delta16": 2e-5, "delta8": 4e-3}  # of a snapshot, far from zero, that moves by some percent
P = 1000  # not a whole number of blocks


def walk(rows=11, seed=0):
    """A trajectory [rows, P] that begins far from zero, in float32; some parameters never move, some blocks hardly."""
    steps = normal(rows, P, seed=seed) * torch.linspace(0, 1e-2, P)
    steps[:, 300:600] *= 1e-6
    return (normal(P, seed=7) + steps.cumsum(0)).float()


def stored(path, snapshots, how, **more):
    store = TrajectoryStore.create(path, {"seed": 0}, len(snapshots) - 1, snapshots=how, **more)
    store.add(0, snapshots if "keep_epochs" not in more else snapshots[store.kept_epochs])
    return TrajectoryStore(path)


def read_all(store):
    return torch.stack([store.snapshot(0, epoch) for epoch in store.kept_epochs])


def largest(difference):
    """Of every block of 256 parameters, for each of them."""
    blocks = torch.nn.functional.pad(difference.abs(), (0, -P % 256)).view(len(difference), -1, 256)
    return blocks.amax(2).repeat_interleave(256, 1)[:, :P]


@pytest.mark.parametrize(("how", "bits", "every"), [("delta16", 16, None), ("delta8", 8, 4)])
def test_a_rounded_snapshot_is_within_half_a_step_of_its_blocks_scale(tmp_path, how, bits, every):
    """A 127th or a 32767th of the largest difference from the first row, or the last one in 16 bits."""
    snapshots = walk()
    store = stored(tmp_path, snapshots, how)
    read = read_all(store)
    assert read.dtype == torch.float32 and torch.equal(read[0], snapshots[0])
    for row in range(1, 11):
        in16 = every is None or row % every == 0
        base = 0 if in16 else row - row % every
        step = largest((snapshots[row] - read[base])[None].double())[0] / (32767 if in16 else 127)
        rounding = 2 * torch.finfo(torch.float32).eps * snapshots[row].abs()  # of float32 itself
        assert ((read[row] - snapshots[row]).abs() <= step / 2 * 1.001 + rounding).all()
    assert 0 < relative_error(read, snapshots) < 2.0**-bits


def test_float32_is_exact_and_its_file_is_that_of_the_first_version(tmp_path):
    """Byte for byte: stores from then are read, and read by programs from then."""
    snapshots = walk(3)
    stored(tmp_path / "now", snapshots, "float32")
    old = tmp_path / "old"
    old.mkdir()
    sums = [hashlib.sha256(row.numpy().tobytes()).hexdigest()[:16] for row in snapshots]
    save_file({"snapshots": snapshots}, old / "expert_0000.safetensors", {"sha256": json.dumps(sums)})
    about = {"format": "ddfast-trajectories-1", "epochs": 2, "settings": {"seed": 0}}
    (old / "experts.json").write_text(json.dumps(about, indent=2) + "\n")
    written, checksum = json.loads((tmp_path / "now" / "experts.json").read_text()), "sha256"
    assert written.pop(checksum) and written == about  # from then on JSON files have one, which old programs pass over
    assert (old / "expert_0000.safetensors").read_bytes() == (tmp_path / "now" / "expert_0000.safetensors").read_bytes()
    store = TrajectoryStore(old)
    assert torch.equal(read_all(store), snapshots)
    assert (store.kept_epochs, store.snapshots, set(store.error.values())) == ([0, 1, 2], "float32", {0.0})


@pytest.mark.parametrize("how", ["delta16", "delta8"])
def test_the_error_is_that_of_a_computation_in_float64(tmp_path, how):
    store, snapshots = stored(tmp_path, walk(), how), [walk(), walk(seed=1)]
    store.add(1, snapshots[1])
    of_snapshots, of_segments = [], []
    for expert, true in enumerate(snapshots):
        read = torch.stack([store.snapshot(expert, epoch) for epoch in range(11)])
        of_snapshots += [relative_error(r, t) for r, t in zip(read, true, strict=True)]
        moved, moves = read.double().diff(dim=0), true.double().diff(dim=0)
        of_segments += [relative_error(m, t) for m, t in zip(moved, moves, strict=True)]
    expected = {"snapshot_mean": sum(of_snapshots) / 22, "snapshot_max": max(of_snapshots)}
    expected |= {"segment_mean": sum(of_segments) / 20, "segment_max": max(of_segments)}
    assert store.error == pytest.approx(expected, rel=1e-9)
    assert 0 < store.error["segment_max"] < {"delta16": 5e-4, "delta8": 5e-2}[how]


def test_only_the_kept_epochs_and_the_last_are_there(tmp_path):
    snapshots = walk()
    for how in FORMATS:
        store = stored(tmp_path / how, snapshots, how, keep_epochs=(4, 6))
        assert store.kept_epochs == [4, 5, 6, 10] and store.epochs == 10
        assert relative_error(read_all(store), snapshots[[4, 5, 6, 10]]) <= BOUND[how]
        assert torch.equal(store.snapshot(0, 4), snapshots[4])
        with pytest.raises(ValueError, match=r"epoch 3 were not kept, those of epochs 4 to 6 and 10 were"):
            store.segment(0, 3, 5)
        with pytest.raises(ValueError, match=r"snapshots: expected \[4, P\], got \[11, 1000\]"):
            store.add(1, snapshots)
        assert store.settings["keep_epochs"] == [4, 6] and store.about["format"] == "ddfast-trajectories-2"
        with pytest.raises(ValueError, match=r"other settings \(keep_epochs\)"):
            TrajectoryStore.create(store.path, {"seed": 0}, 10, snapshots=how)
        with pytest.raises(ValueError, match=r"other settings \(.*snapshots"):
            TrajectoryStore.create(store.path, {"seed": 0}, 10, snapshots="float32" if how != "float32" else "delta8")
    for wrong in ((3, 11), (5, 4), (-1, 2), (1,), "1-2", (True, 2)):
        with pytest.raises(ValueError, match="keep_epochs: expected a first and a last epoch from 0 to 10, got"):
            TrajectoryStore.create(tmp_path / "wrong", {}, 10, keep_epochs=wrong)
    with pytest.raises(ValueError, match="snapshots: expected one of float32, delta16, delta8, got 'bfloat16'"):
        TrajectoryStore.create(tmp_path / "wrong", {}, 10, snapshots="bfloat16")
    assert not (tmp_path / "wrong").exists()


@pytest.mark.parametrize("how", FORMATS)
def test_damage_is_found_where_it_is_read_and_only_there(tmp_path, how):
    """One altered byte at the end of each tensor: every epoch is either exact as before or refused by name."""
    store = stored(tmp_path, walk(), how)
    path, before = store.path / "expert_0000.safetensors", read_all(store)
    whole = path.read_bytes()
    header = 8 + int.from_bytes(whole[:8], "little")
    places = {name: about["data_offsets"] for name, about in json.loads(whole[8:header]).items() if name[:2] != "__"}
    assert len(places) == {"float32": 1, "delta16": 3, "delta8": 5}[how]
    for name, (_, end) in places.items():
        altered = bytearray(whole)
        altered[header + end - 1] ^= 1
        path.write_bytes(altered)
        refused = []
        for epoch in range(11):
            try:
                assert torch.equal(TrajectoryStore(tmp_path).snapshot(0, epoch), before[epoch])
            except ValueError as error:
                assert "expert_0000.safetensors: the snapshot of epoch" in str(error) and "is damaged" in str(error)
                refused.append(epoch)
        first_row = list(range(11)) if how != "float32" else [10]
        last_key = [8, 9, 10] if how == "delta8" else [10]
        assert refused == (first_row if name == "snapshots" else last_key if name.endswith("16") else [10])
    path.write_bytes(whole[:-50])
    with pytest.raises(ValueError, match="not a whole trajectory file"):
        TrajectoryStore(tmp_path).snapshot(0, 1)
    tensors, sums = load_file_of(whole, path)
    for metadata in ({}, {"about": "{}"}, {"sha256": "[]"}, {"sha256": "7"}, {"sha256": json.dumps(sums[:-1])}):
        save_file(tensors, path, metadata)
        with pytest.raises(ValueError, match=r"not a whole trajectory file|damaged"):
            TrajectoryStore(tmp_path).snapshot(0, 1)


def load_file_of(whole, path):
    path.write_bytes(whole)
    with safe_open(path, framework="pt") as file:
        said = file.metadata()
        return load_file(path), json.loads(said["about"])["sha256"] if "about" in said else json.loads(said["sha256"])


@pytest.mark.parametrize("how", FORMATS)
def test_a_segment_between_equal_snapshots_is_an_error_in_every_format(tmp_path, how):
    """Also where the two are rounded from different rows."""
    snapshots = walk()
    snapshots[5] = snapshots[3]
    store = stored(tmp_path, snapshots, how)
    with pytest.raises(ValueError, match="the snapshots of epochs 3 and 5 are equal: there is no trajectory to match"):
        store.segment(0, 3, 5)
    start, target = store.segment(0, 2, 4)
    assert relative_error(target - start, snapshots[4] - snapshots[2]) < 0.03


def test_what_cannot_be_rounded_is_kept_by_float32_alone(tmp_path):
    snapshots = walk()
    snapshots[2, 5], snapshots[0, 5] = 3e38, -3e38
    for how in ("delta16", "delta8"):
        with pytest.raises(ValueError, match=r"snapshots: .*float32"):
            stored(tmp_path / how, snapshots, how)
        assert TrajectoryStore(tmp_path / how).num_experts == 0
    assert torch.equal(read_all(stored(tmp_path / "float32", snapshots, "float32")), snapshots)


@pytest.mark.parametrize("how", FORMATS)
@pytest.mark.parametrize("keep_epochs", [None, (2, 8), (0, 0)])
def test_predicted_bytes_are_an_upper_bound_a_few_hundred_bytes_above(tmp_path, how, keep_epochs):
    for parameters in (1, 1000, 30_000):
        store = TrajectoryStore.create(tmp_path / str(parameters), {}, 40, snapshots=how, keep_epochs=keep_epochs)
        snapshots = normal(len(store.kept_epochs), parameters).float()
        for expert in range(2):
            store.add(expert, snapshots)
        size = sum(file.stat().st_size for file in store.path.glob("*.safetensors"))
        predicted = predicted_bytes(parameters, epochs=40, num_experts=2, snapshots=how, keep_epochs=keep_epochs)
        assert size <= predicted <= size + 2 * (1024 + 41 * 64)


def test_experts_that_do_not_fit_the_disk_are_refused_before_training(pair, tmp_path, monkeypatch):
    """Nine experts fit where there is room for them and one that is being trained."""
    options = OPTIONS | {"train_epochs": 3, "network": "convnet:width=32", "output": tmp_path}
    store = train_experts(pair, **options)
    room = 10 * predicted_bytes(store.snapshot(0, 0).numel(), epochs=3)
    usage, trained = shutil.disk_usage(tmp_path), []
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=room))
    monkeypatch.setattr(train._Training, "run", lambda self, name: trained.extend(self.experts))
    with pytest.raises(OSError, match=r"10 experts of 3 epochs take 1.\d MB as float32, 1.\d MB are free; keep_epochs"):
        train_experts(pair, **options | {"num_experts": 11})
    assert not trained
    train_experts(pair, **options | {"num_experts": 10})
    assert trained == list(range(1, 10))


def interrupted(pair, monkeypatch, after, **options):
    original = train._Training._train_epoch

    def training(self):
        if self.epoch == after:
            raise KeyboardInterrupt
        return original(self)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(train._Training, "_train_epoch", training)
        train_experts(pair, **options)


@pytest.mark.parametrize(("how", "after"), [("float32", 1), ("delta16", 3), ("delta8", 4)])
def test_training_that_keeps_some_epochs_gives_the_same_and_goes_on_bit_for_bit(
    pair, tmp_path, monkeypatch, how, after
):
    """Interrupted before, among and after the kept epochs; what the file holds is that of no interruption."""
    options = OPTIONS | {"train_epochs": 5, "mom": 0.5, "snapshots": how}
    whole = train_experts(pair, output=tmp_path / "all", **options | {"snapshots": "float32"})
    kept = train_experts(pair, output=tmp_path / "kept", keep_epochs=(2, 3), **options)
    for epoch in (2, 3, 5):
        assert relative_error(kept.snapshot(0, epoch), whole.snapshot(0, epoch)) <= BOUND[how]
    killed = options | {"output": tmp_path / "killed", "keep_epochs": (2, 3)}
    interrupted(pair, monkeypatch, after, **killed)
    state = load_file(tmp_path / "killed" / "unfinished_0000.safetensors")
    assert {t.dtype for name, t in state.items() if name != "epoch"} == {torch.float32}
    epochs, original = [], train._Training._train_epoch
    monkeypatch.setattr(train._Training, "_train_epoch", lambda self: epochs.append(self.epoch) or original(self))
    train_experts(pair, **killed)
    assert epochs == list(range(after, 5))
    assert contents(tmp_path / "killed") == contents(tmp_path / "kept")


def contents(folder):
    with safe_open(folder / "expert_0000.safetensors", framework="pt") as file:
        return file.metadata(), {name: file.get_tensor(name).tolist() for name in file.keys()}


def test_a_training_that_an_older_version_left_unfinished_goes_on(pair, tmp_path, monkeypatch):
    options = OPTIONS | {"train_epochs": 3, "mom": 0.5}
    whole = train_experts(pair, output=tmp_path / "whole", **options)
    interrupted(pair, monkeypatch, 2, output=tmp_path / "killed", **options)
    path = tmp_path / "killed" / "unfinished_0000.safetensors"
    state = load_file(path)
    save_file({name: state[name] for name in ("snapshots", "velocity")}, path)
    store = train_experts(pair, output=tmp_path / "killed", **options)
    assert torch.equal(read_all(store), read_all(whole))


def test_the_cache_tells_stores_apart_and_one_with_all_epochs_serves(pair, tmp_path, monkeypatch):
    monkeypatch.setenv("DDFAST_CACHE", str(tmp_path))
    options = OPTIONS | {"train_epochs": 4}
    kept, rounded = (
        train_experts(pair, keep_epochs=(1, 2), **options),
        train_experts(pair, snapshots="delta8", **options),
    )
    whole = train_experts(pair, **options)
    assert len({kept.path, rounded.path, whole.path}) == 3
    assert train_experts(pair, keep_epochs=(1, 3), **options).path == whole.path
    assert train_experts(pair, keep_epochs=(1, 3), snapshots="delta8", **options).path == rounded.path
    more = train_experts(pair, keep_epochs=(1, 2), **options | {"num_experts": 2})
    assert more.path == kept.path and more.num_experts == 2  # the one with all epochs has one expert


JOB = SMALL | {"train_epochs": 4, "expert_epochs": 1, "max_start_epoch": 3, "min_start_epoch": 1, "init": "correct"}


def test_a_run_on_the_epochs_that_it_needs_is_the_run_on_all(pair, tmp_path, monkeypatch):
    results = {}
    for keep in ("needed", "all"):
        monkeypatch.setenv("DDFAST_CACHE", str(tmp_path / "cache" / keep))
        results[keep] = ddfast.distill(pair, output=tmp_path / keep, keep_epochs=keep, **JOB)
    trained = json.loads((tmp_path / "needed" / "config.json").read_text())["trained_experts"]
    assert trained["keep_epochs"] == [1, 3]
    assert torch.equal(results["needed"].synthetic.images, results["all"].synthetic.images)
    assert results["needed"].accuracy == results["all"].accuracy


def test_a_run_on_rounded_snapshots_records_their_error_and_goes_on(pair, tmp_path, monkeypatch):
    monkeypatch.setenv("DDFAST_CACHE", str(tmp_path / "cache"))
    done = ddfast.distill(pair, output=tmp_path / "run", snapshots="delta8", **JOB)
    trained = json.loads((done.path / "config.json").read_text())["trained_experts"]
    assert trained["snapshots"] == "delta8" and trained["error"] == TrajectoryStore(trained["path"]).error
    longer = ddfast.distill(pair, output=tmp_path / "run", resume=True, iterations=4)
    assert len(longer.history) == 4
    rounded = TrajectoryStore(trained["path"])
    given = ddfast.distill(pair, output=tmp_path / "given", experts=rounded, **JOB)
    assert torch.equal(given.synthetic.images, done.synthetic.images)
    plain = train_experts(pair, **OPTIONS | {"num_experts": 2, "train_epochs": 4})
    with pytest.raises(ValueError, match=r"experts: the run in .* had others than .* \(.*snapshots"):
        ddfast.distill(pair, output=tmp_path / "given", resume=True, experts=plain, iterations=5)
    with pytest.raises(ValueError, match=r"snapshots: the experts in .* were trained with 'delta8', got 'delta16'"):
        ddfast.distill(pair, experts=rounded, snapshots="delta16", **JOB)


def test_a_store_without_the_epochs_that_a_run_can_use_is_refused_at_the_door(pair, tmp_path):
    store = train_experts(pair, output=tmp_path / "a", keep_epochs=(2, 3), **OPTIONS | {"train_epochs": 4})
    job = JOB | {"num_experts": 1}
    with pytest.raises(ValueError, match=r"keep_epochs: .*/a holds those of epochs 2 to 3 and 4, .* can use 1 to 3"):
        ddfast.distill(pair, output=tmp_path / "run", experts=store, **job)
    with pytest.raises(ValueError, match="keep_epochs: this run can use epochs 1 to 3, got 2 to 3"):
        ddfast.distill(pair, output=tmp_path / "run", keep_epochs=(2, 3), **job)
    with pytest.raises(ValueError, match="snapshots: expected one of float32, delta16, delta8, got 'zip'"):
        ddfast.distill(pair, output=tmp_path / "run", snapshots="zip", **job)
    with pytest.raises(ValueError, match="keep_epochs: expected a first and a last epoch from 0 to 4, got 'some'"):
        ddfast.distill(pair, output=tmp_path / "run", keep_epochs="some", **job)
    assert not (tmp_path / "run").exists()
    later = job | {"min_start_epoch": 2}
    assert len(ddfast.distill(pair, output=tmp_path / "run", experts=store, keep_epochs="needed", **later).history) == 3


def test_the_command_line_says_what_experts_would_take(tmp_path):
    run = CliRunner()
    command = ["experts", "--num-experts", "3", "--epochs", "40", "--output", str(tmp_path / "x"), "--plan"]
    sizes = []
    for keep in ([], ["--keep-epochs", "needed"], ["--keep-epochs", "0-6"], ["--keep-epochs", "all"]):
        done = run.invoke(cli, [*command, *keep])
        assert done.exit_code == 0, done.output
        lines = [line.split() for line in done.output.splitlines() if line.split()[0] in FORMATS]
        assert [line[0] for line in lines] == list(FORMATS) and {line[2] for line in lines} == {"MB"}
        sizes.append([float(line[1]) for line in lines])
    assert sizes[0] == sizes[3] and sizes[1] == sizes[2]  # the preset needs 0 to 6
    assert sizes[0][0] / sizes[1][0] == pytest.approx(41 / 8, rel=0.01)
    assert 1.9 < sizes[0][0] / sizes[0][1] < 2 and 3 < sizes[0][0] / sizes[0][2] < 3.2
    assert not (tmp_path / "x").exists()
    refused = run.invoke(cli, [*command, "--keep-epochs", "forty"])
    assert refused.exit_code == 2 and "expected a first and a last epoch as 40-61, needed, or all" in refused.output
