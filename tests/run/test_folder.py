"""The run folder: what it claims, writes, reads and refuses."""

import json

import pytest
import torch

from ddfast.run.folder import RunFolder, WatchedRunFolder

CONFIG = {"dataset": "digits", "method": "mtt", "versions": {"ddfast": "0"}}


@pytest.fixture
def run(tmp_path):
    return RunFolder.create(tmp_path / "run", CONFIG)


def test_a_folder_is_claimed_once_and_read_back(run, tmp_path):
    assert run.has_config and run.read_config() == CONFIG
    with pytest.raises(FileExistsError, match="holds a run already"):
        RunFolder.create(tmp_path / "run", CONFIG)
    run.discard()
    assert not (tmp_path / "run").exists()


def test_without_a_name_runs_are_numbered(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs" / "0007").mkdir(parents=True)
    assert [RunFolder.create(None, CONFIG).path.name for _ in range(2)] == ["0008", "0009"]


@pytest.mark.parametrize(
    "name, sentence", [("checkpoint.pt", "holds a run whose config.json is missing"), ("experts.json", "holds experts")]
)
def test_a_folder_of_something_else_is_refused(tmp_path, name, sentence):
    (tmp_path / name).write_text("")
    with pytest.raises(FileExistsError, match=sentence):
        RunFolder(tmp_path).expect_free()


def test_an_empty_claim_is_taken_over_to_resume_only(tmp_path):
    (tmp_path / "config.json").write_text("")
    with pytest.raises(FileExistsError):
        RunFolder.create(tmp_path, CONFIG)
    assert RunFolder.create(tmp_path, CONFIG, resume=True).read_config() == CONFIG


@pytest.mark.parametrize("text", ["[]", "{}", '{"dataset": 3, "method": "mtt", "versions": {}}'])
def test_settings_of_no_run_are_refused(run, text):
    (run.path / "config.json").write_text(text)
    with pytest.raises(ValueError, match="not the settings of a run"):
        run.read_config()


def test_records_are_lines_and_later_or_broken_ones_go(run, caplog):
    for n in range(1, 5):
        run.append("metrics", {"iteration": n, "loss": float("nan") if n == 2 else n / 2})
    path = run.path / "metrics.jsonl"
    lines = path.read_text().splitlines(keepends=True)
    assert json.loads(lines[1]) == {"iteration": 2, "loss": None}
    path.write_text(lines[0] + "not a line\n" + "".join(lines[1:]) + '{"iteration": 5')
    kept = run.keep_until("metrics", 3)
    assert [record["iteration"] for record in kept] == [1, 2, 3]
    assert path.read_text() == "".join(lines[:3]) and "skipped 1 damaged lines" in caplog.text


def test_evaluated_sets_are_pruned_oldest_first(run):
    (run.path / "checkpoints").mkdir()
    for n in (100, 200, 300):
        for name in (f"{n:06d}.json", f"{n:06d}.safetensors", f"{n:06d}-averaged.json"):
            (run.path / "checkpoints" / name).write_text("")
    run.prune_checkpoints(None)
    assert len(list((run.path / "checkpoints").iterdir())) == 9
    run.prune_checkpoints(1)
    assert {path.name[:6] for path in (run.path / "checkpoints").iterdir()} == {"000300"}


def test_a_checkpoint_is_whole_or_refused(run):
    assert run.read_state() is None
    run.write_state({"iteration": 3, "x": torch.arange(4)})
    state = run.read_state()
    assert state["iteration"] == 3 and torch.equal(state["x"], torch.arange(4))
    file = run.path / "checkpoint.pt"
    whole = file.read_bytes()
    file.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match="damaged, the run cannot be resumed"):
        run.read_state()
    run.write_state({"no": "iteration"})
    with pytest.raises(ValueError, match="not the state of a run"):
        run.read_state()


def test_one_process_holds_a_folder(run):
    with run.locked(), pytest.raises(BlockingIOError, match="another process is at work here"), run.locked():
        pass
    with run.locked():
        pass


def test_results_are_read_or_refused(run):
    assert run.read_summary() is None
    run.write_summary({"accuracy": {"distilled": {"mean": 1.0}}})
    assert run.read_summary()["accuracy"]["distilled"]["mean"] == 1.0
    run.write_summary({"accuracy": 3})
    with pytest.raises(ValueError, match="not the results of a run"):
        run.read_summary()


def test_other_processes_read_and_write_nothing(run):
    run.append("metrics", {"iteration": 1})
    watched, before = WatchedRunFolder(run.path), sorted(path.name for path in run.path.iterdir())
    watched.write_config({})
    watched.append("metrics", {"iteration": 2})
    watched.write_state({"iteration": 2})
    watched.discard()
    with watched.locked(), run.locked():
        assert watched.keep_until("metrics", 9) == [{"iteration": 1}]
    assert watched.read_config() == CONFIG
    assert sorted(path.name for path in run.path.iterdir() if path.name != ".lock") == before
