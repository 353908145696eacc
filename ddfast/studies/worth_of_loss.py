"""Whether a method's loss tells what its sets are worth: the correlation of the loss with the test error of a run."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ddfast.evaluation.scores import rank_correlation
from ddfast.run.folder import WatchedRunFolder
from ddfast.runtime.arguments import expect_whole
from ddfast.studies.tables import Table, save_picture, save_table, study_folder

STUDY = "loss-correlation"
FEWEST = 3  # evaluations, of which a correlation says something


def loss_correlation(runs: Sequence[str | Path], output: str | Path, *, smooth: int = 20) -> Table:
    """Spearman's correlation of the loss and the test error over the iterations that runs evaluated (`eval_every`).

    Args:
        runs: run folders.
        output: the folder of the table.
        smooth: the loss is the mean of so many iterations up to the evaluation.

    Rows: run, iteration, loss, error (percent). Findings: the correlation of each run; 1 says that a smaller loss is
    always a better set.
    Source: "Hard Truths" (arXiv 2604.18811), whose DCS is that of loss and test loss.
    Errors: ValueError for a run with fewer than three evaluations.
    """
    expect_whole(smooth=smooth)
    if isinstance(runs, str | Path):
        raise TypeError(f"runs: expected a sequence of run folders, got {runs!r}")
    of = {"runs": [str(run) for run in runs]}
    folder = study_folder(output, STUDY, of)
    rows: list[dict[str, Any]] = []
    findings: dict[str, Any] = {}
    for run in map(Path, runs):
        watched = WatchedRunFolder(run)
        last = watched.read_config()["iterations"]
        losses = {record["iteration"]: record["loss"] for record in watched.keep_until("metrics", last)}
        found = []
        for record in watched.keep_until("evaluations", last):
            before = [
                losses[n] for n in range(record["iteration"] - smooth + 1, record["iteration"] + 1) if n in losses
            ]
            mean = sum(before) / len(before) if before else None
            found.append(
                {"run": str(run), "iteration": record["iteration"], "loss": mean, "error": 100 - record["mean"]}
            )
        found = [row for row in found if row["loss"] is not None and row["loss"] == row["loss"]]
        if len(found) < FEWEST:
            raise ValueError(
                f"{run}: has {len(found)} evaluations, expected at least {FEWEST}; distil with a smaller "
                f"eval_every, or more iterations"
            )
        findings[str(run)] = rank_correlation([row["loss"] for row in found], [row["error"] for row in found])
        rows += found
    table = {"study": STUDY, "settings": of | {"smooth": smooth}, "rows": rows, "findings": findings}

    def draw(axes: Any) -> None:
        for run in map(str, runs):
            of = [row for row in rows if row["run"] == run]
            axes.plot([row["loss"] for row in of], [row["error"] for row in of], "o", label=run)
        axes.set(xlabel="loss", ylabel="test error in %")
        axes.legend()

    save_table(table, folder)
    save_picture(draw, folder)
    return table
