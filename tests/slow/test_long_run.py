"""Long runs: memory does not grow, files stay readable, and checkpoints are pruned."""

import json
import subprocess
import sys
from pathlib import Path

import numpy
import pytest
from PIL import Image

import ddfast
from ddfast.data import SyntheticSet
from ddfast.run.folder import RunFolder
from ddfast.run.pictures import save_curves
from tests.conftest import SMALL

JOB = SMALL | {"iterations": 8, "eval_every": 2, "checkpoint_every": 2, "num_eval": 1, "network": "convnet:width=8"}

GROWING = """
    import sys
    from pathlib import Path
    from benchmarks.long_run import RUNS, measured

    memory = measured(Path(sys.argv[1]), 160, 20, RUNS[sys.argv[2]])["memory"]
    print(memory[160] - memory[80])
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads memory as Linux counts it")
def test_memory_does_not_grow(tmp_path):
    """By far less than the set of an iteration in each of 80, 8 MB: records alone are kept."""
    name = "datm, soft labels, DSA, a part of the set visits"
    code = "\n".join(line[4:] for line in GROWING.splitlines())
    done = subprocess.run(
        [sys.executable, "-c", code, tmp_path / "run", name],
        capture_output=True,
        text=True,
        cwd=Path(__file__).parents[2],
    )
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) < 4 * 2**20


def kept(run):
    return sorted({int(path.name[:6]) for path in (run / "checkpoints").iterdir()})


def test_the_last_checkpoints_are_kept_and_another_number_on_resume(pair, tmp_path):
    run = tmp_path / "run"
    ddfast.distill(pair, output=run, keep_checkpoints=2, method="ftd", **JOB)
    assert kept(run) == [4, 6]  # after 8 the run is evaluated as a whole
    names = {path.name for path in (run / "checkpoints").iterdir()}
    assert names == {
        f"00000{n}{kind}.{end}" for n in (4, 6) for kind in ("", "-averaged") for end in ("json", "safetensors")
    }
    assert SyntheticSet.load(run / "checkpoints/000006").images.shape == (3, 1, 16, 16)
    evaluations = [json.loads(line)["iteration"] for line in (run / "evaluations.jsonl").read_text().splitlines()]
    assert evaluations == [2, 4, 6]
    ddfast.distill(pair, output=run, resume=True, keep_checkpoints=1, **JOB | {"iterations": 12})
    assert kept(run) == [10]
    with pytest.raises(ValueError, match="keep_checkpoints: expected a whole number of at least 1, got 0"):
        ddfast.distill(pair, output=tmp_path / "other", keep_checkpoints=0, **JOB)
    with pytest.raises(ValueError, match=r"keep_checkpoints: .* give eval_every too"):
        ddfast.distill(pair, output=tmp_path / "other", keep_checkpoints=2, **JOB | {"eval_every": None})


def test_all_checkpoints_are_kept_where_nothing_is_said(pair, tmp_path):
    ddfast.distill(pair, output=tmp_path / "run", **JOB)
    assert kept(tmp_path / "run") == [2, 4, 6]


def test_pruning_after_a_kill_deletes_what_is_left_of_old_sets_and_nothing_else(tmp_path):
    folder = tmp_path / "checkpoints"
    folder.mkdir()
    half = ["000100.safetensors", "000200.json", "000200-averaged.json", "1000000.json", "000300.json"]
    others = ["notes.txt", ".000100.json.77.tmp", "best.safetensors"]
    for name in half + others:
        (folder / name).touch()
    run = RunFolder(tmp_path)
    run.prune_checkpoints(None)
    assert len(list(folder.iterdir())) == len(half + others)
    run.prune_checkpoints(2)
    assert {path.name for path in folder.iterdir()} == {"1000000.json", "000300.json", *others}
    run.prune_checkpoints(7)
    RunFolder(tmp_path / "nowhere").prune_checkpoints(1)


def test_a_file_of_metrics_that_is_whole_is_not_written_again_and_one_that_is_not_is_mended(tmp_path):
    run = RunFolder(tmp_path)
    for n in range(1, 6):
        run.append("metrics", {"iteration": n, "loss": float("nan") if n == 2 else 0.1 * n})
    file = tmp_path / "metrics.jsonl"
    whole, written = file.read_text(), file.stat().st_ino
    assert [record["iteration"] for record in run.keep_until("metrics", 5)] == [1, 2, 3, 4, 5]
    assert (file.read_text(), file.stat().st_ino) == (whole, written)
    for cut_off in ('{"iteration": 6, "lo', '{"iteration": 6}'):  # the second is whole but for its end of line
        file.write_text(whole + cut_off)
        assert len(run.keep_until("metrics", 6)) == 5
        assert file.read_text() == whole
    assert len(run.keep_until("metrics", 3)) == 3
    assert file.read_text() == "".join(whole.splitlines(keepends=True)[:3])


def test_curves_of_many_iterations_show_their_medians_and_a_peak_does_not_flatten_them(tmp_path):
    def history(count, peak):
        return [{"iteration": n + 1, "loss": peak if n == 7 else 0.5 + 0.1 * (n % 5), "lr": 0.01} for n in range(count)]

    pictures = {}
    for name, records in {"few": history(20, 0.5), "many": history(20_000, 0.5), "peak": history(20_000, 1e15)}.items():
        save_curves(records, tmp_path / f"{name}.png")
        pictures[name] = numpy.asarray(Image.open(tmp_path / f"{name}.png").convert("RGB")).astype(int)
    orange = {
        name: int(((p[..., 0] > 240) & (p[..., 1] < 180) & (p[..., 2] < 100)).sum()) for name, p in pictures.items()
    }
    assert orange["few"] == 0 and orange["many"] > 500 and orange["peak"] > 500
    save_curves([record | {"loss": None} for record in history(600, 0.5)], tmp_path / "nothing.png")  # none was finite
