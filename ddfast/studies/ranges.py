"""How far to look: accuracy over the steps of a student and the epochs of an expert (MTT, figure 5)."""

from collections.abc import Sequence
from itertools import product
from pathlib import Path
from typing import Any

from ddfast.run.curves import thinned
from ddfast.run.distill import distill
from ddfast.run.loop import DistillationDivergedError
from ddfast.runtime.arguments import expect_whole
from ddfast.runtime.forecast import counted
from ddfast.runtime.ranks import ALONE, Ranks
from ddfast.studies.tables import Table, save_picture, save_table, study_folder

STUDY = "range"
MOST_POINTS = 100  # of a curve; each the median of neighbours


def range_study(
    dataset: Any,
    output: str | Path,
    *,
    syn_steps: Sequence[int] = (10, 20, 50),
    expert_epochs: Sequence[int] = (1, 2, 3),
    ranks: Ranks = ALONE,
    **options: Any,
) -> Table:
    """Distil with every number of synthetic steps and every number of expert epochs, all else equal.

    The second picture, distances.png, is of how near students come to targets so many epochs away, over the iterations.

    Args:
        dataset: as `distill` takes it.
        output: the folder, a run folder for each in it.
        options: the others of `distill`. Its method matches trajectories; mtt by default.

    Rows: syn_steps, expert_epochs, accuracy and std (percent; None for a run that diverged), loss (mean of the last
    tenth). Findings: the best row.
    Source: Cazenavette et al. 2022 (MTT), figure 5; its sizes there could not be verified.
    """
    expect_whole(**{"syn_steps": min(syn_steps, default=0), "expert_epochs": min(expert_epochs, default=0)})
    expect_whole(num_eval=options.get("num_eval", 1))
    if options.get("iterations") == 0:
        raise ValueError("iterations: expected 1 or more, for what the iterations come to is compared, got 0")
    folder = study_folder(output, STUDY, {})
    rows: list[dict[str, Any]] = []
    curves: dict[str, tuple[list[int], list[float | None]]] = {}
    for steps, epochs in counted("run", list(product(syn_steps, expert_epochs))):
        run = folder / "runs" / f"{steps:03d}-{epochs:02d}"
        row: dict[str, Any] = {"syn_steps": steps, "expert_epochs": epochs, "accuracy": None, "std": None, "loss": None}
        try:
            how = options | {"syn_steps": steps, "expert_epochs": epochs}
            done = distill(dataset, output=run, resume=True, ranks=ranks, **how)
            tail = done.history[-max(1, len(done.history) // 10) :]
            accuracy = done.accuracy["distilled"]
            row |= {"accuracy": accuracy["mean"], "std": accuracy["std"]}
            row["loss"] = sum(record["loss"] for record in tail) / len(tail)
            points = [one["iteration"] for one in done.history], [one["loss"] for one in done.history]
            curves[f"{steps} steps, expert epochs: {epochs}"] = points
        except DistillationDivergedError:
            pass  # the row says so
        rows.append(row)
    reached = [row for row in rows if row["accuracy"] is not None]
    findings = {"best": max(reached, key=lambda row: row["accuracy"])} if reached else {}
    settings = {name: str(value) for name, value in options.items()}
    table = {"study": STUDY, "settings": settings, "rows": rows, "findings": findings}

    def draw(axes: Any) -> None:
        for epochs in expert_epochs:
            of = [row for row in reached if row["expert_epochs"] == epochs]
            if of:
                axes.plot(
                    [r["syn_steps"] for r in of], [r["accuracy"] for r in of], "o-", label=f"{epochs} expert epochs"
                )
        axes.set(xlabel="synthetic steps", ylabel="test accuracy in %")
        if reached:
            axes.legend()

    def draw_distances(axes: Any) -> None:
        for words, points in curves.items():
            axes.plot(*thinned(*points, MOST_POINTS), label=words)
        axes.set(xlabel="iteration", ylabel="squared distance to the target\nover that of the start")
        if curves:
            axes.legend(fontsize="small")

    if ranks.is_first:
        save_table(table, folder)
        save_picture(draw, folder)
        save_picture(draw_distances, folder, "distances.png")
    return table
